# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "safetensors>=0.4", "huggingface_hub>=0.30"]
# ///
"""Safetensors files that end too early.

A download that was cut among the tensors, inside the header, or before its first byte; a file that another thread is
still copying; and, before safetensors 0.8, what a save leaves that may write no more (a limit of the file size stands
for the full disk). The Hub is a server on this machine that answers as the Hub does; the client is the real one.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import pathlib
import resource
import threading
import time
from collections.abc import Iterator

import huggingface_hub
import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

pytestmark = [
    pytest.mark.requires(torch=">=2.1", safetensors=">=0.4", huggingface_hub=">=0.30", os=("linux", "macos")),
    pytest.mark.usefixtures("hub"),
]

NAME = "model.safetensors"
CUT = {"download-cut": 0.6, "header-cut": 0.002, "empty-file": 0.0}
"""Which part of the file arrived."""


@pytest.fixture(
    params=[
        *CUT,
        "still-being-written",
        pytest.param("save-failed", marks=pytest.mark.requires(safetensors="<0.8")),
    ]
)
def config(request) -> str:
    return request.param


def weights() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(4096.0).reshape(64, 64), "bias": torch.linspace(0, 1, 64)}


CONTENT = safetensors.torch.save(weights())


class Answer(http.server.BaseHTTPRequestHandler):
    """The file with its hash and commit, as the Hub sends them."""

    def do_HEAD(self) -> None:
        self.send_response(200 if NAME in self.path else 404)
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hub(monkeypatch) -> Iterator[None]:
    """The server, and a client that goes there."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield
    server.shutdown()
    server.server_close()


def download(folder: pathlib.Path, **options) -> pathlib.Path:
    return pathlib.Path(huggingface_hub.hf_hub_download("org/model", NAME, local_dir=folder, **options))


def fail_to_save(path: pathlib.Path) -> None:
    """Saving stops after half of the file, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, before[1]))
    try:
        safetensors.torch.save_file(weights(), path)
    except safetensors.SafetensorError:
        """The program's log says so; the file stays."""
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def start_copying(path: pathlib.Path, finish: threading.Event) -> threading.Thread:
    """Half of the file is there; the rest comes after `finish`."""
    path.write_bytes(CONTENT[: len(CONTENT) // 2])

    def copy() -> None:
        finish.wait(timeout=20)
        with path.open("ab") as file:
            file.write(CONTENT[len(CONTENT) // 2 :])

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def broken(config: str, folder: pathlib.Path) -> pathlib.Path:
    path = folder / NAME
    if config in CUT:
        download(folder)
        os.truncate(path, int(len(CONTENT) * CUT[config]))
    elif config == "save-failed":
        fail_to_save(path)
    else:
        start_copying(path, threading.Event())
    return path


def check(measure, path: pathlib.Path) -> None:
    measure.compare(safetensors.torch.load_file(path), weights(), tolerance=0.0)


def skip_unless(applies: bool, reason: str) -> None:
    if not applies:
        pytest.skip(reason)


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    safetensors.torch.load_file(broken(config, tmp_path))


@pytest.mark.workaround("download-again")
def test_download_again(config, tmp_path, measure):
    skip_unless(config in CUT, "the file does not come from the Hub")
    broken(config, tmp_path).unlink()
    check(measure, download(tmp_path))


@pytest.mark.workaround("force-download")
def test_force_download(config, tmp_path, measure):
    skip_unless(config in CUT, "the file does not come from the Hub")
    broken(config, tmp_path)
    check(measure, download(tmp_path, force_download=True))


@pytest.mark.workaround("free-space-and-save-again")
def test_free_space_and_save_again(config, tmp_path, measure):
    skip_unless(config == "save-failed", "nothing was saved here")
    path = broken(config, tmp_path)
    safetensors.torch.save_file(weights(), path)
    check(measure, path)


@pytest.mark.workaround("earlier-checkpoint")
def test_earlier_checkpoint(config, tmp_path, measure):
    skip_unless(config == "save-failed", "there is one file only")
    for step in (1000, 2000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    safetensors.torch.save_file(weights(), tmp_path / "checkpoint-1000" / NAME)
    broken(config, tmp_path / "checkpoint-2000")
    check(measure, tmp_path / "checkpoint-1000" / NAME)


@pytest.mark.workaround("wait-for-the-writer")
def test_wait_for_the_writer(config, tmp_path, measure):
    skip_unless(config == "still-being-written", "nobody is writing any more")
    finish = threading.Event()
    writer = start_copying(tmp_path / NAME, finish)
    finish.set()
    writer.join()
    check(measure, tmp_path / NAME)


@pytest.mark.workaround("write-then-rename")
def test_write_then_rename(config, tmp_path, measure):
    skip_unless(config == "still-being-written", "nobody is writing any more")
    finish = threading.Event()
    unfinished = tmp_path / f"{NAME}.part"
    writer = start_copying(unfinished, finish)
    assert not (tmp_path / NAME).exists()
    threading.Thread(target=lambda: (finish.set(), writer.join(), unfinished.replace(tmp_path / NAME))).start()
    while not (tmp_path / NAME).exists():
        time.sleep(0.01)
    check(measure, tmp_path / NAME)


@pytest.mark.dead_end("download-over-it")
def test_download_over_it(config, tmp_path):
    skip_unless(config in CUT, "the file does not come from the Hub")
    broken(config, tmp_path)
    safetensors.torch.load_file(download(tmp_path))


@pytest.mark.dead_end("pad-to-full-size")
def test_pad_to_full_size(config, tmp_path, measure):
    path = broken(config, tmp_path)
    os.truncate(path, len(CONTENT))
    check(measure, path)


@pytest.mark.dead_end("read-into-memory")
def test_read_into_memory(config, tmp_path):
    safetensors.torch.load(broken(config, tmp_path).read_bytes())
