# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A collective that not every rank joins in time. Only NCCL has this watchdog, so every arm needs two GPUs."""

import pytest

pytestmark = [pytest.mark.requires(torch=">=2.1", device="cuda", gpus=2), pytest.mark.timeout(200)]

PROGRAM = """
import datetime
import os
import time

import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])
DEVICE = torch.device("cuda", RANK)


def step(number):
    value = torch.full((1024,), float(number), device=DEVICE)
    if CAUSE == "rank-fails" and RANK == 1 and number == 2:
        value = value @ value.new_ones(WRONG_ROWS, 1024)
    if CAUSE == "slow-rank" and RANK == 0 and number == 2:
        time.sleep(25)  # writes a checkpoint while the other rank is already at the next collective
    dist.all_reduce(value)
    return value


def main():
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), 2, RANK == 0)
    limit = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("nccl", store=store, rank=RANK, world_size=2, timeout=limit)
    torch.cuda.set_device(DEVICE)
    try:
        for number in range(STEPS[RANK]):
            assert torch.equal(step(number).cpu(), torch.full((1024,), SUMS[CAUSE][number]))
    finally:
        # Whoever is through waits for the other, and so does a rank that failed but cannot end yet.
        store.set(f"through-{RANK}", "yes")
        store.wait([f"through-{1 - RANK}"], datetime.timedelta(seconds=90))
    dist.destroy_process_group()
    print(f"rank {RANK} finished", flush=True)


main()
"""


def program(cause, timeout=10, steps=None, wrong_rows=1000):
    """The training loop with one cause in it; the defaults are the broken values."""
    steps = steps or ((5, 4) if cause == "uneven-batches" else (4, 4))
    sums = {"rank-fails": (0.0, 2.0, 2.0 * 1024 + 2.0, 6.0)}.get(cause, (0.0, 2.0, 4.0, 6.0, 8.0))
    head = {"CAUSE": cause, "TIMEOUT": timeout, "STEPS": steps, "WRONG_ROWS": wrong_rows, "SUMS": {cause: sums}}
    return "".join(f"{name} = {value!r}\n" for name, value in head.items()) + PROGRAM


def run(run_script, code, env=None):
    printed = run_script(code, nproc=2, env=env, timeout=180)
    assert printed.count("finished") == 2, printed


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"addresses another cause than {config}")


@pytest.fixture(params=["rank-fails", "uneven-batches", "slow-rank"])
def config(request):
    """Why a rank is missing from a collective: it failed, it had fewer batches, or it was busy for too long."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run(run_script, program(config))


@pytest.mark.workaround("repair-the-first-failing-rank")
def test_repair_the_first_failing_rank(config, run_script):
    only_for(config, "rank-fails")
    run(run_script, program(config, wrong_rows=1024))


@pytest.mark.workaround("same-steps-on-every-rank")
def test_same_steps_on_every_rank(config, run_script):
    only_for(config, "uneven-batches")
    run(run_script, program(config, steps=(4, 4)))


@pytest.mark.workaround("timeout-above-the-slowest-step")
def test_timeout_above_the_slowest_step(config, run_script):
    only_for(config, "slow-rank")
    run(run_script, program(config, timeout=60))


@pytest.mark.dead_end("longer-timeout-for-a-lost-rank")
def test_longer_timeout_for_a_lost_rank(config, run_script):
    only_for(config, "rank-fails", "uneven-batches")
    run(run_script, program(config, timeout=40))


@pytest.mark.dead_end("transport-switches")
def test_transport_switches(config, run_script):
    run(run_script, program(config), env={"NCCL_IB_DISABLE": "1", "NCCL_P2P_DISABLE": "1"})
