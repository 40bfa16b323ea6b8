# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.4", "pytest"]
# ///
"""Two operands of a Linear in different floating types: the ways there, the ways out, the ways round in circles.

Every configuration is one way to get there. A fix is run in the configurations whose cause it addresses and skips the
others, saying so; what happens when it is applied to the wrong cause is a dead end of its own.
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

WIDTH, RANK, ROWS = 64, 8, 16
# 16-bit types carry 8 to 11 significant bits, and two layers stand between input and gradient.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Case:
    """A cause, the types that meet, and the model that makes them meet."""

    cause: str
    build: Callable[[Case], nn.Module]
    inputs: torch.dtype
    weights: torch.dtype
    bias: bool = False


class Head(nn.Module):
    """Two layers that get whatever type the caller's tensor has."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=case.bias, dtype=case.weights)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=case.bias, dtype=case.weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter beside it, in a type of its own."""

    def __init__(self, case: Case, adapter: torch.dtype) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH, bias=case.bias, dtype=case.weights).requires_grad_(False)
        self.lora_a = nn.Linear(WIDTH, RANK, bias=False, dtype=adapter)
        self.lora_b = nn.Linear(RANK, WIDTH, bias=False, dtype=adapter)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_b(self.lora_a(x))


class Norm(nn.Module):
    """RMSNorm as Llama has it: back to the input type, then times the weight, whose type therefore decides."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype is torch.float64 else x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Multiply(torch.autograd.Function):
    """x @ weight.T, with a backward that knows nothing of autocast."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x


class CastingMultiply(Multiply):
    """The same, with the gradient brought to the type of what was saved."""

    @staticmethod
    def backward(ctx, grad):
        return Multiply.backward(ctx, grad.to(ctx.saved_tensors[1].dtype))


class DecoratedMultiply(Multiply):
    """The same, with the backward in the autocast state of the forward."""

    @staticmethod
    def forward(ctx, x, weight):
        return torch.amp.custom_fwd(Multiply.forward, device_type=x.device.type)(ctx, x, weight)

    @staticmethod
    def backward(ctx, grad):
        return torch.amp.custom_bwd(Multiply.backward, device_type=grad.device.type)(ctx, grad)


class Custom(nn.Module):
    """A hand-written kernel inside the trainer's autocast."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=case.weights) / WIDTH**0.5)
        self.function: type[Multiply] = Multiply

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.function.apply(x, self.weight)


class Accumulate(nn.Module):
    """A fused layer that adds its adapter in place; the adapter's second half was kept in another type."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=case.weights) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(WIDTH, RANK, dtype=case.weights) / WIDTH**0.5)
        self.up = nn.Parameter(torch.randn(RANK, WIDTH) / RANK**0.5)
        self.casts = False

    def forward(self, x: Tensor) -> Tensor:
        output = x @ self.weight.t()
        up = self.up.to(output.dtype) if self.casts else self.up
        return output.addmm_(x @ self.down, up)


