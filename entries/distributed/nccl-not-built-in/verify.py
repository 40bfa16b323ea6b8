# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""The NCCL backend asked of a torch that was built without it: builds for the CPU, for Windows and for macOS.

Asked for by name when the group is made, as the half of a pair of backends, and for a second group beside one on gloo.
A torch with NCCL cannot show this; there the arms are skipped.
"""

import contextlib
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.requires(torch=">=2.1")


@pytest.fixture(params=["by-name", "for-one-device", "second-group"])
def config(request):
    """Where the backend is named."""
    if dist.is_nccl_available():
        pytest.skip("this torch has NCCL")
    return request.param


NAMED = {"by-name": "nccl", "for-one-device": "cpu:gloo,cuda:nccl", "second-group": "gloo"}


def data(device, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(device, dtype)
    return model, torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).to(device, dtype)


@contextlib.contextmanager
def group(backend, init_method=None):
    """A group of one."""
    meet = {"init_method": init_method} if init_method else {"store": dist.HashStore()}
    how = {} if backend is None else {"backend": backend}
    try:
        dist.init_process_group(**how, **meet, rank=0, world_size=1, timeout=timedelta(seconds=20))
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def train(config, device, backend="as named", second="nccl", **how):
    """The gradient of one step under DDP."""
    with group(NAMED[config] if backend == "as named" else backend, **how):
        beside = dist.new_group(backend=second) if config == "second-group" else None
        model, inputs = data(device)
        wrapped = DistributedDataParallel(model, process_group=beside)
        wrapped(inputs).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]


def reference():
    model, inputs = data("cpu", torch.float64)
    model(inputs).square().mean().backward()
    return [p.grad for p in model.parameters()]


def check(measure, result):
    measure.compare(result, reference(), tolerance=1e-4)


def best():
    return "nccl" if dist.is_nccl_available() else "gloo"


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        train(config, device)
    finally:
        measure.recovers(lambda: all(g.isfinite().all() for g in train(config, device, backend="gloo", second="gloo")))


@pytest.mark.workaround("take-what-is-there")
def test_take_what_is_there(config, device, measure):
    check(measure, train(config, device, backend=best(), second=best()))


@pytest.mark.workaround("name-no-backend")
@pytest.mark.requires(torch=">=2.6")
def test_name_no_backend(config, device, measure):
    check(measure, train(config, device, backend=None, second=None))


@pytest.mark.workaround("no-group-for-one-process")
def test_no_group_for_one_process(config, device, measure):
    model, inputs = data(device)
    model(inputs).square().mean().backward()
    check(measure, [p.grad for p in model.parameters()])


@pytest.mark.dead_end("another-meeting-point")
def test_another_meeting_point(config, device, tmp_path):
    train(config, device, init_method=(tmp_path / "meet").as_uri())


@pytest.mark.dead_end("guard-with-is-available")
def test_guard_with_is_available(config, device):
    if dist.is_available():
        train(config, device)


@pytest.mark.dead_end("variables")
def test_variables(config, device, monkeypatch):
    switches = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1", "USE_LIBUV": "0"}
    for name, value in {**switches, "TORCH_DISTRIBUTED_BACKEND": "gloo", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    train(config, device)
