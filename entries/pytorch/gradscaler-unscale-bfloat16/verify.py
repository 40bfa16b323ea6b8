# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""A float16 gradient scaler meets bfloat16 gradients.

The CUDA kernel that checks and unscales gradients has no bfloat16 version; the CPU kernel has one, so a run without
a GPU proves nothing here and is skipped.
"""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3", device="cuda")


class Adapted(nn.Module):
    """A frozen projection with a trainable low-rank correction, the shape of a LoRA layer."""

    def __init__(self, width=64, rank=8):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


def build(device, cause=None):
    """The same weights every time, then what the cause does to their types; no cause keeps float32."""
    torch.manual_seed(0)
    model = Adapted().to(device)
    if cause == "bf16-model":
        model.to(torch.bfloat16)
    if cause == "trainer-cast":
        cast_trainable(model, torch.bfloat16)
    return model


def cast_trainable(model, dtype):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def batch(device):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(2, 32, 64, generator=generator)
    return inputs.to(device), targets.to(device)


def train_step(model, device, scaler, autocast=torch.float16, clip="unscaled"):
    """One step of plain SGD; returns the gradients it used, in one vector."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    inputs, targets = batch(device)
    with torch.autocast(device, dtype=autocast):
        outputs = model(inputs)
    loss = nn.functional.mse_loss(outputs.float(), targets)
    scaler.scale(loss).backward()
    if clip == "unscaled":
        scaler.unscale_(optimizer)
    if clip != "no":
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1e9)
    scaler.step(optimizer)
    scaler.update()
    return gradients(model)


def gradients(model):
    return torch.cat([p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None])


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters() if p.requires_grad])


def reference():
    """Gradients and updated weights of the same step in float64."""
    model = build("cpu").double()
    inputs, targets = batch("cpu")
    nn.functional.mse_loss(model(inputs.double()), targets.double()).backward()
    step = gradients(model)
    return step, weights(model) - 0.1 * step


def check(measure, step, model):
    wanted, updated = reference()
    measure.compare(step, wanted, tolerance=0.03)
    measure.compare(weights(model), updated, tolerance=0.01)


@pytest.fixture(params=["trainer-cast-clip", "trainer-cast-step", "bf16-model-clip", "bf16-model-step"])
def config(request):
    """What made the trainable weights bfloat16, and which call of the scaler meets their gradients first."""
    cause, call = request.param.rsplit("-", 1)
    return {"cause": cause, "clip": "unscaled" if call == "clip" else "no"}


@pytest.mark.reproduces
def test_reproduces(config, device):
    train_step(build(device, config["cause"]), device, torch.amp.GradScaler(device), clip=config["clip"])


@pytest.mark.workaround("bf16-without-scaler")
def test_bf16_without_scaler(config, device, measure):
    def step():
        model = build(device, config["cause"])
        scaler = torch.amp.GradScaler(device, enabled=False)
        return train_step(model, device, scaler, autocast=torch.bfloat16, clip=config["clip"]), model

    check(measure, *measure(step))


@pytest.mark.workaround("fp32-trainable-parameters")
def test_fp32_trainable_parameters(config, device, measure):
    def step():
        model = build(device)
        return train_step(model, device, torch.amp.GradScaler(device), clip=config["clip"]), model

    check(measure, *measure(step))


@pytest.mark.workaround("upcast-after-the-trainer")
def test_upcast_after_the_trainer(config, device, measure):
    def step():
        model = build(device, config["cause"])
        cast_trainable(model, torch.float32)
        return train_step(model, device, torch.amp.GradScaler(device), clip=config["clip"]), model

    check(measure, *measure(step))


@pytest.mark.workaround("scaler-only-for-float16")
def test_scaler_only_for_float16(config, device, measure):
    def step():
        model = build(device, config["cause"])
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        scaler = torch.amp.GradScaler(device, enabled=torch.bfloat16 not in trained)
        return train_step(model, device, scaler, clip=config["clip"]), model

    check(measure, *measure(step))


@pytest.mark.dead_end("clip-without-unscale")
def test_clip_without_unscale(config, device):
    train_step(build(device, config["cause"]), device, torch.amp.GradScaler(device), clip="scaled")


@pytest.mark.dead_end("other-initial-scale")
def test_other_initial_scale(config, device):
    scaler = torch.amp.GradScaler(device, init_scale=2.0**24)
    train_step(build(device, config["cause"]), device, scaler, clip=config["clip"])


@pytest.mark.dead_end("autocast-dtype-only")
def test_autocast_dtype_only(config, device):
    scaler = torch.amp.GradScaler(device)
    train_step(build(device, config["cause"]), device, scaler, autocast=torch.bfloat16, clip=config["clip"])


@pytest.mark.dead_end("turn-clipping-off")
def test_turn_clipping_off(config, device):
    train_step(build(device, config["cause"]), device, torch.amp.GradScaler(device), clip="no")