class Region(nn.Module):
    """An encoder under autocast, and a head that was left outside."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.encoder = Head(case)
        self.head = nn.Linear(WIDTH, WIDTH, bias=case.bias, dtype=case.weights)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            hidden = self.encoder(x)
        return self.head(hidden)


def adapters_in_float32(case: Case) -> nn.Module:
    return Adapted(case, adapter=torch.float32)


def norm_in_float32(case: Case) -> nn.Module:
    return nn.Sequential(Norm(torch.float32), Adapted(case, adapter=case.weights))


FLOAT, HALF, BFLOAT, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
CASES = {
    "input-float32-bfloat16": Case("default-dtype-input", Head, FLOAT, BFLOAT),
    "input-float32-float16-bias": Case("default-dtype-input", Head, FLOAT, HALF, bias=True),
    "input-float16-bfloat16": Case("default-dtype-input", Head, HALF, BFLOAT),
    "input-float64-float32-bias": Case("float64-input", Head, DOUBLE, FLOAT, bias=True),
    "adapter-bfloat16-float32": Case("adapters-in-float32", adapters_in_float32, BFLOAT, BFLOAT),
    "norm-float32-bfloat16": Case("norm-in-float32", norm_in_float32, BFLOAT, BFLOAT),
    "norm-float32-bfloat16-bias": Case("norm-in-float32", norm_in_float32, BFLOAT, BFLOAT, bias=True),
    "backward-bfloat16-float32": Case("function-without-autocast", Custom, FLOAT, FLOAT),
    "inplace-float16-float32": Case("in-place-product", Accumulate, HALF, HALF),
    "region-bfloat16-float32": Case("autocast-region-ends", Region, FLOAT, FLOAT),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def config(request) -> Case:
    return request.param


def only(case: Case, *causes: str) -> None:
    """Skip the configurations whose cause the arm does not claim to address."""
    if case.cause not in causes:
        pytest.skip(f"claims nothing about {case.cause}")


def make(case: Case, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = case.build(case).to(device)
    return model, torch.randn(ROWS, WIDTH).to(device, case.inputs)


def train(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One forward and backward: the output and every gradient, by name."""
    model.zero_grad(set_to_none=True)
    output = model(x)
    output.square().mean().backward()
    return {"output": output.detach()} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def exact(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The same in float64 throughout, where nothing can disagree and autocast keeps out."""
    return train(copy.deepcopy(model).double(), x.double())


@pytest.mark.reproduces
def test_reproduces(config, device):
    model, x = make(config, device)
    train(model, x)


@pytest.mark.workaround("create-inputs-in-model-dtype")
def test_create_inputs_in_model_dtype(config, device, measure):
    only(config, "default-dtype-input", "float64-input")
    model, _ = make(config, device)
    dtype = next(model.parameters()).dtype
    x = torch.randn(ROWS, WIDTH, device=device, dtype=dtype)
    expected = exact(model, x)
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("cast-input-to-weight-dtype")
def test_cast_input_to_weight_dtype(config, device, measure):
    only(
        config, "default-dtype-input", "float64-input", "adapters-in-float32", "norm-in-float32", "autocast-region-ends"
    )
    model, x = make(config, device)
    expected = exact(model, x)

    def match_weight(layer, args):
        return (args[0].to(layer.weight.dtype), *args[1:])

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(match_weight)
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("autocast-whole-forward")
def test_autocast_whole_forward(config, device, measure):
    only(config, "default-dtype-input", "adapters-in-float32", "norm-in-float32", "autocast-region-ends")
    model, x = make(config, device)
    expected = exact(model, x)

    def run():
        with torch.autocast(device, dtype=torch.bfloat16):
            return train(model, x)

    measure.compare(measure(run), expected, TOLERANCE)


@pytest.mark.workaround("one-dtype-everywhere")
def test_one_dtype_everywhere(config, device, measure):
    model, x = make(config, device)
    expected = exact(model, x)
    dtype = torch.bfloat16
    model, x = model.to(dtype), x.to(dtype)
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("norm-weight-in-model-dtype")
def test_norm_weight_in_model_dtype(config, device, measure):
    only(config, "norm-in-float32")
    model, x = make(config, device)
    expected = exact(model, x)
    for module in model.modules():
        if isinstance(module, Norm):
            module.to(torch.bfloat16)
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("decorate-autograd-function")
def test_decorate_autograd_function(config, device, measure):
    only(config, "function-without-autocast")
    model, x = make(config, device)
    expected = exact(model, x)
    model.function = DecoratedMultiply
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.workaround("cast-inside-custom-kernel")
def test_cast_inside_custom_kernel(config, device, measure):
    only(config, "function-without-autocast", "in-place-product")
    model, x = make(config, device)
    expected = exact(model, x)
    if isinstance(model, Custom):
        model.function = CastingMultiply
    else:
        model.casts = True
    measure.compare(measure(lambda: train(model, x)), expected, TOLERANCE)


@pytest.mark.dead_end("other-checkpoint-dtype")
def test_other_checkpoint_dtype(config, device):
    only(config, "default-dtype-input", "float64-input")
    model, x = make(config, device)
    other = next(d for d in (HALF, BFLOAT, FLOAT) if d not in (config.inputs, config.weights))
    train(model.to(other), x)


@pytest.mark.dead_end("adapters-to-float32")
def test_adapters_to_float32(config, device):
    only(config, "adapters-in-float32", "norm-in-float32")
    model, x = make(config, device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    train(model, x)


@pytest.mark.dead_end("autocast-float64")
def test_autocast_float64(config, device):
    only(config, "float64-input")
    model, x = make(config, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        train(model, x)


@pytest.mark.dead_end("autocast-around-in-place")
def test_autocast_around_in_place(config, device):
    only(config, "in-place-product")
    model, x = make(config, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        train(model, x)
