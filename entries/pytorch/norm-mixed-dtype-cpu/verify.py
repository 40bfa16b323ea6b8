# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""A normalisation layer on the CPU whose input and weights have types that do not go together.

`half-weights` feeds float32 to a bfloat16 model, `float32-island` adds a time embedding that was computed in float32 in
the middle of one, `two-half-types` runs float16 weights under bfloat16 autocast, and `float64-input` comes from NumPy.
A GPU has other words for it. A fix is right if output and gradients are those of the same weights in float64.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.requires(torch=">=2.3", device="cpu")

HALF = {"half-weights": torch.bfloat16, "float32-island": torch.bfloat16, "two-half-types": torch.float16}
TOLERANCE = 0.05
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d)


class Block(nn.Module):
    """A normalisation, a layer, and another normalisation; `times` are added between."""

    def __init__(self, config):
        super().__init__()
        self.first = nn.BatchNorm1d(16) if config == "float64-input" else nn.LayerNorm(16)
        self.inner = nn.Linear(16, 16)
        self.second = nn.GroupNorm(4, 16)
        self.outer = nn.Linear(16, 4)
        self.starts_with_layer = config == "two-half-types"
        self.has_times = config == "float32-island"

    def forward(self, values, cast_times=False):
        if not self.starts_with_layer:
            values = self.first(values)
        values = self.inner(values)
        if self.has_times:
            times = torch.arange(len(values), dtype=torch.float32)[:, None] * torch.linspace(0, 1, 16)
            values = values + (times.sin().to(values.dtype) if cast_times else times.sin())
        if self.starts_with_layer:
            values = self.first(values)
        return self.outer(self.second(values).relu())


def build(config):
    torch.manual_seed(0)
    model = Block(config)
    for norm in (model.first, model.second):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model.to(HALF.get(config, torch.float32))


def inputs(config):
    values = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    if config == "float64-input":
        return torch.from_numpy(values.numpy().astype("float64"))
    return values.to(torch.bfloat16) if config == "float32-island" else values


def autocast(config):
    return torch.autocast("cpu", torch.bfloat16, enabled=config == "two-half-types")


def run(config, model, values, **options):
    with autocast(config):
        return model(values, **options)


def output_and_gradients(model, output):
    model.zero_grad()
    output.float().square().mean().backward()
    return [output.detach(), *(p.grad for p in model.parameters())]


def check(measure, config, model, step):
    """`step(model)` gives the output; the reference has the weights of the broken program in float64."""
    exact = copy.deepcopy(build(config)).double()
    output = exact(inputs(config).double())
    output.square().mean().backward()
    wanted = [output.detach(), *(p.grad for p in exact.parameters())]
    result = measure(lambda: output_and_gradients(model, step(model)))
    pairs = [(a, r) for a, r in zip(result, wanted, strict=True) if r.abs().max() > 1e-6]
    assert len(pairs) >= len(wanted) - 1  # a bias in front of a normalisation has no gradient
    measure.compare([a for a, _ in pairs], [r for _, r in pairs], TOLERANCE)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=[*HALF, "float64-input"])
def config(request):
    """Which types met."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, measure):
    try:
        run(config, build(config), inputs(config))
    finally:
        measure.recovers(lambda: nn.LayerNorm(4)(torch.ones(2, 4)).sum().item() == 0)


@pytest.mark.workaround("float32-model")
def test_float32_model(config, measure):
    only_for(config, *HALF)
    check(measure, config, build(config).float(), lambda model: run("no autocast", model, inputs(config).float()))


@pytest.mark.workaround("cast-the-input")
def test_cast_the_input(config, measure):
    only_for(config, "half-weights", "float64-input")
    check(measure, config, build(config), lambda model: model(inputs(config).to(model.first.weight.dtype)))


@pytest.mark.workaround("cast-the-island")
def test_cast_the_island(config, measure):
    only_for(config, "float32-island")
    check(measure, config, build(config), lambda model: model(inputs(config), cast_times=True))


@pytest.mark.workaround("float32-weights-under-autocast")
def test_float32_weights_under_autocast(config, measure):
    only_for(config, *HALF)

    def step(model):
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs(config).float())

    check(measure, config, build(config).float(), step)


@pytest.mark.workaround("norm-in-float32")
def test_norm_in_float32(config, measure):
    only_for(config, "half-weights", "float32-island")

    class LayerNorm(nn.LayerNorm):
        def forward(self, values):
            weight, bias = self.weight.float(), self.bias.float()
            result = functional.layer_norm(values.float(), self.normalized_shape, weight, bias, self.eps)
            return result.to(self.weight.dtype)

    class GroupNorm(nn.GroupNorm):
        def forward(self, values):
            weight, bias = self.weight.float(), self.bias.float()
            result = functional.group_norm(values.float(), self.num_groups, weight, bias, self.eps)
            return result.to(self.weight.dtype)

    model = build(config)
    model.first.__class__, model.second.__class__ = LayerNorm, GroupNorm
    check(measure, config, model, lambda model: model(inputs(config)))


@pytest.mark.workaround("autocast-in-the-type-of-the-weights")
def test_autocast_in_the_type_of_the_weights(config, measure):
    only_for(config, "two-half-types")

    def step(model):
        with torch.autocast("cpu", model.first.weight.dtype):
            return model(inputs(config))

    check(measure, config, build(config), step)


@pytest.mark.dead_end("wrap-in-autocast")
def test_wrap_in_autocast(config):
    only_for(config, "half-weights", "float32-island", "float64-input")
    with torch.autocast("cpu", torch.bfloat16):
        build(config)(inputs(config))


@pytest.mark.dead_end("norms-only-in-float32")
def test_norms_only_in_float32(config):
    only_for(config, "half-weights", "float32-island")
    model = build(config)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.float()
    model(inputs(config))


@pytest.mark.dead_end("the-other-half-type")
def test_the_other_half_type(config):
    only_for(config, "half-weights", "float32-island", "float64-input")
    build(config).half()(inputs(config).half() if config == "float32-island" else inputs(config))


@pytest.mark.dead_end("default-type")
def test_default_type(config):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        run(config, build(config), inputs(config))
    finally:
        torch.set_default_dtype(before)
