# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "bitsandbytes>=0.43"]
# ///
"""bitsandbytes sees no GPU, has loaded its CPU library, and is asked for a function that is in the CUDA one only.

The process is shown no GPU, so this is the same on every machine. A fix passes if a step of AdamW changes a weight as
the formula says.
"""

import pathlib
import shutil
from importlib import metadata

import pytest
import torch

pytestmark = pytest.mark.requires(bitsandbytes=">=0.43")

SIZE = 512
"""Large enough to be paged."""


@pytest.fixture(
    params=[
        pytest.param("method-not-available", marks=pytest.mark.requires(bitsandbytes=">=0.46")),
        pytest.param("undefined-symbol-before-0-46", marks=pytest.mark.requires(bitsandbytes="<0.46", os="linux")),
    ]
)
def config(request, monkeypatch):
    """The wording. Old releases ask for managed memory in a paged optimizer; recent ones do that on a GPU alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return request.param


def numbers():
    start, gradient = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return start, gradient


def stepped(kind):
    """A weight after one step."""
    start, gradient = numbers()
    weight = torch.nn.Parameter(start.clone())
    weight.grad = gradient.clone()
    kind([weight], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0).step()
    return weight.detach()


def wanted():
    """Of the first step of AdamW only the signs of the gradients are left."""
    start, gradient = (part.double() for part in numbers())
    return start - 0.1 * gradient / (gradient.abs() + 1e-8)


def gpu_function(config):
    import bitsandbytes

    if config == "undefined-symbol-before-0-46":
        stepped(bitsandbytes.optim.PagedAdamW32bit)
    else:
        bitsandbytes.functional.get_paged(SIZE, SIZE)


@pytest.mark.reproduces
def test_reproduces(config, measure):
    try:
        gpu_function(config)
    finally:
        measure.recovers(lambda: stepped(torch.optim.AdamW).isfinite().all())


@pytest.mark.workaround("cpu-optimizer-of-recent-release")
@pytest.mark.requires(bitsandbytes=">=0.50")
def test_cpu_optimizer_of_recent_release(config, measure):
    """On a CPU it is not paged, and its first step is exact: only the state it keeps is in 8 bits."""
    import bitsandbytes

    measure.compare(stepped(bitsandbytes.optim.PagedAdamW8bit), wanted(), tolerance=1e-5)


@pytest.mark.workaround("torch-optimizer")
def test_torch_optimizer(config, measure):
    measure.compare(stepped(torch.optim.AdamW), wanted(), tolerance=1e-5)


@pytest.mark.dead_end("copy-cuda-library-over-cpu")
@pytest.mark.requires(device="cpu", os="linux")
def test_copy_cuda_library_over_cpu(config, tmp_path, monkeypatch):
    """In a copy of the package. Where no CUDA is detected there is no CUDA runtime either."""
    installed = pathlib.Path(metadata.distribution("bitsandbytes").locate_file("bitsandbytes"))
    patched = tmp_path / "bitsandbytes"
    left_out = shutil.ignore_patterns("__pycache__", "libbitsandbytes_*")
    shutil.copytree(installed, patched, ignore=left_out)
    shutil.copy(sorted(installed.glob("libbitsandbytes_cuda12*.so"))[-1], patched / "libbitsandbytes_cpu.so")
    monkeypatch.syspath_prepend(tmp_path)
    gpu_function(config)


@pytest.mark.dead_end("choose-binary")
def test_choose_binary(config, monkeypatch):
    monkeypatch.setenv("BNB_CUDA_VERSION", "126")
    gpu_function(config)


@pytest.mark.dead_end("not-paged")
@pytest.mark.requires(bitsandbytes="<0.46")
def test_not_paged(config):
    import bitsandbytes

    stepped(bitsandbytes.optim.AdamW32bit)
