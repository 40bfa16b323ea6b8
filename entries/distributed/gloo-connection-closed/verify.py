# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Rank 0 of two finds the connection to rank 1 gone, or never gets one.

Two ranks fit one line and average their gradients over gloo. Rank 1 meets a row it cannot read, runs out of batches
first, or leaves while a message of its is still under way. In the last configuration the ranks live in network
namespaces of their own, joined by one link, as two hosts are whose names resolve to the loopback address.
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
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.requires(torch=">=2.1", os="linux")

RESULT = "result: "
UNREADABLE = "n/a"


def rows(kind, rank):
    """The batches of a rank, as text; the target of a batch is twice its sum."""
    first, second = (
        [["1.0", "2.0"], ["0.5", "-1.0"], ["-0.5", "1.5"]],
        [["0.25", "1.0"], ["2.0", "-0.5"], ["1.0", "1.0"]],
    )
    texts = second if rank else first
    if kind == "peer-raised" and rank == 1:
        texts[1] = ["2.0", UNREADABLE]
    if kind == "peer-done-first" and rank == 1:
        texts.pop()
    return texts


def as_they_are(texts):
    return [float(text) for text in texts]


def zero_where_unreadable(texts):
    return [0.0 if text == UNREADABLE else float(text) for text in texts]


def build(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(2, 1).to(device, dtype)


def descend(model):
    for parameter in model.parameters():
        parameter.data -= 0.1 * parameter.grad
        parameter.grad = None


def loss_of(model, numbers):
    inputs = torch.tensor([numbers]).to(model.weight)
    return (model(inputs) - 2 * inputs.sum()).square().mean()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def join_group(seconds):
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))


def average(model):
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def train(kind, device, parse=as_they_are, equal=False, wait=False, barrier=False, retry=False, seconds=8):
    """The steps of one rank, and the weights afterwards; with `unwaited-send` those that rank 1 sends."""
    join_group(seconds)
    rank = dist.get_rank()
    model = build(device)
    batches = rows(kind, rank)
    if equal:
        fewest = torch.tensor(len(batches))
        dist.all_reduce(fewest, op=dist.ReduceOp.MIN)
        batches = batches[: int(fewest)]
    for texts in batches:
        loss_of(model, parse(texts)).backward()
        try:
            average(model)
        except RuntimeError:
            if not retry:
                raise
            average(model)
        descend(model)
    if kind == "unwaited-send":
        weights = torch.zeros_like(flat(model), device="cpu")
        if rank == 1:
            handle = dist.isend(flat(model).cpu(), 0)
            if wait:
                handle.wait()
            return None
        time.sleep(3)  # busy with something else
        dist.recv(weights, 1)
        return weights
    if barrier:
        dist.barrier()
    return flat(model)


def train_joined(kind, device, seconds=8):
    """The same with DDP, whose ranks may have different numbers of batches."""
    join_group(seconds)
    model = build(device)
    wrapped = DistributedDataParallel(model)
    with Join([wrapped]):
        for texts in rows(kind, dist.get_rank()):
            inputs = torch.tensor([as_they_are(texts)], device=device)
            (wrapped(inputs) - 2 * inputs.sum()).square().mean().backward()
            descend(model)
    weights = flat(model)
    dist.barrier()
    return weights


def tell(weights):
    if weights is not None:
        sys.stdout.write(f"{RESULT}{json.dumps(weights.double().tolist())}\n")  # one call: ranks must not mix
        sys.stdout.flush()


def reference(kind, steps):
    """One process in float64 with the batches of both ranks; a rank that is out of batches adds nothing."""
    model = build("cpu", torch.float64)
    for step in range(steps):
        batches = [rows(kind, rank)[step] for rank in range(2) if step < len(rows(kind, rank))]
        (sum(loss_of(model, zero_where_unreadable(texts)) for texts in batches) / 2).backward()
        descend(model)
    return flat(model)


