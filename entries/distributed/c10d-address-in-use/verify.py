# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Rank 0 opens the port where ranks meet, and somebody else holds it.

That somebody is another job, a worker that outlived its job, or a second rank 0 of the same job. All on the loopback
interface, on a port that the system picked, with gloo.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.requires(torch=">=2.1")

LISTENER = """
import os, signal, socket, sys, time

signal.alarm(60)
server = socket.socket()
server.bind(("0.0.0.0", 0))
server.listen()
if sys.argv[1] == "left-over-process" and os.fork():
    os._exit(0)  # the job is over, its worker is not
print(server.getsockname()[1], os.getpid(), flush=True)
signal.pause()
"""

BOTH_RANKS = """
import os
from datetime import timedelta

import torch
import torch.distributed as dist

RANK_LINE
dist.init_process_group("gloo", timeout=timedelta(seconds=5))
value = torch.tensor([1.0 + dist.get_rank()])
dist.all_reduce(value)
assert value.item() == 3.0
print("sum is right", flush=True)
dist.destroy_process_group()
"""
GIVEN_BY_HAND = 'os.environ["RANK"] = "0"'
AS_LAUNCHED = 'os.environ["RANK"]'

LAUNCHED = """
import pathlib, subprocess, sys

pathlib.Path("train.py").write_text(TRAINER)
sys.exit(subprocess.call([sys.executable, "-m", "torch.distributed.run", *FLAGS, "--nproc-per-node=2", "train.py"]))
"""


@contextlib.contextmanager
def holder(kind):
    """A process that listens on a port; gives the port and the process id."""
    program = subprocess.Popen([sys.executable, "-c", LISTENER, kind], stdout=subprocess.PIPE, text=True)
    port, pid = map(int, program.stdout.readline().split())
    try:
        yield port, pid
    finally:
        end(pid)
        program.wait()
        program.stdout.close()


def end(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until_free(port):
    for _ in range(100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(port, address="127.0.0.1", device="cpu"):
    """Rank 0 of a job of one rank: meet, add something up, leave."""
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", timeout=timedelta(seconds=5))
    value = torch.tensor([3.0], device=device)
    dist.all_reduce(value)
    dist.destroy_process_group()
    return value.item() == 3.0


def both_ranks(rank_line):
    return BOTH_RANKS.replace("RANK_LINE", rank_line)


@pytest.fixture(params=["second-job", "left-over-process", "two-masters"])
def config(request):
    """Who holds the port."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, run_script, measure):
    if config == "two-masters":
        run_script(both_ranks(GIVEN_BY_HAND), nproc=2)
        return
    with holder(config) as (port, _):
        try:
            train(port, device=device)
        finally:
            measure.recovers(lambda: train(free_port(), device=device))


@pytest.mark.workaround("free-port")
def test_free_port(config, run_script):
    if config == "two-masters":
        pytest.skip("nobody else holds the port")
    flags = ["--standalone"]
    code = LAUNCHED.replace("TRAINER", repr(both_ranks(AS_LAUNCHED))).replace("FLAGS", repr(flags))
    with holder(config) as (port, _):
        printed = run_script(code, env={"MASTER_PORT": str(port)})
    assert printed.count("sum is right") == 2


@pytest.mark.workaround("other-port")
def test_other_port(config, device):
    if config == "two-masters":
        pytest.skip("both ranks would take the other port too")
    with holder(config):
        assert train(free_port(), device=device)


@pytest.mark.workaround("end-the-old-process")
def test_end_the_old_process(config, device):
    if config != "left-over-process":
        pytest.skip("who holds the port is at work")
    with holder(config) as (port, pid):
        end(pid)
        wait_until_free(port)
        assert train(port, device=device)


@pytest.mark.workaround("one-master")
def test_one_master(config, run_script):
    if config != "two-masters":
        pytest.skip("there is one rank 0 already")
    assert run_script(both_ranks(AS_LAUNCHED), nproc=2).count("sum is right") == 2


@pytest.mark.dead_end("other-gpus")
def test_other_gpus(config, run_script):
    if config == "two-masters":
        run_script(both_ranks(GIVEN_BY_HAND), nproc=2, env={"CUDA_VISIBLE_DEVICES": "1"})
        return
    with holder(config) as (port, _):
        run_script(both_ranks(AS_LAUNCHED), env={"MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "1"})


@pytest.mark.dead_end("other-address")
def test_other_address(config, device):
    if config == "two-masters":
        pytest.skip("both ranks share an address whatever it is")
    with holder(config) as (port, _):
        train(port, "localhost", device)
