# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A DDP step after one in which some parameters got no gradient.

The network is a trunk with two heads, as with optional losses or modalities. One rank is enough where the cause is the
network or the batch: those configurations run in this process. Where ranks differ, two processes run this very file.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.requires(torch=">=2.1")

STEPS = 3
RESULT = "weights: "


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.main, self.aux = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, inputs, head):
        return getattr(self, head)(torch.relu(self.trunk(inputs)))


def build():
    torch.manual_seed(0)
    return TwoHeads()


def head(kind, rank, step):
    """The head that this rank's batch needs."""
    if kind == "layer-never-used":
        return "main"
    turn = rank + step if kind == "path-by-rank" else step
    return ("main", "aux")[turn % 2]


def batch(rank, step):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * rank + step))


def flat(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def train(kind, device, wrap=None, freeze=None, zero_weighted=False, optimize="all"):
    """A few steps of SGD under DDP; the weights afterwards."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    elif not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    network = build().to(device)
    if freeze == "before":
        network.aux.requires_grad_(False)
    model = DistributedDataParallel(network, static_graph=kind == "static-graph", **(wrap or {}))
    if freeze == "after":
        network.aux.requires_grad_(False)
    trained = network.parameters() if optimize == "all" else [*network.trunk.parameters(), *network.main.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model(batch(dist.get_rank(), step).to(device), head(kind, dist.get_rank(), step))
        loss = output.square().mean()
        if zero_weighted:
            loss = loss + 0.0 * sum(p.sum() for p in model.module.parameters())
        loss.backward()
        optimizer.step()
    return flat(network)


def reference(config):
    """The same steps in float64 without DDP, over the batches of all ranks."""
    model = build().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ranks = ranks_of(config)
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = [model(batch(r, step).double(), head(config, r, step)).square().mean() for r in range(ranks)]
        (sum(losses) / ranks).backward()
        optimizer.step()
    return flat(model)


def tell(weights):
    # One call: lines of two ranks must not mix.
    sys.stdout.write(f"{RESULT}{json.dumps(weights.tolist())}\n")


def ranks_of(config):
    return 2 if config == "path-by-rank" else 1


def run(config, device, run_script, **options):
    """The weights of every rank after training."""
    if ranks_of(config) == 1:
        return [train(config, device, **options)]
    call = f"tell(train({config!r}, {device!r}, **{options!r}))"
    printed = run_script(f"{Path(__file__).read_text()}\n\n{call}\n", nproc=2)
    lines = [line for line in printed.splitlines() if line.startswith(RESULT)]
    assert len(lines) == 2, printed
    return [torch.tensor(json.loads(line.removeprefix(RESULT)), dtype=torch.float64) for line in lines]


def check(measure, config, weights):
    for of_rank in weights:
        measure.compare(of_rank, reference(config), tolerance=1e-5)


@pytest.fixture(params=["layer-never-used", "path-by-batch", "static-graph", "path-by-rank"])
def config(request):
    """Why a parameter gets no gradient: never used, not by this batch (also under static_graph), not on this rank."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, run_script, measure):
    try:
        run(config, device, run_script)
    finally:
        measure.recovers(lambda: train("path-by-batch", device, wrap={"find_unused_parameters": True}).isfinite().all())


@pytest.mark.workaround("remove-or-freeze")
def test_remove_or_freeze(config, device, run_script, measure):
    if config != "layer-never-used":
        pytest.skip("both heads are trained here")
    check(measure, config, run(config, device, run_script, freeze="before"))


@pytest.mark.workaround("find-unused")
def test_find_unused(config, device, run_script, measure):
    kind = "path-by-batch" if config == "static-graph" else config  # in place of static_graph=True
    check(measure, config, run(kind, device, run_script, wrap={"find_unused_parameters": True}))


@pytest.mark.workaround("zero-weighted-parameters")
def test_zero_weighted_parameters(config, device, run_script, measure):
    check(measure, config, run(config, device, run_script, zero_weighted=True))


@pytest.mark.workaround("name-them")
def test_name_them(config, device, run_script):
    if config == "static-graph":
        pytest.skip("this wording of the message names no parameter at any level")
    code = f"{Path(__file__).read_text()}\n\ntrain({config!r}, {device!r})\n"
    with pytest.raises(Exception) as failure:
        run_script(code, nproc=ranks_of(config), env={"TORCH_DISTRIBUTED_DEBUG": "INFO"})
    assert "aux.weight" in failure.value.output.partition("did not receive grad for rank")[2]


@pytest.mark.dead_end("freeze-after-wrapping")
def test_freeze_after_wrapping(config, device, run_script):
    if config != "layer-never-used":
        pytest.skip("both heads are trained here")
    run(config, device, run_script, freeze="after")


@pytest.mark.dead_end("leave-out-of-optimizer")
def test_leave_out_of_optimizer(config, device, run_script):
    if config != "layer-never-used":
        pytest.skip("both heads are trained here")
    run(config, device, run_script, optimize="used")


@pytest.mark.dead_end("search-with-static-graph")
def test_search_with_static_graph(config, device, run_script):
    if config != "static-graph":
        pytest.skip("static_graph is not set here")
    run(config, device, run_script, wrap={"find_unused_parameters": True})


@pytest.mark.dead_end("broadcast-buffers-off")
def test_broadcast_buffers_off(config, device, run_script):
    run(config, device, run_script, wrap={"broadcast_buffers": False})
