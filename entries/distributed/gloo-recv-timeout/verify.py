# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A gloo operation whose other side is alive and does not come within the time limit.

Two ranks add up their gradients in a group with a limit of a few seconds: one is busy for longer, only one makes the
call, both send before they receive, or what is sent has another tag than what is waited for.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

RESULT = "result: "
LIMIT, BUSY = 3, 7
"""Seconds."""


def gradient(rank, device, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(device, dtype)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(rank)).to(device, dtype)
    model(inputs).square().mean().backward()
    return model.weight.grad


def join_groups(seconds, longer=None):
    """The group that is used, whose limit is short, and one with a longer limit. All ranks have met before."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    dist.barrier()
    used = dist.new_group(timeout=timedelta(seconds=seconds))
    return used, dist.new_group(timeout=timedelta(seconds=longer)) if longer else None


def exchange(mine, group, ordered):
    """Both ranks get the other's tensor. Each sends first unless they are ordered."""
    theirs, peer = torch.zeros_like(mine), 1 - dist.get_rank()
    calls = [lambda: dist.send(mine, peer, group=group), lambda: dist.recv(theirs, peer, group=group)]
    for call in reversed(calls) if ordered and peer == 0 else calls:
        call()
    return mine + theirs


def add_up(
    kind,
    device,
    seconds=LIMIT,
    longer=None,
    everywhere=False,
    ordered=False,
    at_once=False,
    tag=2,
    wait=None,
    repeat=False,
    name_it=False,
):
    """The sum of both gradients, as far as this rank gets it."""
    group, patient = join_groups(seconds, longer)
    rank = dist.get_rank()
    mine = gradient(rank, device)
    if kind == "slow-rank":
        if rank == 1:
            time.sleep(BUSY)  # prepares its data
        if patient:
            dist.barrier(group=patient)
        if name_it:
            dist.monitored_barrier(timeout=timedelta(seconds=seconds))
        handle = dist.all_reduce(mine, group=group, async_op=True)
        try:
            handle.wait() if wait is None else handle.wait(timedelta(seconds=wait))
        except RuntimeError:
            if not repeat:
                raise
            dist.all_reduce(mine, group=group)
        return mine
    if kind == "call-on-one-rank":
        if rank == 0 or everywhere:
            dist.all_reduce(mine, group=group)
            return mine
        time.sleep(seconds + 6)  # goes on with work of its own
        return None
    mine = mine.cpu()
    if kind == "both-send-first":
        if at_once:
            theirs = torch.zeros_like(mine)
            handle = dist.isend(mine, 1 - rank, group=group)
            dist.recv(theirs, 1 - rank, group=group)
            handle.wait()
            return mine + theirs
        return exchange(mine, group, ordered)
    if rank == 1:
        dist.send(mine, 0, group=group, tag=tag)
        return None
    theirs = torch.zeros_like(mine)
    dist.recv(theirs, 1, group=group, tag=1)
    return mine + theirs


def tell(tensor):
    if tensor is not None:
        sys.stdout.write(f"{RESULT}{json.dumps(tensor.double().flatten().tolist())}\n")  # one call: ranks must not mix
        sys.stdout.flush()


def run(kind, device, run_script, env=None, **options):
    call = f"tell(add_up({kind!r}, {device!r}, **{options!r}))\ndist.barrier()"
    return run_script(f"{Path(__file__).read_text()}\n\n{call}\n", nproc=2, env=env)


def check(measure, printed, lines=2):
    found = [line for line in printed.splitlines() if line.startswith(RESULT)]
    assert len(found) == lines, printed
    expected = (gradient(0, "cpu", torch.float64) + gradient(1, "cpu", torch.float64)).flatten()
    for line in found:
        measure.compare(torch.tensor(json.loads(line.removeprefix(RESULT)), dtype=torch.float64), expected, 1e-5)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["slow-rank", "call-on-one-rank", "both-send-first", "tags-differ"])
def config(request):
    """Why the other side does not come."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, run_script):
    run(config, device, run_script)


@pytest.mark.workaround("limit-above-the-slowest")
def test_limit_above_the_slowest(config, device, run_script, measure):
    only_for(config, "slow-rank")
    check(measure, run(config, device, run_script, seconds=60))


@pytest.mark.workaround("wait-in-a-patient-group")
def test_wait_in_a_patient_group(config, device, run_script, measure):
    only_for(config, "slow-rank")
    check(measure, run(config, device, run_script, longer=60))


@pytest.mark.workaround("call-on-every-rank")
def test_call_on_every_rank(config, device, run_script, measure):
    only_for(config, "call-on-one-rank")
    check(measure, run(config, device, run_script, everywhere=True))


@pytest.mark.workaround("one-receives-first")
def test_one_receives_first(config, device, run_script, measure):
    only_for(config, "both-send-first")
    check(measure, run(config, device, run_script, ordered=True))


@pytest.mark.workaround("send-without-blocking")
def test_send_without_blocking(config, device, run_script, measure):
    only_for(config, "both-send-first")
    check(measure, run(config, device, run_script, at_once=True))


@pytest.mark.workaround("same-tag")
def test_same_tag(config, device, run_script, measure):
    only_for(config, "tags-differ")
    check(measure, run(config, device, run_script, tag=1), lines=1)


@pytest.mark.workaround("name-the-missing-rank")
def test_name_the_missing_rank(config, device, run_script):
    only_for(config, "slow-rank")
    with pytest.raises(Exception) as failure:
        run(config, device, run_script, name_it=True)
    assert "Rank 1 failed to pass monitoredBarrier" in failure.value.output


@pytest.mark.dead_end("longer-limit-for-a-missing-call")
def test_longer_limit_for_a_missing_call(config, device, run_script):
    only_for(config, "both-send-first", "tags-differ")
    run(config, device, run_script, seconds=3 * LIMIT)


@pytest.mark.dead_end("time-for-wait")
def test_time_for_wait(config, device, run_script):
    only_for(config, "slow-rank")
    run(config, device, run_script, wait=60)


@pytest.mark.dead_end("catch-and-repeat")
def test_catch_and_repeat(config, device, run_script):
    only_for(config, "slow-rank")
    run(config, device, run_script, repeat=True)


@pytest.mark.dead_end("limit-of-nccl")
def test_limit_of_nccl(config, device, run_script):
    only_for(config, "slow-rank")
    run(config, device, run_script, env={"NCCL_TIMEOUT": "3600", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "3600"})