HOSTS = """
import ctypes, os, subprocess, sys, time

NETWORK, USER = 0x40000000, 0x10000000

def apart():
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(NETWORK) and not libc.unshare(NETWORK | USER):
        for name, text in {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

def ip(words):
    return subprocess.run(["ip", *words.split()], capture_output=True).returncode

if len(sys.argv) == 1:
    apart()
    inner = subprocess.Popen([sys.executable, __file__, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    inner.stdout.readline()
    if ip("link add link0 type veth peer name link1") or ip(f"link set link1 netns {inner.pid}"):
        print("NO-NAMESPACES")
        inner.kill()
        sys.exit(0)
    ip("addr add 10.9.0.1/24 dev link0"), ip("link set lo up"), ip("link set link0 up")
    print("go", file=inner.stdin, flush=True)
    rank = 0
else:
    apart()
    print("apart", flush=True)
    input()
    os.dup2(2, 1)
    ip("addr add 10.9.0.2/24 dev link1"), ip("link set lo up"), ip("link set link1 up")
    time.sleep(1)
    rank = 1
os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="10.9.0.1", MASTER_PORT="29500")
os.environ.update({name: value.replace("#", str(rank)) for name, value in VARIABLES.items()})
os.execv(sys.executable, [sys.executable, "train.py"]) if rank else None
code = subprocess.call([sys.executable, "train.py"])
sys.exit(code or inner.wait())
"""


def program(kind, device, call=None, variables=None, **options):
    call = call or f"tell(train({kind!r}, {device!r}, **{options!r}))"
    code = f"{Path(__file__).read_text()}\n\n{call}\n"
    if kind != "loopback-address":
        return code
    start = f"open('train.py', 'w').write({code!r})\nVARIABLES = {variables or {}!r}\n"
    return start + HOSTS


def run(kind, device, run_script, launcher=None, **options):
    """What a program printed on both ranks."""
    nproc = 1 if kind == "loopback-address" else 2
    printed = run_script(program(kind, device, **options), nproc=nproc, launcher=launcher)
    if "NO-NAMESPACES" in printed:
        pytest.skip("this system does not allow network namespaces")
    return printed


def check(measure, kind, printed, steps=3):
    lines = [line for line in printed.splitlines() if line.startswith(RESULT)]
    assert len(lines) == (1 if kind == "unwaited-send" else 2), printed
    for line in lines:
        weights = torch.tensor(json.loads(line.removeprefix(RESULT)), dtype=torch.float64)
        measure.compare(weights, reference(kind, steps), tolerance=1e-5)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["peer-raised", "peer-done-first", "unwaited-send", "loopback-address"])
def config(request):
    """Why rank 1 cannot be reached."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, run_script):
    run(config, device, run_script)


@pytest.mark.workaround("repair-the-peer")
def test_repair_the_peer(config, device, run_script, measure):
    only_for(config, "peer-raised")
    call = f"tell(train({config!r}, {device!r}, parse=zero_where_unreadable))"
    check(measure, config, run(config, device, run_script, call=call))


@pytest.mark.workaround("read-the-peers-log")
def test_read_the_peers_log(config, device, run_script):
    only_for(config, "peer-raised")
    with pytest.raises(Exception) as failure:
        run(config, device, run_script, launcher="torchrun")
    assert f"could not convert string to float: '{UNREADABLE}'" in failure.value.output
    assert "in as_they_are" in failure.value.output


@pytest.mark.workaround("agree-on-the-steps")
def test_agree_on_the_steps(config, device, run_script, measure):
    only_for(config, "peer-done-first")
    check(measure, config, run(config, device, run_script, equal=True), steps=2)


@pytest.mark.workaround("join")
def test_join(config, device, run_script, measure):
    only_for(config, "peer-done-first")
    call = f"tell(train_joined({config!r}, {device!r}))"
    check(measure, config, run(config, device, run_script, call=call))


@pytest.mark.workaround("wait-for-sends")
def test_wait_for_sends(config, device, run_script, measure):
    only_for(config, "unwaited-send")
    check(measure, config, run(config, device, run_script, wait=True))


@pytest.mark.workaround("name-the-interface")
def test_name_the_interface(config, device, run_script, measure):
    only_for(config, "loopback-address")
    check(measure, config, run(config, device, run_script, variables={"GLOO_SOCKET_IFNAME": "link#"}))


@pytest.mark.dead_end("longer-timeout")
def test_longer_timeout(config, device, run_script):
    if config == "loopback-address":
        pytest.skip("a connection is tried until the time is over, whatever it is")
    run(config, device, run_script, seconds=3600)


@pytest.mark.dead_end("catch-and-repeat")
def test_catch_and_repeat(config, device, run_script):
    only_for(config, "peer-done-first")
    run(config, device, run_script, retry=True)


@pytest.mark.dead_end("barrier-at-the-end")
def test_barrier_at_the_end(config, device, run_script):
    only_for(config, "peer-done-first")
    run(config, device, run_script, barrier=True)


@pytest.mark.dead_end("nccl-interface")
def test_nccl_interface(config, device, run_script):
    only_for(config, "loopback-address")
    run(config, device, run_script, variables={"NCCL_SOCKET_IFNAME": "link#"})
