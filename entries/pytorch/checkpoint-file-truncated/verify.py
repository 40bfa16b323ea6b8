# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Checkpoints of which a part is missing.

`download-cut-off` and `legacy-download` are sent by a server that hangs up in the middle the first time, in the zip
format of today and in the one before 1.6. In `save-cut-off` training dies of a full disk (a limit on the size of files)
while it overwrites its checkpoint; in `read-while-written` a reader comes while the writer is in the middle;
`two-in-one-file` calls `torch.save` twice on one open file.
"""

import contextlib
import copy
import hashlib
import shutil
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

TOLERANCE = 1e-4
WIDTH = 256
DOWNLOADS = {"download-cut-off": True, "legacy-download": False}


@pytest.fixture(params=[*DOWNLOADS, "save-cut-off", "read-while-written", "two-in-one-file"])
def config(request):
    """How a part came to be missing."""
    return request.param


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4))


@pytest.fixture
def server(config, tmp_path):
    """An address that gives half of the file the first time and all of it afterwards."""
    torch.save(model().state_dict(), tmp_path / "whole.pt", _use_new_zipfile_serialization=DOWNLOADS.get(config, True))
    whole = (tmp_path / "whole.pt").read_bytes()
    visits = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole if len(visits) > 1 else whole[: len(whole) // 2])

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}/model.pt", hashlib.sha256(whole).hexdigest()
    running.shutdown()
    running.server_close()


def download(address, path):
    """As most programs do it: a connection that ends early is no error here."""
    with urllib.request.urlopen(address, timeout=20) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
        return int(answer.headers["Content-Length"])


class Pausing:
    """A file whose writer stops in the middle until somebody lets it go on."""

    def __init__(self, path):
        self.file = path.open("wb", buffering=0)
        self.middle, self.go_on = threading.Event(), threading.Event()

    def write(self, data):
        self.file.write(data)
        if self.file.tell() > 100_000 and not self.middle.is_set():
            self.middle.set()
            self.go_on.wait(20)
        return len(data)

    def flush(self):
        pass


@contextlib.contextmanager
def half_written(path):
    writer = Pausing(path)
    thread = threading.Thread(target=torch.save, args=(model().state_dict(), writer))
    thread.start()
    writer.middle.wait(20)
    try:
        yield
    finally:
        writer.go_on.set()
        thread.join()
        writer.file.close()


TRAINING = """
import os, resource, torch
from torch import nn

def model(seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(8, {width}), nn.GELU(), nn.Linear({width}, {width}), nn.GELU(), nn.Linear({width}, 4)]
    return nn.Sequential(*layers)

def save(state, path):
    {save}

save(model(0).state_dict(), {path!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(model(1).state_dict(), {path!r})
except (OSError, RuntimeError):
    print("no space left")
"""
OVERWRITE = "torch.save(state, path)"
LEGACY = "torch.save(state, path, _use_new_zipfile_serialization=False)"
ATOMIC = "torch.save(state, path + '.part'); os.replace(path + '.part', path)"


def train(run_script, path, save=OVERWRITE):
    printed = run_script(TRAINING.format(width=WIDTH, save=save, path=str(path)))
    assert "no space left" in printed


def read(config, path, server, run_script, **options):
    """The program of each configuration, up to reading its checkpoint."""
    options = {"map_location": "cpu", **options}
    if config == "read-while-written":
        with half_written(path):
            return torch.load(path, **options)
    if config in DOWNLOADS:
        download(server[0], path)
    elif config == "save-cut-off":
        train(run_script, path)
    else:
        with path.open("wb") as file:
            torch.save({"epoch": 3}, file)
            torch.save(model().state_dict(), file)
    return torch.load(path, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def results(state, device="cpu", dtype=torch.float32):
    """Outputs and gradients of a model with these weights."""
    loaded = model(7)
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
def test_reproduces(config, path, server, run_script):
    read(config, path, server, run_script)


@pytest.mark.workaround("download-and-compare")
def test_download_and_compare(config, path, server, device, measure):
    only_for(config, *DOWNLOADS)
    address, digest = server
    for _ in range(3):
        part = path.with_suffix(".part")
        if download(address, part) == part.stat().st_size:
            break
    assert hashlib.sha256(part.read_bytes()).hexdigest() == digest
    part.replace(path)
    close(measure, torch.load(path, map_location="cpu", weights_only=True), device)


@pytest.mark.workaround("save-then-rename")
def test_save_then_rename(config, path, run_script, device, measure):
    only_for(config, "save-cut-off")
    train(run_script, path, ATOMIC)
    close(measure, torch.load(path, map_location="cpu", weights_only=True), device)


@pytest.mark.workaround("earlier-checkpoint")
def test_earlier_checkpoint(config, path, run_script, device, measure):
    only_for(config, "save-cut-off")
    earlier = path.with_name("epoch_1.pt")
    torch.save(model().state_dict(), earlier)
    train(run_script, path)
    for candidate in (path, earlier):
        with contextlib.suppress(RuntimeError, OSError):
            state = torch.load(candidate, map_location="cpu", weights_only=True)
            break
    assert candidate == earlier
    close(measure, state, device)


RANKS = """
import os, time, torch, torch.distributed as dist

class Slow:
    def __init__(self, path):
        self.file = open(path, "wb", buffering=0)
    def write(self, data):
        time.sleep(0.02)
        return self.file.write(data)
    def flush(self):
        pass

dist.init_process_group("gloo")
torch.manual_seed(0)
state = {{"weight": torch.randn(256, 256)}}
if dist.get_rank() == 0:
    torch.save(state, Slow({path!r}))
dist.barrier()
loaded = torch.load({path!r}, map_location="cpu", weights_only=True)
print("difference", (loaded["weight"] - state["weight"]).abs().max().item(), "of rank", dist.get_rank())
dist.destroy_process_group()
"""


@pytest.mark.workaround("wait-for-the-writer")
def test_wait_for_the_writer(config, path, run_script):
    only_for(config, "read-while-written")
    printed = run_script(RANKS.format(path=str(path)), nproc=2)
    assert printed.count("difference 0.0 of rank") == 2, printed


@pytest.mark.workaround("one-object-per-file")
def test_one_object_per_file(config, path, device, measure):
    only_for(config, "two-in-one-file")
    torch.save({"epoch": 3, "model": model().state_dict()}, path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    assert loaded["epoch"] == 3
    close(measure, loaded["model"], device)


@pytest.mark.dead_end("weights-only-false")
def test_weights_only_false(config, path, server, run_script):
    read(config, path, server, run_script, weights_only=False)


@pytest.mark.dead_end("mmap")
def test_mmap(config, path, server, run_script):
    read(config, path, server, run_script, mmap=True)


@pytest.mark.dead_end("legacy-format")
def test_legacy_format(config, path, run_script):
    only_for(config, "save-cut-off")
    train(run_script, path, LEGACY)
    torch.load(path, map_location="cpu")
