# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A second backward pass through a graph whose saved tensors are gone.

`recurrent-state` carries a GRU's state over optimizer steps, `running-total` adds each step's loss to a total and
differentiates that, `two-losses` calls `backward()` for two heads of one encoder, and `shared-checkpoint` lets two
blocks under reentrant checkpointing read the same features from outside.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.requires(torch=">=2.1")

STEPS = 3


def kept(carried):
    """What the broken programs do with a tensor of the step before: nothing."""
    return carried


def as_numbers(carried):
    """The same values with no history whatever; used for the reference only."""
    return torch.tensor(carried.tolist(), dtype=carried.dtype)


def series(device, dtype):
    """`[step, time, batch, feature]`"""
    return torch.randn(STEPS, 5, 4, 8, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def train_recurrent(device, carry, dtype=torch.float32, **backward):
    """A few steps over consecutive pieces of a series; the weights afterwards."""
    torch.manual_seed(0)
    cell = nn.GRU(8, 8).to(device, dtype)
    optimizer = torch.optim.SGD(cell.parameters(), lr=0.5)
    state = torch.zeros(1, 4, 8, device=device, dtype=dtype)
    for piece in series(device, dtype):
        outputs, state = cell(piece, carry(state))
        optimizer.zero_grad()
        (outputs - piece).square().mean().backward(**backward)
        optimizer.step()
    return [p.detach() for p in cell.parameters()]


def train_with_total(device, carry, dtype=torch.float32, **backward):
    """A few steps that keep a running total of the loss; the weights afterwards."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)).to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    total = torch.zeros((), device=device, dtype=dtype)
    for piece in series(device, dtype):
        total = carry(total) + (model(piece) - piece).square().mean()
        optimizer.zero_grad()
        total.backward(**backward)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def heads(device, dtype=torch.float32):
    torch.manual_seed(0)
    layers = {"encoder": nn.Sequential(nn.Linear(8, 16), nn.Tanh()), "a": nn.Linear(16, 4), "b": nn.Linear(16, 1)}
    return nn.ModuleDict(layers).to(device, dtype)


def two_losses(model, prepare=kept):
    weight = model["a"].weight
    hidden = model["encoder"](series(weight.device, weight.dtype)[0])
    return model["a"](prepare(hidden)).square().mean(), model["b"](prepare(hidden)).sigmoid().mean()


class Reader(nn.Module):
    """Two blocks that add features of a reference encoder to what they compute."""

    def __init__(self):
        super().__init__()
        self.reference = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2)])

    def forward(self, values, run, prepare=kept):
        shared = self.reference(values)
        for block in self.blocks:
            values = run(lambda hidden, block=block: block(hidden) + prepare(shared), values)
        return values

    def forward_with_argument(self, values):
        shared = self.reference(values)
        for block in self.blocks:
            values = checkpoint(lambda hidden, added, block=block: block(hidden) + added, values, shared, **REENTRANT)
        return values


REENTRANT, NON_REENTRANT = {"use_reentrant": True}, {"use_reentrant": False}


def reader(device, dtype=torch.float32):
    torch.manual_seed(0)
    return Reader().to(device, dtype), series(device, dtype)[0].requires_grad_()


def gradients(model):
    return [p.grad for p in model.parameters()]


def train_reader(device, run, dtype=torch.float32, prepare=kept):
    model, values = reader(device, dtype)
    model(values, run, prepare).square().mean().backward()
    return gradients(model)


def reentrant(function, values):
    return checkpoint(function, values, **REENTRANT)


def non_reentrant(function, values):
    return checkpoint(function, values, **NON_REENTRANT)


def directly(function, values):
    return function(values)


def broken(config, device, carry=kept, **backward):
    """The program of each cause; `carry` is done to the tensor that drags the old graph along."""
    if config == "recurrent-state":
        train_recurrent(device, carry, **backward)
    elif config == "running-total":
        train_with_total(device, carry, **backward)
    elif config == "two-losses":
        for loss in two_losses(heads(device), carry):
            loss.backward(**backward)
    else:
        train_reader(device, reentrant, prepare=carry)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["recurrent-state", "running-total", "two-losses", "shared-checkpoint"])
def config(request):
    """What leads into a graph for the second time."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("detach-state")
def test_detach_state(config, device, measure):
    only_for(config, "recurrent-state", "running-total")
    train = train_recurrent if config == "recurrent-state" else train_with_total
    result = measure(lambda: train(device, torch.Tensor.detach))
    measure.compare(result, train("cpu", as_numbers, torch.float64), tolerance=0.01)  # TF32 in cuDNN


@pytest.mark.workaround("one-backward")
def test_one_backward(config, device, measure):
    only_for(config, "two-losses")
    model = heads(device)
    sum(two_losses(model)).backward()
    measure.compare(gradients(model), two_losses_reference(), tolerance=1e-4)


@pytest.mark.workaround("retain-graph")
def test_retain_graph(config, device, measure):
    only_for(config, "two-losses")
    model = heads(device)
    loss_a, loss_b = two_losses(model)
    loss_a.backward(retain_graph=True)
    loss_b.backward()
    measure.compare(gradients(model), two_losses_reference(), tolerance=1e-4)


def two_losses_reference():
    """Each loss with a forward pass of its own, in float64; gradients add up."""
    model = heads("cpu", torch.float64)
    two_losses(model)[0].backward()
    two_losses(model)[1].backward()
    return gradients(model)


@pytest.mark.workaround("non-reentrant")
def test_non_reentrant(config, device, measure):
    only_for(config, "shared-checkpoint")
    result = measure(lambda: train_reader(device, non_reentrant))
    measure.compare(result, train_reader("cpu", directly, torch.float64), tolerance=1e-4)


@pytest.mark.workaround("shared-as-argument")
def test_shared_as_argument(config, device, measure):
    only_for(config, "shared-checkpoint")
    model, values = reader(device)
    model.forward_with_argument(values).square().mean().backward()
    measure.compare(gradients(model), train_reader("cpu", directly, torch.float64), tolerance=1e-4)


@pytest.mark.workaround("checkpointing-off")
def test_checkpointing_off(config, device, measure):
    only_for(config, "shared-checkpoint")
    result = measure(lambda: train_reader(device, directly))
    measure.compare(result, train_reader("cpu", directly, torch.float64), tolerance=1e-4)


@pytest.mark.dead_end("retain-graph-over-steps")
def test_retain_graph_over_steps(config, device):
    only_for(config, "recurrent-state", "running-total")
    broken(config, device, retain_graph=True)


@pytest.mark.dead_end("clone")
def test_clone(config, device):
    broken(config, device, carry=torch.clone)
