# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""A gradient scaler is to divide by the scale, or to step, twice between two updates.

`clip-every-micro-step` accumulates over two micro-batches and clips in each, `update-left-out` skips a batch with
infinite gradients and the update with it, `clip-after-step` has the order wrong, and `stepped-twice` steps one
optimizer once for each of two losses.
"""

import contextlib

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3")

MAX_NORM = 0.1
"""Small, so that clipping shows in the weights."""


def build(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)).to(device, dtype)


def batches(config, device, dtype=torch.float32):
    numbers = torch.Generator().manual_seed(1)
    for number in range(4):
        inputs, targets = (torch.randn(16, size, generator=numbers) for size in (32, 8))
        if config == "update-left-out" and number == 1:
            inputs *= 1e6  # too much for float16
        yield inputs.to(device, dtype), targets.to(device, dtype)


def clip(model):
    return torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)


class Training:
    """Model, optimizer and scaler, with the calls of a loop as methods. `catch` swallows the scaler's complaints."""

    def __init__(self, config, device, catch=False):
        self.data, self.device = list(batches(config, device)), device
        self.model = build(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        self.scaler = torch.amp.GradScaler(device)
        self.guard = (lambda: contextlib.suppress(RuntimeError)) if catch else contextlib.nullcontext

    def backward(self, inputs, targets, share=1.0):
        with torch.autocast(self.device, dtype=torch.float16):
            outputs = self.model(inputs)
        loss = nn.functional.mse_loss(outputs.float(), targets)
        self.scaler.scale(loss * share).backward()

    def unscale_and_clip(self):
        with self.guard():
            self.scaler.unscale_(self.optimizer)
        return clip(self.model)

    def step(self):
        self.scaler.step(self.optimizer)

    def update(self):
        self.scaler.update()
        self.optimizer.zero_grad()

    def weights(self):
        return [p.detach() for p in self.model.parameters()]


def nothing(_training):
    pass


def clip_every_micro_step(training, between=nothing):
    for number, batch in enumerate(training.data):
        training.backward(*batch, share=0.5)
        training.unscale_and_clip()
        if number % 2 == 1:
            training.step()
            training.update()
        else:
            between(training)


def update_left_out(training, between=nothing):
    for batch in training.data:
        training.backward(*batch)
        if not torch.isfinite(training.unscale_and_clip()):
            training.optimizer.zero_grad()
            between(training)
            continue
        training.step()
        training.update()


def clip_after_step(training, between=nothing):
    for batch in training.data:
        training.backward(*batch)
        training.step()
        between(training)
        training.unscale_and_clip()
        training.update()


def stepped_twice(training, between=nothing):
    for first, second in zip(training.data[::2], training.data[1::2], strict=True):
        training.backward(*first)
        training.step()
        between(training)
        training.backward(*second)
        training.step()
        training.update()


BROKEN = {
    "clip-every-micro-step": clip_every_micro_step,
    "update-left-out": update_left_out,
    "clip-after-step": clip_after_step,
    "stepped-twice": stepped_twice,
}


def reference(config):
    """The weights that are wanted, in float64 and without a scaler."""
    model = build("cpu", torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    data = [batch for batch in batches(config, "cpu", torch.float64) if batch[0].abs().max() < 1e3]
    pairs = config == "clip-every-micro-step"
    groups = zip(data[::2], data[1::2], strict=True) if pairs else ([batch] for batch in data)
    for group in groups:
        optimizer.zero_grad()
        for inputs, targets in group:
            (nn.functional.mse_loss(model(inputs), targets) / len(group)).backward()
        if config != "stepped-twice":
            clip(model)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def check(measure, config, training):
    measure.compare(training.weights(), reference(config), tolerance=0.01)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=list(BROKEN))
def config(request):
    """Which call comes twice, or too late."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    BROKEN[config](Training(config, device))


@pytest.mark.workaround("clip-in-the-last-micro-step")
def test_clip_in_the_last_micro_step(config, device, measure):
    only_for(config, "clip-every-micro-step")
    training = Training(config, device)
    for number, batch in enumerate(training.data):
        training.backward(*batch, share=0.5)
        if number % 2 == 1:
            training.unscale_and_clip()
            training.step()
            training.update()
    check(measure, config, training)


@pytest.mark.workaround("no-accumulation")
def test_no_accumulation(config, device, measure):
    only_for(config, "clip-every-micro-step")
    training = Training(config, device)
    for first, second in zip(training.data[::2], training.data[1::2], strict=True):
        training.backward(*(torch.cat(parts) for parts in zip(first, second, strict=True)))
        training.unscale_and_clip()
        training.step()
        training.update()
    check(measure, config, training)


@pytest.mark.workaround("let-the-scaler-skip")
def test_let_the_scaler_skip(config, device, measure):
    only_for(config, "update-left-out")
    training = Training(config, device)
    for batch in training.data:
        training.backward(*batch)
        training.unscale_and_clip()
        training.step()
        training.update()
    check(measure, config, training)


@pytest.mark.workaround("clip-before-step")
def test_clip_before_step(config, device, measure):
    only_for(config, "clip-after-step")
    training = Training(config, device)
    for batch in training.data:
        training.backward(*batch)
        training.unscale_and_clip()
        training.step()
        training.update()
    check(measure, config, training)


@pytest.mark.workaround("update-after-each-step")
def test_update_after_each_step(config, device, measure):
    only_for(config, "stepped-twice")
    training = Training(config, device)
    for batch in training.data:
        training.backward(*batch)
        training.step()
        training.update()
    check(measure, config, training)


@pytest.mark.dead_end("zero-grad")
def test_zero_grad(config, device):
    BROKEN[config](Training(config, device), between=lambda training: training.optimizer.zero_grad())


@pytest.mark.dead_end("catch-it")
def test_catch_it(config, device, measure):
    if config == "stepped-twice":
        pytest.skip("no second division here")
    training = Training(config, device, catch=True)
    BROKEN[config](training)
    check(measure, config, training)


@pytest.mark.dead_end("update-every-micro-step")
def test_update_every_micro_step(config, device, measure):
    only_for(config, "clip-every-micro-step")
    training = Training(config, device)
    clip_every_micro_step(training, between=lambda training: training.scaler.update())
    check(measure, config, training)
