# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""The launcher's summary of a worker that native code ended with abort(). What it said before stands above.

So no arm makes the summary go away: a way out passes if it brings the reason to light. The runtimes of C++ and C abort
here by themselves, over an exception that nobody catches and over memory that is freed twice. Linux only.
"""

import pytest

pytestmark = pytest.mark.requires(torch=">=2.1", os="linux")

SUMMARY = "ChildFailedError"
REASONS = {"cxx-exception": "terminate called after throwing", "heap-corruption": "double free or corruption"}

FAULTS = {
    "cxx-exception": 'ctypes.CDLL("libstdc++.so.6")._ZSt17__throw_bad_allocv()',
    "heap-corruption": """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    buffer = libc.malloc(100_000)
    libc.free(buffer)
    libc.free(buffer)""",
}

TRAINER = """
import ctypes
import os
import time


def load_batch():
    FAULT


def main():
    if os.environ["RANK"] == "1":
        load_batch()
    time.sleep(30)


main()
"""

LAUNCHER = """
import pathlib
import subprocess
import sys

pathlib.Path("train.py").write_text(TRAINER)
launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *FLAGS, "train.py"]
ended = subprocess.run(launch)
"""


def trainer(config):
    return TRAINER.replace("FAULT", FAULTS[config].strip())


def launcher(code, *flags):
    """A program that starts torchrun with flags of its own."""
    return LAUNCHER.replace("TRAINER", repr(code)).replace("FLAGS", repr(flags))


def output_of(run_script, *arguments, **options):
    """Everything a program printed that was expected to fail."""
    with pytest.raises(Exception) as failure:
        run_script(*arguments, **options)
    return failure.value.output


@pytest.fixture(params=list(FAULTS))
def config(request):
    """What makes native code give up."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run_script(trainer(config), nproc=2, launcher="torchrun")


@pytest.mark.workaround("read-above-the-summary")
def test_read_above_the_summary(config, run_script):
    above, summary, below = output_of(run_script, trainer(config), nproc=2, launcher="torchrun").partition(SUMMARY)
    assert summary
    assert REASONS[config] in above
    assert REASONS[config] not in below


@pytest.mark.workaround("one-log-per-rank")
def test_one_log_per_rank(config, run_script):
    checks = f"""
assert ended.returncode != 0
logs = sorted(pathlib.Path("logs").glob("*/attempt_0/*/stderr.log"))
assert [log.parent.name for log in logs if {REASONS[config]!r} in log.read_text()] == ["1"]
print("found in the log of rank 1")
"""
    code = launcher(trainer(config), "--log-dir=logs", "--redirects=3", "--tee=3") + checks
    assert "found in the log of rank 1" in run_script(code)


@pytest.mark.workaround("faulthandler")
def test_faulthandler(config, run_script):
    shown = {"PYTHONFAULTHANDLER": "1"}
    above = output_of(run_script, trainer(config), nproc=2, env=shown, launcher="torchrun").partition(SUMMARY)[0]
    assert "Fatal Python error: Aborted" in above
    assert "in load_batch" in above


@pytest.mark.dead_end("catch-the-exception")
def test_catch_the_exception(config, run_script):
    guarded = trainer(config).replace(
        "        load_batch()\n",
        "        try:\n            load_batch()\n        except BaseException:\n            print('skipped a batch')\n",
    )
    run_script(guarded, nproc=2, launcher="torchrun")


@pytest.mark.dead_end("more-restarts")
def test_more_restarts(config, run_script):
    run_script(launcher(trainer(config), "--max-restarts=1") + "\nsys.exit(ended.returncode)\n")
