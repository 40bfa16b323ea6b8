# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Distributed code in a process that belongs to no group: run without its launcher, too early, or too late.

A step of data-parallel training on one rank. Under the launcher the same file is run as a program of its own.
"""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, RandomSampler, TensorDataset

pytestmark = pytest.mark.requires(torch=">=2.1")


def data():
    return TensorDataset(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))


def set_up():
    """What many training scripts do: join a group only if a launcher started them."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")


def world_of_one():
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def nothing():
    pass


def always():
    return True


def has_group():
    return dist.is_available() and dist.is_initialized()


def train(kind, device, join=set_up, distributed=always):
    """One step; the mean loss over ranks and the gradient. The group is joined and left where `kind` says."""
    joined_late = kind == "sampler-built-too-early"
    if not joined_late:
        join()
    sampler = DistributedSampler(data()) if joined_late and distributed() else RandomSampler(data())
    if joined_late:
        join()
    torch.manual_seed(0)
    network = nn.Linear(4, 1).to(device)
    model = DistributedDataParallel(network) if kind == "wrapped-without-group" and distributed() else network
    inputs = data()[sorted(sampler)][0].to(device)
    loss = model(inputs).square().mean()
    loss.backward()
    if kind == "logged-after-the-end" and dist.is_initialized():
        dist.destroy_process_group()
    mean = loss.detach().clone()
    if kind in ("reduced-without-group", "logged-after-the-end") and distributed():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return torch.cat([mean.flatten(), network.weight.grad.flatten()]).double().cpu()


def reference():
    torch.manual_seed(0)
    network = nn.Linear(4, 1).double()
    loss = network(data().tensors[0].double()).square().mean()
    loss.backward()
    return torch.cat([loss.detach().flatten(), network.weight.grad.flatten()])


def check(measure, result):
    measure.compare(result, reference(), tolerance=1e-5)


def left(step):
    """Run a step and leave its group, so that the next one starts without."""
    try:
        return step()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.fixture(
    params=["reduced-without-group", "wrapped-without-group", "sampler-built-too-early", "logged-after-the-end"]
)
def config(request):
    """Which call finds no group, and why."""
    return request.param


def broken(config):
    """How the program joins: the last two do, but at the wrong time."""
    return world_of_one if config in ("sampler-built-too-early", "logged-after-the-end") else set_up


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        left(lambda: train(config, device, broken(config)))
    finally:
        measure.recovers(lambda: left(lambda: train("wrapped-without-group", device, world_of_one)).isfinite().all())


@pytest.mark.workaround("use-the-launcher")
def test_use_the_launcher(config, device, run_script, measure):
    if not config.endswith("without-group"):
        pytest.skip("the launcher joins no group; the program does it at the wrong time here")
    call = f"print(*train({config!r}, {device!r}).tolist())\ndist.destroy_process_group()"
    printed = run_script(f"{Path(__file__).read_text()}\n\n{call}\n", launcher="torchrun")
    check(measure, torch.tensor([float(number) for number in printed.split()[-5:]], dtype=torch.float64))


@pytest.mark.workaround("world-of-one")
def test_world_of_one(config, device, measure):
    if not config.endswith("without-group"):
        pytest.skip("there is one, at the wrong time")
    check(measure, left(lambda: train(config, device, world_of_one)))


@pytest.mark.workaround("first-and-last")
def test_first_and_last(config, device, measure):
    if config.endswith("without-group"):
        pytest.skip("no group is ever made here")

    def step():
        world_of_one()
        result = train("reduced-without-group" if config == "logged-after-the-end" else config, device, join=nothing)
        dist.destroy_process_group()
        return result

    check(measure, left(step))


@pytest.mark.workaround("guard-the-call")
def test_guard_the_call(config, device, measure):
    check(measure, left(lambda: train(config, device, broken(config), distributed=has_group)))


@pytest.mark.dead_end("guard-with-is-available")
def test_guard_with_is_available(config, device):
    left(lambda: train(config, device, broken(config), distributed=dist.is_available))


@pytest.mark.dead_end("variables-only")
def test_variables_only(config, device, monkeypatch):
    if config == "logged-after-the-end":
        pytest.skip("the group was joined and left")
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    left(lambda: train(config, device, join=nothing))
