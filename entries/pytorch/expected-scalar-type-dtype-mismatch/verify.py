# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.4", "pytest"]
# ///
"""A batched product (bmm, einsum, baddbmm) whose operands differ in type: in attention and in a bank of experts.

Every configuration is one way to get there. A fix is run in the configurations whose cause it addresses and skips the
others, saying so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.requires(torch=">=2.4")

# On the CPU only products of fewer than 400 multiplications per matrix reach the kernel with this wording; larger ones
# are taken apart into plain matrix products, which word it as a Linear does. CUDA has one path for all sizes.
WIDTH, HEADS, TOKENS, EXPERTS, RANK = 8, 2, 4, 4, 4
# 16-bit types carry 8 to 11 significant bits, and an attention is three products and a softmax deep.
TOLERANCE = 0.05

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A cause, the model that shows it, the type the model is meant to have, and the one that slips in."""

    cause: str
    build: Callable[[Case], nn.Module]
    dtype: torch.dtype
    other: torch.dtype = FLOAT
    inputs: torch.dtype | None = None


def by_matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def by_einsum(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bhik,bhkj->bhij", a, b)


def by_baddbmm(a: Tensor, b: Tensor) -> Tensor:
    bias = torch.zeros(1, 1, 1, device=a.device, dtype=a.dtype)
    return torch.baddbmm(bias, a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])


def rotate(x: Tensor) -> Tensor:
    """Rotary positions; the angles are float32 as they always are, so the result is float32 or wider."""
    half = x.shape[-1] // 2
    rates = 1e-4 ** (torch.arange(half, device=x.device, dtype=FLOAT) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=FLOAT)[:, None] * rates
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()), dim=-1)


class Attention(nn.Module):
    """Self-attention written out, with a place for each of the causes."""

    def __init__(self, case: Case, multiply: Callable[[Tensor, Tensor], Tensor] = by_matmul) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False, dtype=case.dtype) for _ in range(3))
        self.multiply = multiply
        self.float32_softmax = case.cause == "float32-softmax"
        self.rotary = case.cause == "float32-rotary"
        self.cache_dtype: torch.dtype | None = case.other if case.cause == "cache-dtype" else None
        self.restores_dtype = False
        if case.cause == "adapter-in-float32":
            self.down = nn.Linear(WIDTH, RANK, bias=False, dtype=case.other)
            self.up = nn.Linear(RANK, WIDTH, bias=False, dtype=case.other)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if hasattr(self, "down"):
            adapted = self.up(self.down(x.to(self.down.weight.dtype)))
            q = q + adapted.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        if self.rotary:
            q, k = rotate(q), rotate(k)
            if self.restores_dtype:
                q, k = q.to(dtype), k.to(dtype)
        if self.cache_dtype is not None:
            # Writing into a cache converts without a word; only reading it back shows the type.
            k, v = (torch.empty_like(t, dtype=self.cache_dtype).copy_(t) for t in (k, v))
        scores = self.multiply(q, k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5
        wide = FLOAT if self.float32_softmax and scores.dtype is not torch.float64 else None
        weights = torch.softmax(scores, dim=-1, dtype=wide)
        if self.float32_softmax and self.restores_dtype:
            weights = weights.to(dtype)
        return self.multiply(weights, v).transpose(1, 2).flatten(-2)


class Experts(nn.Module):
    """A bank of weight matrices, each applied to its own tokens."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH, dtype=case.dtype) / WIDTH**0.5)
        self.multiply = torch.bmm

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)


class Stem(nn.Module):
    """A small convolution without bias, of one sample: a batch takes another path, with other words."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(TOKENS, TOKENS, 3, dtype=case.dtype) / TOKENS)
        self.multiply = F.conv1d

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x[:1], self.weight)


def with_einsum(case: Case) -> nn.Module:
    return Attention(case, by_einsum)


def with_baddbmm(case: Case) -> nn.Module:
    return Attention(case, by_baddbmm)


