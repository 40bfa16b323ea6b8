# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""`init_process_group` with the default `env://`, where nobody set what it reads.

Nothing is set when a script is run by hand, the address is missing when somebody set the rest, Slurm sets names of its
own, and workers that are given their rank as an argument do not hand it on. One rank is enough in each.
"""

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

READ = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "localhost"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def complete():
    return {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}


def from_slurm():
    """On several nodes the address is the first of `scontrol show hostnames $SLURM_JOB_NODELIST`."""
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["MASTER_ADDR"] = os.environ["SLURM_JOB_NODELIST"]
    os.environ["MASTER_PORT"] = free_port()


def gradient(device, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(device, dtype)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    model(inputs).square().mean().backward()
    return model.weight.grad


def train(device, **how):
    """Join a group, average one gradient over it, leave."""
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=20), **how)
        mean = gradient(device)
        dist.all_reduce(mean)
        return mean / dist.get_world_size()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def worker(rank, world_size, device, hand_on=False):
    """What `mp.spawn` calls with a rank."""
    return train(device, rank=rank, world_size=world_size) if hand_on else train(device)


def program(config, device):
    return worker(0, 1, device) if config == "rank-as-argument" else train(device)


def check(measure, result):
    measure.compare(result, gradient("cpu", torch.float64), tolerance=1e-4)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["started-by-hand", "address-missing", "slurm-names", "rank-as-argument"])
def config(request, monkeypatch):
    """What the environment holds."""
    for name in (*READ, *SLURM):
        monkeypatch.setenv(name, "")  # so that all of them are put back
        monkeypatch.delenv(name)
    if request.param == "address-missing":
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    if request.param == "rank-as-argument":
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", free_port())
    if request.param == "slurm-names":
        for name, value in SLURM.items():
            monkeypatch.setenv(name, value)
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        program(config, device)
    finally:
        measure.recovers(lambda: train(device, store=dist.HashStore(), rank=0, world_size=1).isfinite().all())


@pytest.mark.workaround("use-the-launcher")
def test_use_the_launcher(config, device, run_script, measure):
    only_for(config, "started-by-hand", "address-missing")
    for name in READ:
        os.environ.pop(name, None)
    call = f"print('gradient', *train({device!r}).flatten().tolist())"
    printed = run_script(f"{Path(__file__).read_text()}\n\n{call}\n", launcher="torchrun")
    numbers = next(line for line in printed.splitlines() if line.startswith("gradient ")).split()[1:]
    check(measure, torch.tensor([float(number) for number in numbers]).view(3, 4))


@pytest.mark.workaround("set-all-four")
def test_set_all_four(config, device, measure):
    only_for(config, "started-by-hand", "address-missing")
    os.environ.update(complete())
    check(measure, program(config, device))


@pytest.mark.workaround("translate-slurm")
def test_translate_slurm(config, device, measure):
    only_for(config, "slurm-names")
    from_slurm()
    check(measure, program(config, device))


@pytest.mark.workaround("hand-the-rank-on")
def test_hand_the_rank_on(config, device, measure):
    only_for(config, "rank-as-argument")
    check(measure, worker(0, 1, device, hand_on=True))


@pytest.mark.workaround("group-of-one")
def test_group_of_one(config, device, measure):
    check(measure, train(device, store=dist.HashStore(), rank=0, world_size=1))


@pytest.mark.dead_end("rank-only")
def test_rank_only(config, device):
    only_for(config, "started-by-hand", "slurm-names")
    os.environ["RANK"] = "0"
    program(config, device)


@pytest.mark.dead_end("local-rank")
def test_local_rank(config, device):
    os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    try:
        program(config, device)
    finally:
        del os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]


@pytest.mark.dead_end("export-in-a-shell-of-its-own")
def test_export_in_a_shell_of_its_own(config, device):
    command = "; ".join(f"export {name}={value}" for name, value in complete().items())
    assert os.system(command) == 0
    program(config, device)


@pytest.mark.dead_end("size-of-the-whole-job")
def test_size_of_the_whole_job(config, device):
    only_for(config, "started-by-hand")
    os.environ.update(complete() | {"WORLD_SIZE": "4"})
    dist.init_process_group("gloo", timeout=timedelta(seconds=5))
