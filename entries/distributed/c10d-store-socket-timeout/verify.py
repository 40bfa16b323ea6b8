# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4"]
# ///
"""A rank waits for a key that rank 0 has not put into the store.

Without cards: what NCCL's identifier is for a group of cards, addresses are for gloo, and both go through the same
TCPStore under the same time limit. Both ranks are threads of this process, and two seconds stand for half an hour.
The words around the key differ: NCCL names `ncclUniqueId`, gloo only the key.
"""

import contextlib
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.requires(torch=">=2.4")

PATIENCE = 2.0
PREPARATION = 5.0


class Job:
    """The store of a job of two ranks, and what each of them does."""

    def __init__(self, patience=PATIENCE):
        self.patience = timedelta(seconds=patience)
        self.server = dist.TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False)

    def group(self, rank):
        """Join a gloo group; each rank puts its address into the store and waits for the other's."""
        store = dist.TCPStore("127.0.0.1", self.server.port, 3, is_master=False, timeout=self.patience)
        return dist.ProcessGroupGloo(dist.PrefixStore("default_pg", store), rank, 2, self.patience)

    def rank(self, rank, device, prepare=0.0, fails=False, calls=True):
        time.sleep(prepare)
        if fails:
            [].pop()
        if not calls:
            return None
        value = torch.full((4,), 1.0 + rank, device=device)
        self.group(rank).allreduce([value]).wait()
        return value.tolist()


@contextlib.contextmanager
def rank_zero(job, device, **what):
    """Rank 0 beside this one; its own errors are printed elsewhere."""

    def work():
        with contextlib.suppress(Exception):
            job.rank(0, device, **what)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)


def broken(config):
    """What rank 0 does instead of joining at once."""
    return {
        "rank-zero-busy": {"prepare": PREPARATION},
        "rank-zero-failed": {"fails": True},
        "rank-zero-elsewhere": {"calls": False},
    }[config]


def run(device, rank_zero_does, patience=PATIENCE):
    """What rank 1 gets."""
    job = Job(patience)
    with rank_zero(job, device, **rank_zero_does):
        return job.rank(1, device)


@pytest.fixture(params=["rank-zero-busy", "rank-zero-failed", "rank-zero-elsewhere"])
def config(request):
    """Why rank 0 does not join: long work, an error, or a branch without this collective."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        run(device, broken(config))
    finally:
        measure.recovers(lambda: run(device, {}) == [3.0] * 4)


@pytest.mark.workaround("repair-rank-zero")
def test_repair_rank_zero(config, device):
    if config != "rank-zero-failed":
        pytest.skip("rank 0 has no error")
    assert run(device, {**broken(config), "fails": False}) == [3.0] * 4


@pytest.mark.workaround("same-calls-on-every-rank")
def test_same_calls_on_every_rank(config, device):
    if config != "rank-zero-elsewhere":
        pytest.skip("rank 0 would make the same call")
    assert run(device, {**broken(config), "calls": True}) == [3.0] * 4


@pytest.mark.workaround("work-before-the-group")
def test_work_before_the_group(config, device):
    if config != "rank-zero-busy":
        pytest.skip("rank 0 has no work of its own")
    time.sleep(PREPARATION)  # a job of its own, before any rank starts
    assert run(device, {}) == [3.0] * 4


@pytest.mark.workaround("longer-timeout")
def test_longer_timeout(config, device):
    if config != "rank-zero-busy":
        pytest.skip("rank 0 never comes")
    assert run(device, broken(config), patience=4 * PREPARATION) == [3.0] * 4


@pytest.mark.dead_end("longer-timeout-for-a-lost-rank")
def test_longer_timeout_for_a_lost_rank(config, device):
    if config == "rank-zero-busy":
        pytest.skip("rank 0 comes in the end")
    run(device, broken(config), patience=2 * PATIENCE)


@pytest.mark.dead_end("transport-variables")
def test_transport_variables(config, device, monkeypatch):
    for name, value in {"NCCL_IB_DISABLE": "1", "NCCL_P2P_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    run(device, broken(config))
