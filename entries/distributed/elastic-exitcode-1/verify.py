# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""The launcher's summary of workers that ended with exit code 1. What ended them is printed by the workers.

So no arm makes the summary go away: a way out passes if it brings the worker's own exception to light.
"""

import pytest

pytestmark = pytest.mark.requires(torch=">=2.1")

FAULT = "KeyError: 'labels'"
SUMMARY = "ChildFailedError"

TRAINER = """
import os
import time


def collate(rows):
    return [row["labels"] for row in rows]


def main():
    if os.environ["RANK"] in FAILING_RANKS:
        collate([{"input_ids": [1, 2]}])
    time.sleep(30)


if __name__ == "__main__":
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
    ranks = ("0", "1") if config == "every-rank" else ("1",)
    return TRAINER.replace("FAILING_RANKS", repr(ranks))


def launcher(config, *flags):
    """A program that starts torchrun with flags of its own."""
    return LAUNCHER.replace("TRAINER", repr(trainer(config))).replace("FLAGS", repr(flags))


def output_of(run_script, *arguments, **options):
    """Everything a program printed that was expected to fail."""
    with pytest.raises(Exception) as failure:
        run_script(*arguments, **options)
    return failure.value.output


@pytest.fixture(params=["one-rank", "every-rank"])
def config(request):
    """Which workers raise; the launcher ends the others."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run_script(trainer(config), nproc=2, launcher="torchrun")


@pytest.mark.workaround("read-above-the-summary")
def test_read_above_the_summary(config, run_script):
    printed = output_of(run_script, trainer(config), nproc=2, launcher="torchrun")
    above, summary, below = printed.partition(SUMMARY)
    assert FAULT in above
    assert "in collate" in above
    assert summary
    assert FAULT not in below


@pytest.mark.workaround("record-decorator")
def test_record_decorator(config, run_script):
    recorded = trainer(config).replace(
        "\ndef main", "\nfrom torch.distributed.elastic.multiprocessing.errors import record\n\n\n@record\ndef main"
    )
    printed = output_of(run_script, recorded, nproc=2, launcher="torchrun")
    root = printed.partition(SUMMARY)[2].partition("Root Cause (first observed failure)")[2]
    assert FAULT in root
    assert "in collate" in root
    assert "error_file: <N/A>" not in root


@pytest.mark.workaround("one-log-per-rank")
def test_one_log_per_rank(config, run_script):
    flags = ["--log-dir=logs", "--redirects=3", "--tee=3"]
    checks = f"""
assert ended.returncode != 0
logs = sorted(pathlib.Path("logs").glob("*/attempt_0/*/stderr.log"))
assert [log.parent.name for log in logs] == ["0", "1"]
failed = [log.parent.name for log in logs if {FAULT!r} in log.read_text()]
assert failed in (["1"], ["0", "1"]), failed
print("ranks that raised:", failed)
"""
    assert "ranks that raised" in run_script(launcher(config, *flags) + checks)


@pytest.mark.workaround("rerun-one-process")
def test_rerun_one_process(config, run_script):
    alone = trainer(config).replace('os.environ["RANK"]', '"1"')
    printed = output_of(run_script, alone)
    assert FAULT in printed
    assert SUMMARY not in printed


@pytest.mark.dead_end("more-restarts")
def test_more_restarts(config, run_script):
    run_script(launcher(config, "--max-restarts=1") + "\nsys.exit(ended.returncode)\n")


@pytest.mark.dead_end("verbose-communication")
def test_verbose_communication(config, run_script):
    shown = {"NCCL_DEBUG": "INFO", "TORCH_DISTRIBUTED_DEBUG": "DETAIL", "TORCH_CPP_LOG_LEVEL": "INFO"}
    run_script(trainer(config), nproc=2, env=shown, launcher="torchrun")


@pytest.mark.dead_end("longer-timeout")
def test_longer_timeout(config, run_script):
    patient = trainer(config).replace(
        "def main():\n",
        "def main():\n"
        "    import datetime\n"
        "    import torch.distributed\n"
        '    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(hours=5))\n',
    )
    run_script(patient, nproc=2, launcher="torchrun")
