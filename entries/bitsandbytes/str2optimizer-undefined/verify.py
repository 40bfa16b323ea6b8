# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "bitsandbytes>=0.43,<0.46"]
# ///
"""An optimizer of bitsandbytes steps in a process where no CUDA library was loaded.

The process is shown no GPU, so this is the same on every machine. Releases up to 0.45 have the tables of optimizer
functions with CUDA only; recent ones step on the CPU. A fix passes if the step is the one that the formula says.
"""

import functools
import pathlib
import shutil
from importlib import metadata

import pytest
import torch

pytestmark = pytest.mark.requires(bitsandbytes=">=0.43,<0.46")


@pytest.fixture(params=["8-bit", "32-bit", "8-bit-in-unbuilt-checkout"])
def config(request, tmp_path, monkeypatch):
    """Which optimizer, and whether the CPU library is there or, as in a checkout that was never built, none at all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if request.param.endswith("checkout"):
        installed = pathlib.Path(metadata.distribution("bitsandbytes").locate_file("bitsandbytes"))
        left_out = shutil.ignore_patterns("__pycache__", "libbitsandbytes_*")
        shutil.copytree(installed, tmp_path / "bitsandbytes", ignore=left_out)
        monkeypatch.syspath_prepend(tmp_path)
    return request.param


def numbers():
    start, gradient = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(0))
    return start, gradient


def stepped(kind):
    """A weight after one step."""
    start, gradient = numbers()
    weight = torch.nn.Parameter(start.clone())
    weight.grad = gradient.clone()
    kind([weight], lr=0.1, weight_decay=0.0).step()
    return weight.detach()


def wanted():
    """Of the first step of AdamW only the signs of the gradients are left."""
    start, gradient = (part.double() for part in numbers())
    return start - 0.1 * gradient / (gradient.abs() + 1e-8)


def optimizer(config):
    import bitsandbytes

    return bitsandbytes.optim.AdamW32bit if config == "32-bit" else bitsandbytes.optim.AdamW8bit


@pytest.mark.reproduces
def test_reproduces(config, measure):
    try:
        stepped(optimizer(config))
    finally:
        measure.recovers(lambda: stepped(torch.optim.AdamW).isfinite().all())


@pytest.mark.workaround("stock-optimizer")
def test_stock_optimizer(config, measure):
    measure.compare(measure(lambda: stepped(torch.optim.AdamW)), wanted(), tolerance=1e-5)


@pytest.mark.dead_end("another-optimizer-of-the-library")
def test_another_optimizer_of_the_library(config):
    import bitsandbytes

    stepped(bitsandbytes.optim.PagedAdamW32bit)


@pytest.mark.dead_end("larger-minimum-size")
def test_larger_minimum_size(config):
    """Below `min_8bit_size` numbers a tensor is stepped in 32 bits, with the other table."""
    if config == "32-bit":
        pytest.skip("this optimizer has no 8-bit state")
    stepped(functools.partial(optimizer(config), min_8bit_size=10**9))


@pytest.mark.dead_end("define-the-name")
def test_define_the_name(config):
    import bitsandbytes.functional

    bitsandbytes.functional.str2optimizer32bit = bitsandbytes.functional.str2optimizer8bit_blockwise = {}
    stepped(optimizer(config))


@pytest.mark.dead_end("name-a-cuda-version")
def test_name_a_cuda_version(config, monkeypatch):
    monkeypatch.setenv("BNB_CUDA_VERSION", "124")
    stepped(optimizer(config))
