# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""A gradient scaler is told to step or update, and the optimizer has no gradients.

`rebuilt-loss` differentiates a loss that was made anew from a number, `replaced-head` puts a new layer into the model
after the optimizer was built, `skipped-backward` still steps in an iteration whose bad batch was left out, and
`lone-update` leaves the step out there but not the update.
"""

import contextlib

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3")

SKIPPED = 1
"""The batch of four that is bad."""


def backbone(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU()).to(device, dtype).requires_grad_(False)


def head(device, seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Linear(64, 8).to(device, dtype)


def batches(device, dtype=torch.float32):
    numbers = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield (torch.randn(16, size, generator=numbers).to(device, dtype) for size in (32, 8))


def sgd(model):
    return torch.optim.SGD(model[1].parameters(), lr=0.5)


def broken_pair(config, device):
    """Model and optimizer; the optimizer may hold the parameters of a head that is gone."""
    model = nn.Sequential(backbone(device), head(device, seed=1))
    optimizer = sgd(model)
    if config == "replaced-head":
        model[1] = head(device, seed=2)
    return model, optimizer


def rebuild(loss):
    """As one does to get rid of `does not require grad`."""
    return torch.tensor(loss.item(), device=loss.device, requires_grad=True)


def same(loss):
    return loss


def broken_finish(config, scaler, optimizer, bad):
    if not (bad and config == "lone-update"):
        scaler.step(optimizer)
    scaler.update()


def train(config, device, finish=broken_finish, loss_from=None, pair=None, enabled=True):
    """Four iterations; the weights of the head afterwards. The defaults are the broken program."""
    model, optimizer = pair or broken_pair(config, device)
    loss_from = loss_from or (rebuild if config == "rebuilt-loss" else same)
    scaler = torch.amp.GradScaler(device, enabled=enabled)
    for number, (inputs, targets) in enumerate(batches(device)):
        bad = number == SKIPPED and config in ("skipped-backward", "lone-update")
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            outputs = model(inputs)
        loss = nn.functional.mse_loss(outputs.float(), targets)
        if not bad:
            scaler.scale(loss_from(loss)).backward()
        finish(config, scaler, optimizer, bad)
    return [p.detach() for p in model[1].parameters()]


def reference(config):
    """The same in float64 with plain SGD, on the batches that count."""
    last = head("cpu", seed=2 if config == "replaced-head" else 1, dtype=torch.float64)
    first = backbone("cpu", torch.float64)
    for number, (inputs, targets) in enumerate(batches("cpu", torch.float64)):
        if number == SKIPPED and config in ("skipped-backward", "lone-update"):
            continue
        loss = nn.functional.mse_loss(last(first(inputs)), targets)
        grads = torch.autograd.grad(loss, list(last.parameters()))
        last.load_state_dict({name: p - 0.5 * g for (name, p), g in zip(last.named_parameters(), grads, strict=True)})
    return [p.detach() for p in last.parameters()]


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["rebuilt-loss", "replaced-head", "skipped-backward", "lone-update"])
def config(request):
    """Why the optimizer has no gradients when the scaler looks."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    train(config, device)


@pytest.mark.workaround("keep-the-graph")
def test_keep_the_graph(config, device, measure):
    only_for(config, "rebuilt-loss")
    measure.compare(train(config, device, loss_from=same), reference(config), tolerance=0.01)


@pytest.mark.workaround("optimizer-last")
def test_optimizer_last(config, device, measure):
    only_for(config, "replaced-head")
    model, _ = broken_pair(config, device)
    measure.compare(train(config, device, pair=(model, sgd(model))), reference(config), tolerance=0.01)


def finish_if_good(config, scaler, optimizer, bad):
    if not bad:
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.workaround("step-only-after-backward")
def test_step_only_after_backward(config, device, measure):
    only_for(config, "skipped-backward", "lone-update")
    measure.compare(train(config, device, finish_if_good), reference(config), tolerance=0.01)


def finish_and_catch(config, scaler, optimizer, bad):
    with contextlib.suppress(AssertionError):
        broken_finish(config, scaler, optimizer, bad)


@pytest.mark.dead_end("remove-the-assertion")
def test_remove_the_assertion(config, device, measure):
    if config == "lone-update":
        pytest.skip("the update is the one wrong call here, and catching what it raises leaves it out")
    measure.compare(train(config, device, finish_and_catch), reference(config), tolerance=0.01)


def unscale_and_finish(config, scaler, optimizer, bad):
    scaler.unscale_(optimizer)
    broken_finish(config, scaler, optimizer, bad)


@pytest.mark.dead_end("unscale-first")
def test_unscale_first(config, device):
    train(config, device, unscale_and_finish)


@pytest.mark.dead_end("scaler-off")
def test_scaler_off(config, device, measure):
    only_for(config, "rebuilt-loss", "replaced-head")
    measure.compare(train(config, device, enabled=False), reference(config), tolerance=0.01)