CASES = {
    "softmax-float32-bfloat16": Case("float32-softmax", Attention, BFLOAT),
    "softmax-float32-float16-einsum": Case("float32-softmax", with_einsum, HALF),
    "rotary-float32-bfloat16-einsum": Case("float32-rotary", with_einsum, BFLOAT),
    "rotary-float32-float16": Case("float32-rotary", Attention, HALF),
    "cache-float16-bfloat16": Case("cache-dtype", Attention, HALF, BFLOAT),
    "cache-bfloat16-float16-baddbmm": Case("cache-dtype", with_baddbmm, BFLOAT, HALF),
    "adapter-float32-float16-baddbmm": Case("adapter-in-float32", with_baddbmm, HALF),
    "adapter-float32-bfloat16": Case("adapter-in-float32", Attention, BFLOAT),
    "experts-float32-float16": Case("default-dtype-input", Experts, HALF, inputs=FLOAT),
    "experts-float16-bfloat16": Case("default-dtype-input", Experts, BFLOAT, inputs=HALF),
    "convolution-float32-bfloat16": Case("norm-or-convolution-weight", Stem, BFLOAT, inputs=FLOAT),
}
# CUDA has words of its own for a convolution.
ONLY_ON_CPU = {"convolution-float32-bfloat16": [pytest.mark.requires(device="cpu")]}


@pytest.fixture(params=[pytest.param(case, id=name, marks=ONLY_ON_CPU.get(name, [])) for name, case in CASES.items()])
def config(request) -> Case:
    return request.param


def only(case: Case, *causes: str) -> None:
    """Skip the configurations whose cause the arm does not claim to address."""
    if case.cause not in causes:
        pytest.skip(f"claims nothing about {case.cause}")


def make(case: Case, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = case.build(case).to(device)
    return model, torch.randn(EXPERTS, TOKENS, WIDTH).to(device, case.inputs or case.dtype)


def train(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One forward and backward: the output and every gradient, by name."""
    model.zero_grad(set_to_none=True)
    output = model(x)
    output.square().sum().backward()
    return {"output": output.detach()} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def exact(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The same in float64 throughout."""
    twin = copy.deepcopy(model).double()
    if hasattr(twin, "cache_dtype"):
        twin.cache_dtype = None
    return train(twin, x.double())


@pytest.mark.reproduces
def test_reproduces(config, device):
    model, x = make(config, device)
    train(model, x)


@pytest.mark.workaround("cast-operands-to-model-dtype")
def test_cast_operands_to_model_dtype(config, device, measure):
    model, x = make(config, device)
    expected = exact(model, x)
    dtype, product = config.dtype, model.multiply

    def multiply(a, b):
        return product(a.to(dtype), b.to(dtype))

    model.multiply = multiply
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("restore-dtype-after-float32-step")
def test_restore_dtype_after_float32_step(config, device, measure):
    only(config, "float32-softmax", "float32-rotary")
    model, x = make(config, device)
    expected = exact(model, x)
    model.restores_dtype = True
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("allocate-cache-in-model-dtype")
def test_allocate_cache_in_model_dtype(config, device, measure):
    only(config, "cache-dtype")
    model, x = make(config, device)
    expected = exact(model, x)
    model.cache_dtype = model.k.weight.dtype
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("one-dtype-for-weights-and-inputs")
def test_one_dtype_for_weights_and_inputs(config, device, measure):
    only(config, "adapter-in-float32", "default-dtype-input", "norm-or-convolution-weight")
    model, x = make(config, device)
    expected = exact(model, x)
    model, x = model.to(config.dtype), x.to(config.dtype)
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("autocast-forward")
def test_autocast_forward(config, device, measure):
    model, x = make(config, device)
    expected = exact(model, x)

    def run():
        with torch.autocast(device, dtype=torch.bfloat16):
            return train(model, x)

    measure.compare(measure(run), expected, TOLERANCE)


@pytest.mark.dead_end("convert-model-and-inputs")
def test_convert_model_and_inputs(config, device):
    only(config, "float32-softmax", "float32-rotary", "cache-dtype")
    model, x = make(config, device)
    train(model.to(config.dtype), x.to(config.dtype))
