# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""A convolution gets an input of another type than its weights.

`half-model` is a vision tower in half precision that is shown float32 pixels, `half-latents` a decoder kept in float32
behind a network in float16, `uint8-pixels` and `float64-features` are what image files and numpy hand over.
"""

from typing import NamedTuple

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3")


class Config(NamedTuple):
    """Type of the input and of the weights."""

    given: torch.dtype
    weights: torch.dtype


@pytest.fixture(
    params=[
        pytest.param(Config(torch.float32, torch.bfloat16), id="half-model"),
        pytest.param(Config(torch.float16, torch.float32), id="half-latents"),
        pytest.param(Config(torch.uint8, torch.float16), id="uint8-pixels"),
        pytest.param(Config(torch.float64, torch.float32), id="float64-features"),
    ]
)
def config(request):
    return request.param


def build(device, dtype):
    """A patch embedding and another convolution."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.GELU(), nn.Conv2d(16, 8, 3, padding=1))
    return layers.to(device, dtype)


def images(device, dtype):
    """Pixels from 0 to 255 as integers, from 0 to 1 otherwise; every type here holds them exactly."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return (pixels if dtype == torch.uint8 else (pixels // 8 * 8).to(dtype) / 256).to(device)


def reference(config, scaled):
    """In float64; `scaled` says whether integer pixels were divided by 255."""
    values = images("cpu", config.given).double()
    if config.given == torch.uint8 and scaled:
        values = values / 255
    return build("cpu", config.weights).double()(values)


def dtype_of(model):
    return next(model.parameters()).dtype


@pytest.mark.reproduces
def test_reproduces(config, device):
    build(device, config.weights)(images(device, config.given))


@pytest.mark.workaround("cast-the-input")
def test_cast_the_input(config, device, measure):
    model, pixels = build(device, config.weights), images(device, config.given)

    def step():
        values = pixels.to(dtype_of(model))
        if pixels.dtype == torch.uint8:
            values = values / 255
        return model(values)

    result = measure(step)
    assert result.dtype == config.weights
    measure.compare(result, reference(config, scaled=True), tolerance=0.02)


@pytest.mark.workaround("autocast")
def test_autocast(config, device, measure):
    if config.given in (torch.uint8, torch.float64):
        pytest.skip("autocast leaves integers and float64 alone")
    model, pixels = build(device, config.weights), images(device, config.given)

    def step():
        with torch.autocast(device, dtype=torch.bfloat16):
            return model(pixels)

    measure.compare(measure(step), reference(config, scaled=True), tolerance=0.02)


@pytest.mark.workaround("weights-like-the-input")
def test_weights_like_the_input(config, device, measure):
    if not config.given.is_floating_point:
        pytest.skip("no convolution computes in integers")
    model, values = build(device, config.weights).to(config.given), images(device, config.given)
    measure.compare(measure(lambda: model(values)), reference(config, scaled=True), tolerance=0.02)


@pytest.mark.dead_end("move-to-device")
def test_move_to_device(config, device):
    model, pixels = build(device, config.weights).to(device), images(device, config.given).to(device)
    model(pixels)


@pytest.mark.dead_end("cast-the-bias")
def test_cast_the_bias(config, device):
    model, pixels = build(device, config.weights), images(device, config.given)
    for layer in (model[0], model[2]):
        layer.bias = nn.Parameter(layer.bias.detach().to(config.given), requires_grad=False)
    model(pixels)


@pytest.mark.dead_end("autocast-for-integers")
def test_autocast_for_integers(config, device):
    if config.given not in (torch.uint8, torch.float64):
        pytest.skip("this is about integers and float64")
    model, pixels = build(device, config.weights), images(device, config.given)
    with torch.autocast(device, dtype=torch.bfloat16):
        model(pixels)


@pytest.mark.dead_end("cast-without-scaling")
def test_cast_without_scaling(config, device, measure):
    if config.given != torch.uint8:
        pytest.skip("only integer pixels have to be scaled")
    model, pixels = build(device, config.weights), images(device, config.given)
    measure.compare(model(pixels.to(dtype_of(model))), reference(config, scaled=True), tolerance=0.02)
