# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3", "safetensors"]
# ///
"""Files that are no pickle, read as one.

A server on this machine stands for a model hub: `/resolve/` gives a file itself, `/raw/` what git stores of it, which
for large files is a pointer of three lines, and `/blob/` a page about it. `web-page` and `raw-link` download from the
wrong one of them; `stale-cache` got an error page once and finds it in torch.hub's folder since; `cloned-pointer` is a
clone made without git-lfs, whose objects lie in a store under their digest. `safetensors-file` and `gzip-file` are
sound files of other formats.
"""

import copy
import gzip
import hashlib
import pickle
import shutil
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3")

TOLERANCE = 1e-4
DOWNLOADS = {"web-page": "blob", "raw-link": "raw", "stale-cache": "resolve"}
PAGE = b"<!DOCTYPE html>\n<html><head><title>model.pt</title></head><body>Sign in to continue</body></html>\n"


@pytest.fixture(params=[*DOWNLOADS, "cloned-pointer", "safetensors-file", "gzip-file"])
def config(request):
    """What lies where the checkpoint should."""
    return request.param


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


def pointer_to(content):
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()


@pytest.fixture
def whole(tmp_path):
    """The checkpoint as its author has it."""
    torch.save(model().state_dict(), tmp_path / "whole.pt")
    return (tmp_path / "whole.pt").read_bytes()


@pytest.fixture
def hub(whole):
    """The address of a hub that keeps the checkpoint."""
    answers = {"/resolve/model.pt": whole, "/raw/model.pt": pointer_to(whole), "/blob/model.pt": PAGE}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            content = answers[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def download(address, path):
    with urllib.request.urlopen(address, timeout=20) as answer:
        path.write_bytes(answer.read())


@pytest.fixture
def path(config, hub, whole, tmp_path):
    """The file that the program loads."""
    path = tmp_path / "model.pt"
    if config in ("web-page", "raw-link"):
        download(f"{hub}/{DOWNLOADS[config]}/model.pt", path)
    elif config == "stale-cache":
        path.write_bytes(PAGE)
    elif config == "cloned-pointer":
        path.write_bytes(pointer_to(whole))
        objects = tmp_path / "objects"
        objects.mkdir()
        (objects / hashlib.sha256(whole).hexdigest()).write_bytes(whole)
    elif config == "safetensors-file":
        safetensors.torch.save_file(model().state_dict(), path)
    else:
        path.write_bytes(gzip.compress(whole))
    return path


def load(config, path, hub):
    """The program: in one configuration by torch.hub, which keeps what it downloaded."""
    if config == "stale-cache":
        address = f"{hub}/resolve/model.pt"
        return torch.hub.load_state_dict_from_url(address, path.parent, "cpu", False, weights_only=False)
    return torch.load(path, map_location="cpu", weights_only=False)


def results(state, device="cpu", dtype=torch.float32):
    """Outputs and gradients of a model with these weights."""
    loaded = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    loaded.load_state_dict(state)
    loaded.to(device, dtype)
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    outputs = loaded(values)
    outputs.square().mean().backward()
    return [outputs.detach().cpu(), *(p.grad.cpu() for p in loaded.parameters())]


def close(measure, state, device):
    reference = results(copy.deepcopy(model()).double().state_dict(), dtype=torch.float64)
    measure.compare(results(state, device), reference, tolerance=TOLERANCE)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.mark.reproduces
def test_reproduces(config, path, hub):
    load(config, path, hub)


@pytest.mark.workaround("fetch-the-object")
def test_fetch_the_object(config, path, device, measure):
    only_for(config, "cloned-pointer")
    said = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    shutil.copy(path.parent / "objects" / said["oid"].removeprefix("sha256:"), path)
    assert path.stat().st_size == int(said["size"])
    close(measure, torch.load(path, map_location="cpu", weights_only=True), device)


@pytest.mark.workaround("link-to-the-file-itself")
def test_link_to_the_file_itself(config, path, hub, device, measure):
    only_for(config, "web-page", "raw-link")
    download(f"{hub}/resolve/model.pt", path)
    close(measure, torch.load(path, map_location="cpu", weights_only=True), device)


@pytest.mark.workaround("delete-the-cached-file")
def test_delete_the_cached_file(config, path, hub, device, measure):
    only_for(config, "stale-cache")
    path.unlink()
    close(measure, load(config, path, hub), device)


@pytest.mark.workaround("read-by-its-format")
def test_read_by_its_format(config, path, device, measure):
    only_for(config, "safetensors-file", "gzip-file")
    if config == "safetensors-file":
        state = safetensors.torch.load_file(path)
    else:
        with gzip.open(path) as content:
            state = torch.load(content, map_location="cpu", weights_only=True)
    close(measure, state, device)


@pytest.mark.dead_end("pickle-load")
def test_pickle_load(path):
    with path.open("rb") as content:
        pickle.load(content)


@pytest.mark.dead_end("latin1")
def test_latin1(path):
    torch.load(path, map_location="cpu", weights_only=False, encoding="latin1")


@pytest.mark.dead_end("weights-only-true")
def test_weights_only_true(path):
    torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.dead_end("run-again")
def test_run_again(config, path, hub):
    only_for(config, "stale-cache")
    load(config, path, hub)
