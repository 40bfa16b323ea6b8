# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "safetensors>=0.4", "huggingface_hub>=0.30"]
# ///
"""Files named .safetensors that are something else.

The text that git leaves without LFS, a web page that was saved in place of the file, a pickle checkpoint that was only
renamed, and a downloaded file whose beginning was overwritten. The Hub is a server on this machine that answers as the
Hub does; the client that downloads from it is the real one.
"""

from __future__ import annotations

import hashlib
import http.server
import pathlib
import threading
from collections.abc import Iterator

import huggingface_hub
import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

pytestmark = [
    pytest.mark.requires(torch=">=2.1", safetensors=">=0.4", huggingface_hub=">=0.30"),
    pytest.mark.usefixtures("hub"),
]

NAME = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"


@pytest.fixture(params=["lfs-pointer", "web-page", "renamed-pickle", "start-overwritten"])
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


def broken(config: str, folder: pathlib.Path) -> pathlib.Path:
    path = folder / NAME
    if config == "start-overwritten":
        download(folder)
        path.write_bytes(bytes(64) + CONTENT[64:])
    elif config == "renamed-pickle":
        torch.save(weights(), path)
    else:
        pointer = POINTER % (hashlib.sha256(CONTENT).hexdigest().encode(), len(CONTENT))
        path.write_bytes(pointer if config == "lfs-pointer" else PAGE)
    return path


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    safetensors.torch.load_file(broken(config, tmp_path))


@pytest.mark.workaround("download-with-hub-client")
def test_download_with_hub_client(config, tmp_path, measure):
    if config == "renamed-pickle":
        pytest.skip("the weights are all there, only the name is wrong")
    broken(config, tmp_path).unlink()
    measure.compare(safetensors.torch.load_file(download(tmp_path)), weights(), tolerance=0.0)


@pytest.mark.workaround("force-download")
def test_force_download(config, tmp_path, measure):
    if config == "renamed-pickle":
        pytest.skip("the weights are all there, only the name is wrong")
    broken(config, tmp_path)
    path = download(tmp_path, force_download=True)
    measure.compare(safetensors.torch.load_file(path), weights(), tolerance=0.0)


@pytest.mark.workaround("load-by-its-true-kind")
def test_load_by_its_true_kind(config, tmp_path, measure):
    if config != "renamed-pickle":
        pytest.skip("the file holds no weights of any kind")
    pickled = broken(config, tmp_path).rename(tmp_path / "model.bin")
    safetensors.torch.save_file(torch.load(pickled, weights_only=True), tmp_path / NAME)
    measure.compare(safetensors.torch.load_file(tmp_path / NAME), weights(), tolerance=0.0)


@pytest.mark.dead_end("reinstall-transformers")
def test_reinstall_transformers(config, tmp_path):
    """The library as it is installed is sound: it reads a good file, and then refuses this one as before."""
    (tmp_path / "good.safetensors").write_bytes(CONTENT)
    assert safetensors.torch.load_file(tmp_path / "good.safetensors").keys() == weights().keys()
    safetensors.torch.load_file(broken(config, tmp_path))


@pytest.mark.dead_end("download-over-it")
def test_download_over_it(config, tmp_path):
    if config != "start-overwritten":
        pytest.skip("the client did not make this file, and so replaces it")
    broken(config, tmp_path)
    safetensors.torch.load_file(download(tmp_path))


@pytest.mark.dead_end("read-into-memory")
def test_read_into_memory(config, tmp_path):
    safetensors.torch.load(broken(config, tmp_path).read_bytes())
