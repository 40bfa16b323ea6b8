# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.0"]
# ///
"""A CUDA build of torch on a machine where no NVIDIA driver answers, met by the first call that wants the GPU.

Needs what it is about: a CUDA build of torch, and no driver. A container started without the GPU, a notebook without an
accelerator and a driver that is not loaded look the same to the program; their cures lie outside of it.
"""

import shutil

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.0", device="cpu")


@pytest.fixture(params=["model-moved", "tensor-made", "device-asked"])
def config(request):
    """The call that meets the missing driver."""
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a driver")
    return request.param


def build(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16, dtype=torch.float64), nn.ReLU()).to(dtype)


def batch(dtype=torch.float32):
    return torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(4, 16).to(dtype)


def run(config, device="cuda"):
    """A forward pass whose program reaches for the GPU in one of three ways."""
    if config == "model-moved":
        return build().to(device)(batch().to(device))
    if config == "tensor-made":
        scale = torch.ones(16, device=device)
        return build().to(device)(batch().to(device) * scale)
    memory = torch.cuda.get_device_properties(device).total_memory if str(device).startswith("cuda") else 2**30
    rows = max(1, min(4, memory // 2**30))
    return torch.cat([build().to(device)(part.to(device)) for part in batch().split(rows)])


def check(measure, result):
    measure.compare(result, build(torch.float64)(batch(torch.float64)), tolerance=1e-5)


@pytest.mark.reproduces
def test_reproduces(config):
    run(config)


@pytest.mark.workaround("use-cpu")
def test_use_cpu(config, measure):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check(measure, measure(lambda: run(config, device)))


@pytest.mark.workaround("ask-for-the-accelerator")
@pytest.mark.requires(torch=">=2.7")
def test_ask_for_the_accelerator(config, measure):
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    check(measure, measure(lambda: run(config, device)))


@pytest.mark.dead_end("install-toolkit")
def test_install_toolkit(config):
    if shutil.which("nvcc") is None:
        pytest.skip("needs an installed toolkit")
    run(config)


@pytest.mark.dead_end("set-visible-devices")
def test_set_visible_devices(config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    run(config)


@pytest.mark.dead_end("another-index")
def test_another_index(config):
    run(config, "cuda:0")
