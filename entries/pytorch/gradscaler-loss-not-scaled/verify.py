# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3", "accelerate>=0.30"]
# ///
"""A gradient scaler is asked to unscale, step or update, and has never scaled a loss.

`plain-backward` and `clip-first` call `backward()` on the loss itself, `first-batch-skipped` leaves a batch out and
updates all the same, `second-scaler` scales with one object and steps with another, and `accelerate` gives accelerate
the optimizer and keeps its own `backward()`. A fix is right if the weights move as they do in float64 without a scaler.
"""

import contextlib

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3")

STEPS = 3
TOLERANCE = 0.02


def build(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(device, dtype)


def batches(config, device, dtype=torch.float32):
    values = torch.randn(STEPS, 16, 8, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    if config == "first-batch-skipped":
        values[0, 0, 0] = float("nan")
    return values


def loss_of(model, values):
    return (model(values) - values.sum(dim=-1, keepdim=True)).square().mean()


def usable(config, loss):
    return config != "first-batch-skipped" or bool(loss.isfinite())


class Loop:
    """The broken program; fixes and wrong fixes replace a part of it."""

    def __init__(self, config, device, **options):
        self.config, self.device = config, device
        self.model = build(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        if config == "accelerate":
            from accelerate import Accelerator

            self.accelerator = Accelerator(mixed_precision="fp16") if device == "cuda" else Accelerator(cpu=True)
            if device == "cpu":
                self.accelerator.scaler = torch.amp.GradScaler(device, **options)  # it makes one for a GPU only
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
            self.scaler = self.accelerator.scaler
        else:
            self.scaler = torch.amp.GradScaler(device, **options)
        self.scales_with = torch.amp.GradScaler(device, **options) if config == "second-scaler" else None

    def backward(self, loss):
        if self.config in ("plain-backward", "clip-first", "accelerate"):
            loss.backward()
        else:
            (self.scales_with or self.scaler).scale(loss).backward()

    def step(self):
        if self.config == "clip-first":
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 100.0)
        if self.config == "accelerate":
            self.optimizer.step()  # updates the scaler as well
        else:
            self.scaler.step(self.optimizer)

    def update(self):
        if self.config != "accelerate":
            self.scaler.update()

    def iteration(self, values):
        self.optimizer.zero_grad()
        loss = loss_of(self.model, values)
        if usable(self.config, loss):
            self.backward(loss)
            self.step()
        self.update()

    def train(self):
        before = [p.detach().clone() for p in self.model.parameters()]
        for values in batches(self.config, self.device):
            self.iteration(values)
        return [p.detach() - b for p, b in zip(self.model.parameters(), before, strict=True)]


def reference(config):
    model = build("cpu", torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for values in batches(config, "cpu", torch.float64):
        loss = loss_of(model, values)
        if usable(config, loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]


def check(measure, config, train):
    measure.compare(measure(train), reference(config), TOLERANCE)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(
    params=[
        "plain-backward",
        "clip-first",
        "first-batch-skipped",
        "second-scaler",
        pytest.param("accelerate", marks=pytest.mark.requires(torch=">=2.3", accelerate=">=0.30")),
    ]
)
def config(request):
    """Why the loss was not scaled."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        Loop(config, device).train()
    finally:
        measure.recovers(lambda: torch.amp.GradScaler(device).scale(torch.ones((), device=device)).item() > 1)


@pytest.mark.workaround("scale-the-loss")
def test_scale_the_loss(config, device, measure):
    only_for(config, "plain-backward", "clip-first")

    class Scaled(Loop):
        def backward(self, loss):
            self.scaler.scale(loss).backward()

    check(measure, config, lambda: Scaled(config, device).train())


@pytest.mark.workaround("update-only-after-a-step")
def test_update_only_after_a_step(config, device, measure):
    only_for(config, "first-batch-skipped")

    class Guarded(Loop):
        def iteration(self, values):
            self.optimizer.zero_grad()
            loss = loss_of(self.model, values)
            if not usable(self.config, loss):
                return
            self.backward(loss)
            self.step()
            self.update()

    check(measure, config, lambda: Guarded(config, device).train())


@pytest.mark.workaround("one-scaler")
def test_one_scaler(config, device, measure):
    only_for(config, "second-scaler")

    class Single(Loop):
        def __init__(self, *args):
            super().__init__(*args)
            self.scales_with = self.scaler

    check(measure, config, lambda: Single(config, device).train())


@pytest.mark.workaround("accelerator-backward")
def test_accelerator_backward(config, device, measure):
    only_for(config, "accelerate")

    class Accelerated(Loop):
        def backward(self, loss):
            self.accelerator.backward(loss)

    check(measure, config, lambda: Accelerated(config, device).train())


@pytest.mark.workaround("scaler-off")
def test_scaler_off(config, device, measure):
    only_for(config, "plain-backward", "clip-first", "first-batch-skipped", "second-scaler")
    check(measure, config, lambda: Loop(config, device, enabled=False).train())


@pytest.mark.dead_end("scale-something-else")
def test_scale_something_else(config, device, measure):
    only_for(config, "plain-backward", "clip-first", "first-batch-skipped")
    loop = Loop(config, device)
    loop.scaler.scale(torch.ones(1, device=device))
    measure.compare(loop.train(), reference(config), TOLERANCE)


@pytest.mark.dead_end("initial-scale")
def test_initial_scale(config, device):
    Loop(config, device, init_scale=1024.0).train()


@pytest.mark.dead_end("add-autocast")
def test_add_autocast(config, device):
    with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
        Loop(config, device).train()


@pytest.mark.dead_end("catch-it")
def test_catch_it(config, device, measure):
    only_for(config, "plain-backward", "clip-first", "second-scaler", "accelerate")

    class Silent(Loop):
        def iteration(self, values):
            with contextlib.suppress(AssertionError):
                super().iteration(values)

    measure.compare(Silent(config, device).train(), reference(config), TOLERANCE)


@pytest.mark.dead_end("drop-the-update")
def test_drop_the_update(config, device):
    only_for(config, "plain-backward", "clip-first", "first-batch-skipped", "second-scaler")

    class NoUpdate(Loop):
        def update(self):
            pass

    NoUpdate(config, device).train()
