# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A program that asks for CUDA under the CPU build of torch.

`train` is a training step as repositories have it: the device is an option whose default is `cuda`, and in three of
the configurations a CUDA call stands in the code besides, where the option does not reach it.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

ROWS, WIDTH = 8, 16


@pytest.fixture(params=["option-defaults-to-cuda", "set-device", "cuda-generator", "streams-and-events"])
def config(request) -> str:
    if torch.backends.cuda.is_built():
        pytest.skip("this torch is a CUDA build")
    return request.param


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4))


def batch() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def shuffled(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return rows[torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.device)]


def gradient(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    model(rows).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def train(config: str, device: str = "cuda") -> torch.Tensor:
    """The gradients of one step, with CUDA calls where this configuration has them."""
    if config == "set-device":
        torch.cuda.set_device(0)
    generator = torch.Generator("cuda" if config == "cuda-generator" else "cpu")
    if config == "streams-and-events":
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.Event(enable_timing=True).record()
    return gradient(build().to(device), shuffled(batch().to(device), generator))


def train_anywhere(config: str, device: torch.device) -> torch.Tensor:
    """The same step with one device variable, and what only CUDA has behind a question."""
    if config == "set-device" and device.type == "cuda":
        torch.cuda.set_device(device)
    generator = torch.Generator(device if config == "cuda-generator" and device.type == "cuda" else "cpu")
    if config == "streams-and-events" and device.type == "cuda":
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.Event(enable_timing=True).record()
    return gradient(build().to(device), shuffled(batch().to(device), generator))


def best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def reference() -> torch.Tensor:
    """Gradients in float64; the order of the rows does not change their mean."""
    return gradient(build().double(), batch().double())


@pytest.mark.reproduces
def test_reproduces(config):
    train(config)


@pytest.mark.workaround("switch-device")
def test_switch_device(config, measure):
    if config != "option-defaults-to-cuda":
        pytest.skip("a call in the code asks for CUDA whatever the option says")
    result = measure(lambda: train(config, device=best_device().type))
    measure.compare(result, reference(), tolerance=1e-4)


@pytest.mark.workaround("remove-cuda-calls")
def test_remove_cuda_calls(config, measure):
    result = measure(lambda: train_anywhere(config, best_device()))
    measure.compare(result, reference(), tolerance=1e-4)


@pytest.mark.dead_end("switch-only-the-option")
def test_switch_only_the_option(config):
    if config == "option-defaults-to-cuda":
        pytest.skip("the option is all there is to switch here")
    train(config, device="cpu")


@pytest.mark.dead_end("reinstall-cpu")
def test_reinstall_cpu(config):
    """The same build installed once more is what runs here."""
    assert torch.version.cuda is None
    train(config)


@pytest.mark.dead_end("name-the-card")
def test_name_the_card(config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    train(config, device="cuda:0")
