# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""DDP is told twice in one backward pass that a parameter is ready. One rank is enough to show it.

Two configurations are gradient checkpointing of the reentrant kind: a layer that runs twice, and distinct layers while
DDP looks for unused parameters. In the other two that search ticks off parameters that are used after all, outside the
wrapped forward or in an earlier one.
"""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.requires(torch=">=2.1")

CHECKPOINTED = ("shared-layer-checkpointed", "checkpointed-with-search")
STEPS = 3


class Network(nn.Module):
    """Two blocks and two heads; `parts` says what one forward pass runs."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.main, self.aux = nn.Linear(8, 1), nn.Linear(8, 1)
        self.reentrant = reentrant

    def block(self, layer, inputs):
        if self.reentrant is None:
            return torch.relu(layer(inputs))
        return checkpoint(lambda x: torch.relu(layer(x)), inputs, use_reentrant=self.reentrant)

    def forward(self, inputs, parts):
        hidden = inputs
        for part in parts:
            layer = getattr(self, part)
            hidden = layer(hidden) if part in ("main", "aux") else self.block(layer, hidden)
        return hidden


class BothHeads(nn.Module):
    """Everything that uses the parameters, in one forward pass."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, inputs, parts):
        return losses(self.network, self.network, inputs, "two-forwards", parts)


def losses(model, network, inputs, kind, parts):
    """The output of one step; the last two kinds also use the other head."""
    if kind == "outside-forward":
        hidden = torch.relu(network.second(torch.relu(network.first(inputs))))
        return model(inputs, parts) + network.aux(hidden)
    if kind == "two-forwards":
        return model(inputs, ("first", "second", "aux")) + model(inputs, parts)
    return model(inputs, parts)


def build(reentrant=None):
    torch.manual_seed(0)
    return Network(reentrant)


def parts_of(kind):
    return ("first", "second", "second", "main") if kind == "shared-layer-checkpointed" else ("first", "second", "main")


def batch(step):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(step))


def steps(kind, model, network, device, dtype):
    """A few steps of SGD; the weights afterwards."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs = batch(step).to(device, dtype).requires_grad_()
        losses(model, network, inputs, kind, parts_of(kind)).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().double().flatten().cpu() for p in network.parameters()])


def train(kind, device, search=None, static=False, reentrant=True, one_forward=False):
    """The same under DDP. By default as broken as the configuration says."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    network = build(reentrant if kind in CHECKPOINTED else None).to(device)
    network.aux.requires_grad_(kind not in CHECKPOINTED)
    search = kind != "shared-layer-checkpointed" if search is None else search
    wrapped = BothHeads(network) if one_forward else network
    model = DistributedDataParallel(wrapped, find_unused_parameters=search, static_graph=static)
    return steps("one-forward" if one_forward else kind, model, network, device, torch.float32)


def check(measure, kind, weights):
    """Compare with float64 steps without DDP and without checkpointing."""
    network = build().double()
    measure.compare(weights, steps(kind, network, network, "cpu", torch.float64), tolerance=1e-5)


@pytest.fixture(params=[*CHECKPOINTED, "outside-forward", "two-forwards"])
def config(request):
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        train(config, device)
    finally:
        measure.recovers(lambda: train("two-forwards", device, search=False).isfinite().all())


@pytest.mark.workaround("non-reentrant")
def test_non_reentrant(config, device, measure):
    if config not in CHECKPOINTED:
        pytest.skip("nothing is checkpointed here")
    check(measure, config, train(config, device, reentrant=False))


@pytest.mark.workaround("static-graph")
def test_static_graph(config, device, measure):
    check(measure, config, train(config, device, search=False, static=True))


@pytest.mark.workaround("no-unused-search")
def test_no_unused_search(config, device, measure):
    if config == "shared-layer-checkpointed":
        pytest.skip("the search is off already")
    check(measure, config, train(config, device, search=False))


@pytest.mark.workaround("one-forward")
def test_one_forward(config, device, measure):
    if config in CHECKPOINTED:
        pytest.skip("there is one forward pass already")
    check(measure, config, train(config, device, one_forward=True))


@pytest.mark.dead_end("find-unused")
def test_find_unused(config, device):
    train(config, device, search=True)


@pytest.mark.dead_end("non-reentrant-without-checkpointing")
def test_non_reentrant_without_checkpointing(config, device):
    if config in CHECKPOINTED:
        pytest.skip("reentrant checkpointing is the cause here")
    train(config, device, reentrant=False)
