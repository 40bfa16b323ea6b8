# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""A gradient scaler refuses float16 gradients: the trainable weights themselves are float16."""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3")


class Adapted(nn.Module):
    """A frozen projection with a trainable low-rank correction, the shape of a LoRA layer."""

    def __init__(self, width=64, rank=8):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


def build(device, kind):
    """The same weights every time: a LoRA layer, or a small network that is trained whole."""
    torch.manual_seed(0)
    if kind == "adapter":
        return Adapted().to(device)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).to(device)


def cast_trainable(model, dtype):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def batch(device):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(2, 32, 64, generator=generator)
    return inputs.to(device), targets.to(device)


def train_step(model, device, scaler, autocast=torch.float16, clip="unscaled", optimizer=None):
    """One step of plain SGD; returns the gradients it used, in one vector."""
    if optimizer is None:
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


def reference(kind):
    """Gradients and updated weights of the same step in float64."""
    model = build("cpu", kind).double()
    inputs, targets = batch("cpu")
    nn.functional.mse_loss(model(inputs.double()), targets.double()).backward()
    step = gradients(model)
    return step, weights(model) - 0.1 * step


def check(measure, kind, step, model):
    wanted, updated = reference(kind)
    measure.compare(step, wanted, tolerance=0.03)
    measure.compare(weights(model), updated, tolerance=0.01)


@pytest.fixture(params=["whole-clip", "whole-step", "adapter-clip", "adapter-step"])
def config(request):
    """What is trained in float16, and which call of the scaler meets its gradients first."""
    kind, call = request.param.split("-")
    return {"kind": kind, "clip": "unscaled" if call == "clip" else "no"}


@pytest.mark.reproduces
def test_reproduces(config, device):
    model = build(device, config["kind"]).half()
    train_step(model, device, torch.amp.GradScaler(device), clip=config["clip"])


@pytest.mark.workaround("fp32-weights")
def test_fp32_weights(config, device, measure):
    def step():
        model = build(device, config["kind"]).float()
        return train_step(model, device, torch.amp.GradScaler(device), clip=config["clip"]), model

    check(measure, config["kind"], *measure(step))


@pytest.mark.workaround("fp32-trainable-parameters")
def test_fp32_trainable_parameters(config, device, measure):
    def step():
        model = build(device, config["kind"]).half()
        cast_trainable(model, torch.float32)
        return train_step(model, device, torch.amp.GradScaler(device), clip=config["clip"]), model

    check(measure, config["kind"], *measure(step))


@pytest.mark.workaround("bf16-without-scaler")
def test_bf16_without_scaler(config, device, measure):
    def step():
        model = build(device, config["kind"]).bfloat16()
        scaler = torch.amp.GradScaler(device, enabled=False)
        return train_step(model, device, scaler, autocast=torch.bfloat16, clip=config["clip"]), model

    check(measure, config["kind"], *measure(step))


@pytest.mark.dead_end("clip-without-unscale")
def test_clip_without_unscale(config, device):
    model = build(device, config["kind"]).half()
    train_step(model, device, torch.amp.GradScaler(device), clip="scaled")


@pytest.mark.dead_end("float32-loss")
def test_float32_loss(config, device):
    """`train_step` already computes the loss in float32; here the outputs are float32 too."""
    model = nn.Sequential(build(device, config["kind"]).half(), ToFloat32())
    train_step(model, device, torch.amp.GradScaler(device), clip=config["clip"])


class ToFloat32(nn.Module):
    def forward(self, outputs):
        return outputs.float()


@pytest.mark.dead_end("other-initial-scale")
def test_other_initial_scale(config, device):
    model = build(device, config["kind"]).half()
    train_step(model, device, torch.amp.GradScaler(device, init_scale=1.0), clip=config["clip"])


@pytest.mark.dead_end("autocast-dtype-only")
def test_autocast_dtype_only(config, device):
    model = build(device, config["kind"]).half()
    train_step(model, device, torch.amp.GradScaler(device), autocast=torch.bfloat16, clip=config["clip"])


@pytest.mark.dead_end("fused-optimizer")
def test_fused_optimizer(config, device, measure):
    """Without `unscale_` a fused optimizer gets past the check, and its small updates are then lost to rounding."""
    model = build(device, config["kind"]).half()
    before = weights(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    train_step(model, device, torch.amp.GradScaler(device), clip=config["clip"], optimizer=optimizer)

    wanted = build("cpu", config["kind"]).half().double()
    start = weights(wanted)
    inputs, targets = batch("cpu")
    nn.functional.mse_loss(wanted(inputs.double()), targets.double()).backward()
    torch.optim.AdamW([p for p in wanted.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0).step()
    measure.compare(weights(model) - before, weights(wanted) - start, tolerance=0.1)
