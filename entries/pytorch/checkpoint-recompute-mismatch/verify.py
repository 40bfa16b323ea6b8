# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Non-reentrant checkpointing runs a segment again in the backward pass, and it comes out differently.

`kv-cache` is attention that appends its keys and values to a cache, `random-routing` sends tokens to an expert by
Python's random numbers, `mode-switched` is a model put into evaluation mode between the forward and the backward pass.
Every fix is compared with the same step without checkpointing.
"""

import random

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.requires(torch=">=2.1")

NON_REENTRANT = {"use_reentrant": False}


class CachedAttention(nn.Module):
    """One head that keeps keys and values for the next call, as generation wants it."""

    def __init__(self, use_cache):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.use_cache, self.past = use_cache, None

    def forward(self, hidden):
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        if self.use_cache:
            if self.past is not None:
                key, value = torch.cat([self.past[0], key], 1), torch.cat([self.past[1], value], 1)
            self.past = key.detach(), value.detach()
        return torch.softmax(query @ key.transpose(1, 2), -1) @ value


class RoutedExpert(nn.Module):
    """Sends some of the tokens through an expert; `draw` says which."""

    def __init__(self, draw):
        super().__init__()
        self.expert = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
        self.draw = draw

    def forward(self, hidden, chosen=None):
        chosen = self.draw(hidden) if chosen is None else chosen
        return hidden.index_add(1, chosen, self.expert(hidden[:, chosen]))


def python_draw(hidden):
    chosen = [token for token in range(hidden.shape[1]) if random.random() < 0.5]
    return torch.tensor(chosen, device=hidden.device)


def torch_draw(hidden):
    return (torch.rand(hidden.shape[1], device=hidden.device) < 0.5).nonzero().flatten()


def build(config, device, use_cache=True, draw=python_draw):
    torch.manual_seed(0)
    if config == "kv-cache":
        return CachedAttention(use_cache).to(device)
    if config == "random-routing":
        return RoutedExpert(draw).to(device)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 16)).to(device)


def inputs(device):
    values = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))
    return values.to(device).requires_grad_()


def directly(segment, *arguments):
    return segment(*arguments)


def step(config, model, run, evaluate_first=True, chosen=()):
    """Loss, a look at it in evaluation mode, backward; the gradients."""
    random.seed(0)
    torch.manual_seed(2)
    values = inputs(next(model.parameters()).device)
    loss = run(model, values, *chosen).square().mean()
    if config == "mode-switched" and evaluate_first:
        model.eval()
    loss.backward()
    return [values.grad] + [p.grad for p in model.parameters()]


def broken(config, device, **options):
    return step(config, build(config, device), lambda *call: checkpoint(*call, **{**NON_REENTRANT, **options}))


def fixed(config, model, **changes):
    return step(config, model, lambda *call: checkpoint(*call, **NON_REENTRANT), **changes)


def reference(config, device, draw=python_draw, **changes):
    model = build(config, device, use_cache=False, draw=draw)
    return step(config, model, directly, evaluate_first=False, **changes)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["kv-cache", "random-routing", "mode-switched"])
def config(request):
    """What changes between the two runs of the segment."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("cache-off")
def test_cache_off(config, device, measure):
    only_for(config, "kv-cache")
    result = measure(lambda: fixed(config, build(config, device, use_cache=False)))
    measure.compare(result, reference(config, device), tolerance=1e-5)


@pytest.mark.workaround("decide-outside")
def test_decide_outside(config, device, measure):
    only_for(config, "random-routing")
    random.seed(0)
    chosen = python_draw(inputs(device))
    result = measure(lambda: fixed(config, build(config, device), chosen=(chosen,)))
    measure.compare(result, reference(config, device), tolerance=1e-5)


@pytest.mark.workaround("torch-random-numbers")
def test_torch_random_numbers(config, device, measure):
    only_for(config, "random-routing")
    result = measure(lambda: fixed(config, build(config, device, draw=torch_draw)))
    measure.compare(result, reference(config, device, draw=torch_draw), tolerance=1e-5)


@pytest.mark.workaround("backward-before-switching")
def test_backward_before_switching(config, device, measure):
    only_for(config, "mode-switched")
    result = measure(lambda: fixed(config, build(config, device), evaluate_first=False))
    measure.compare(result, reference(config, device), tolerance=1e-5)


@pytest.mark.workaround("checkpointing-off")
def test_checkpointing_off(config, device, measure):
    result = measure(lambda: step(config, build(config, device), directly))
    measure.compare(result, reference(config, device), tolerance=1e-5)


@pytest.mark.dead_end("no-determinism-check")
def test_no_determinism_check(config, device, measure):
    measure.compare(broken(config, device, determinism_check="none"), reference(config, device), tolerance=1e-5)


@pytest.mark.dead_end("reentrant")
def test_reentrant(config, device, measure):
    measure.compare(broken(config, device, use_reentrant=True), reference(config, device), tolerance=1e-5)


@pytest.mark.dead_end("seeds")
def test_seeds(config, device):
    """`step` seeds every generator there is."""
    broken(config, device, preserve_rng_state=True)
