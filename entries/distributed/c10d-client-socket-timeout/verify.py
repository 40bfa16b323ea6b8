# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.2"]
# ///
"""One rank is at the meeting point and the other is not, or not there.

`rendezvous` is the part of `init_process_group` that meets the other ranks over TCP. Both ranks of a job are threads
of this process here, on the loopback interface; two seconds stand for the half hour that a real job waits. An address
of the range reserved for documentation stands for a host that nobody can reach.
"""

import contextlib
import socket
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.requires(torch=">=2.2")

PATIENCE = 2.0
PREPARATION = 6.0
NOWHERE = "192.0.2.1"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meet(rank, port, address="127.0.0.1", patience=PATIENCE, prepare=0.0):
    """Join the job as this rank, and exchange something with the other one."""
    time.sleep(prepare)
    limit = timedelta(seconds=patience)
    store, rank, _ = next(dist.rendezvous(f"tcp://{address}:{port}", rank, 2, timeout=limit))
    store.set(f"from-{rank}", str(rank))
    store.wait([f"from-{1 - rank}"], timedelta(seconds=10))
    received = int(store.get(f"from-{1 - rank}"))
    store.set(f"read-{rank}", "yes")
    store.wait([f"read-{1 - rank}"], timedelta(seconds=10))
    return received


@contextlib.contextmanager
def other(rank, port, **options):
    """The other rank, which keeps its own errors to itself."""

    def work():
        with contextlib.suppress(Exception):
            meet(rank, port, **options)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)


def job(config, patience=PATIENCE, prepare_first=True, crash=True, same_values=False):
    """What the waiting rank gets from the other one. By default as broken as the configuration says."""
    port = free_port()
    late = PREPARATION if prepare_first else 0.0
    if config == "rank-one-late":
        with other(1, port, prepare=late, patience=patience):
            return meet(0, port, patience=patience) == 1
    if config == "rank-zero-crashed" and crash:
        return meet(1, port, patience=patience) == 0
    with other(0, port, prepare=late if config == "rank-zero-late" else 0.0, patience=patience):
        wrong = config == "other-port" and not same_values
        address = NOWHERE if config == "unreachable-address" and not same_values else "127.0.0.1"
        return meet(1, free_port() if wrong else port, address, patience) == 0


@pytest.fixture(params=["rank-zero-late", "rank-one-late", "rank-zero-crashed", "other-port", "unreachable-address"])
def config(request):
    """Why the other rank is not met."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, measure):
    try:
        job(config)
    finally:
        measure.recovers(lambda: job("rank-zero-late", prepare_first=False))


@pytest.mark.workaround("repair-rank-zero")
def test_repair_rank_zero(config):
    if config != "rank-zero-crashed":
        pytest.skip("rank 0 is sound")
    assert job(config, crash=False)


@pytest.mark.workaround("meet-first")
def test_meet_first(config):
    if not config.endswith("late"):
        pytest.skip("no rank is busy")
    assert job(config, prepare_first=False)


@pytest.mark.workaround("reachable-address")
def test_reachable_address(config):
    if config not in ("other-port", "unreachable-address"):
        pytest.skip("the ranks agree on the address already")
    assert job(config, same_values=True)


@pytest.mark.workaround("longer-timeout")
def test_longer_timeout(config):
    if not config.endswith("late"):
        pytest.skip("the other rank never comes")
    assert job(config, patience=8 * PATIENCE)


@pytest.mark.dead_end("longer-timeout-for-nobody")
def test_longer_timeout_for_nobody(config):
    if config.endswith("late"):
        pytest.skip("the other rank comes in the end")
    job(config, patience=2 * PATIENCE)


@pytest.mark.dead_end("transport-variables")
def test_transport_variables(config, monkeypatch):
    if config.endswith("late"):
        pytest.skip("the other rank is busy, whatever carries the tensors")
    for name, value in {"NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    job(config)
