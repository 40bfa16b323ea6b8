# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Workers that are killed because the job takes more host memory than it may.

A batch system is played by the program that starts torchrun: like Slurm or the kernel it looks at what the job holds
and kills the largest process with SIGKILL once that is above a limit. The limit leaves room for one process with the
checkpoint in memory, or for a loop that keeps nothing. Linux only.
"""

import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.1", os="linux")

MIB = 2**20
CHECKPOINT = 400 * MIB
STEPS, BATCH = 30, 20 * MIB

LOADS = """
import os, time, torch

with torch.device("meta"):
    model = torch.nn.Linear(1024, ROWS, bias=False)
state = torch.load(os.environ["CHECKPOINT"], map_location="cpu", weights_only=True, mmap=False)
model.load_state_dict(state, assign=True)
time.sleep(1.5)  # the other rank is loading too
print("checksum", model.weight[::64].double().sum().item(), flush=True)
"""

LEAKS = """
import gc, os, time, torch

weight = torch.ones(1, requires_grad=True)
total = 0.0
for step in range(STEPS):
    batch = torch.full((BATCH // 4,), float(step))
    loss = (batch * weight).mean()
    loss.backward()
    total += loss
    time.sleep(0.03)
print("checksum", float(total), flush=True)
"""

BATCH_SYSTEM = """
import os, pathlib, signal, subprocess, sys, time

def held(pid):
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))

def workers(pid):
    try:
        found = [task.read_text().split() for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for children in found for child in children]

pathlib.Path("train.py").write_text(TRAINER)
job = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", *FLAGS, "train.py"])
while job.poll() is None:
    sizes = {pid: held(pid) for pid in workers(job.pid)}
    if sum(sizes.values()) > LIMIT:
        os.kill(max(sizes, key=sizes.get), signal.SIGKILL)
        time.sleep(0.3)
    time.sleep(0.01)
sys.exit(job.returncode)
"""
BARE_PROCESS = 250 * MIB
"""What a process with torch holds of its own, generously."""


def limit(config):
    return 2 * BARE_PROCESS + CHECKPOINT + 100 * MIB if config == "every-rank-loads" else BARE_PROCESS + 8 * BATCH


def trainer(config):
    return LOADS if config == "every-rank-loads" else LEAKS


def ranks(config):
    return 2 if config == "every-rank-loads" else 1


def job(code, memory, nproc, *flags):
    """A program that runs the trainer under torchrun in so many bytes."""
    for name, value in {"STEPS": STEPS, "BATCH": BATCH, "ROWS": CHECKPOINT // 4096}.items():
        code = code.replace(name, str(value))
    flags = [f"--nproc-per-node={nproc}", *flags]
    return BATCH_SYSTEM.replace("TRAINER", repr(code)).replace("FLAGS", repr(flags)).replace("LIMIT", str(memory))


def reference(config):
    if config == "every-rank-loads":
        return weights()[::64].double().sum().item()
    return float(sum(range(STEPS)))


def weights():
    return torch.arange(CHECKPOINT // 4, dtype=torch.float32).remainder(97).view(-1, 1024)


def check(measure, config, printed, expected_ranks):
    found = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("checksum")]
    assert len(found) == expected_ranks, printed
    for checksum in found:
        measure.compare(checksum, reference(config), tolerance=1e-6)


@pytest.fixture(params=["every-rank-loads", "graphs-kept"])
def config(request):
    """What the memory is needed for."""
    return request.param


@pytest.fixture
def env(config, tmp_path):
    """Where the checkpoint lies, which no rank writes."""
    path = tmp_path / "model.pt"
    if config == "every-rank-loads":
        torch.save({"weight": weights()}, path)
    return {"CHECKPOINT": str(path), "OMP_NUM_THREADS": "1"}


@pytest.mark.reproduces
def test_reproduces(config, env, run_script):
    run_script(job(trainer(config), limit(config), ranks(config)), env=env)


@pytest.mark.workaround("load-once")
def test_load_once(config, env, run_script, measure):
    if config != "every-rank-loads":
        pytest.skip("nothing is loaded")
    code = trainer(config).replace("mmap=False", "mmap=True")
    check(measure, config, run_script(job(code, limit(config), ranks(config)), env=env), 2)


@pytest.mark.workaround("stop-the-leak")
def test_stop_the_leak(config, env, run_script, measure):
    if config != "graphs-kept":
        pytest.skip("nothing grows")
    code = trainer(config).replace("total += loss\n", "total += loss.item()\n")
    check(measure, config, run_script(job(code, limit(config), 1), env=env), 1)


@pytest.mark.workaround("more-memory")
def test_more_memory(config, env, run_script, measure):
    code = job(trainer(config), limit(config) + 2 * CHECKPOINT, ranks(config))
    check(measure, config, run_script(code, env=env), ranks(config))


@pytest.mark.workaround("fewer-ranks")
def test_fewer_ranks(config, env, run_script, measure):
    if config != "every-rank-loads":
        pytest.skip("there is one rank already")
    check(measure, config, run_script(job(trainer(config), limit(config), 1), env=env), 1)


@pytest.mark.dead_end("empty-cuda-cache")
def test_empty_cuda_cache(config, env, run_script):
    collect = "import gc\n{0}gc.collect()\n{0}torch.cuda.empty_cache()\n"
    code = trainer(config).replace("model.load_state_dict", collect.format("") + "model.load_state_dict")
    code = code.replace("    total += loss\n", "    total += loss\n    " + collect.format("    "))
    run_script(job(code, limit(config), ranks(config)), env=env)


@pytest.mark.dead_end("more-restarts")
def test_more_restarts(config, env, run_script):
    run_script(job(trainer(config), limit(config), ranks(config), "--max-restarts=1"), env=env)
