"""From a script to a rate: run, keep, show, and notice when a script has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import entry
from tests.test_cli import kb

SCRIPT = '''\
# /// script
# dependencies = ["pytest"]
# ///
import pytest


@pytest.fixture(params=["dry", "rusty"])
def config(request):
    return request.param


LIBRARY = """
def turn(oiled):
    if not oiled:
        raise RuntimeError("the frobnicator of pytorch/some-error jammed at step 3")
    return 1.0
"""
# An error that the script raises by itself would prove nothing: it has to come out of a library.
exec(compile(LIBRARY, "frobnicator.py", "exec"))


@pytest.mark.reproduces
def test_reproduces(config, device):
    turn(oiled=False)


@pytest.mark.dead_end("hit-it")
def test_hit_it(config, device):
    turn(oiled=False)


@pytest.mark.workaround("oil-it")
def test_oil_it(config, device, measure):
    measure.compare(measure(lambda: turn(oiled=True)), 1.0, 0.01)
'''


@pytest.fixture
def root(catalogue: Callable[..., Path]) -> Path:
    data = entry()
    data["workarounds"] = [{**data["workarounds"][0], "verification": "verify.py::test_oil_it"}]
    data["dead_ends"] = [
        {"id": "hit-it", "action": "Hit it.", "why_fails": "It is dry.", "verification": "verify.py::test_hit_it"}
    ]
    folder = catalogue(data)
    (folder / data["id"] / "verify.py").write_text(SCRIPT)
    return folder


def verify(root: Path, *more: str):  # type: ignore[no-untyped-def]
    return kb("verify", "pytorch/some-error", "--entries", root, "--device", "cpu", "--yes", *more)


def test_a_run_becomes_evidence_a_rate_and_a_reason(root: Path) -> None:
    done = verify(root, "--evidence", str(root))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[1]: line[3] if line[1] == "workaround" else line[-3:] for line in lines[1:]}["workaround"] == "2/2"
    (file,) = (root / "pytorch" / "some-error" / "evidence").glob("*.json")
    assert file.name.split("_")[1] == "cpu"
    record = json.loads(kb("show", "pytorch/some-error", "-f", "json", "--entries", root).stdout)
    assert record["verification_tier"] == "verified_cpu"
    assert record["workarounds"][0]["success_rate"] == 1.0
    assert record["dead_ends"][0]["fail_rate"] == 1.0
    assert 0 < record["confidence"] < 1
    assert record["evidence_count"] == 1
    table = kb("rates", "pytorch/some-error", "--entries", root).stdout
    assert "oil-it" in table
    assert "2/2" in table
    answer = kb(
        "match", "--entries", root, stdin="RuntimeError: the frobnicator of pytorch/some-error jammed at step 7\n"
    )
    assert "1st: 2 of 2 on CPU (95 %: 0.34–1.00), removes the cause" in " ".join(answer.stdout.split())
    assert "failed in 2 of 2 on CPU" in " ".join(answer.stdout.split())


def test_a_changed_script_makes_its_evidence_stale_and_a_new_run_fresh(root: Path) -> None:
    verify(root, "--evidence", str(root))
    assert (
        "nothing is stale"
        in kb("verify", "pytorch/some-error", "--stale", "--entries", root, "--device", "cpu", "--yes").stderr
    )
    script = root / "pytorch" / "some-error" / "verify.py"
    script.write_text(SCRIPT.replace("1.0, 0.01", "1.0, 0.02"))
    record = json.loads(kb("show", "pytorch/some-error", "-f", "json", "--entries", root).stdout)
    assert (record["workarounds"][0]["state"], record["dead_ends"][0]["state"]) == ("stale", "measured")
    again = verify(root, "--stale", "--evidence", str(root))
    assert again.returncode == 0
    record = json.loads(kb("show", "pytorch/some-error", "-f", "json", "--entries", root).stdout)
    assert record["workarounds"][0]["state"] == "measured"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("measure(lambda: turn(oiled=True)), 1.0", "measure(lambda: turn(oiled=True)), 7.0", "wrong_result"),
        ('@pytest.mark.dead_end("hit-it")\ndef test_hit_it(config, device):\n    turn(oiled=False)', '@pytest.mark.dead_end("hit-it")\ndef test_hit_it(config, device):\n    turn(oiled=True)', "works"),
        ('raise RuntimeError("the frobnicator', 'raise KeyError("some other thing', "not_reproduced"),
    ],
)  # fmt: skip
def test_a_claim_that_a_run_contradicts_is_said_and_kept(root: Path, old: str, new: str, said: str) -> None:
    script = root / "pytorch" / "some-error" / "verify.py"
    script.write_text(SCRIPT.replace(old, new))
    done = verify(root, "--evidence", str(root))
    assert done.returncode == 1
    assert said in done.stdout
    assert "contradicted" in done.stderr
    assert len(list((root / "pytorch" / "some-error" / "evidence").glob("*.json"))) == 1


def test_a_reproduction_that_another_entry_wins_is_no_reproduction(root: Path, catalogue: Callable[..., Path]) -> None:
    catalogue(
        entry(
            "pytorch/thief",
            signature="frobnicator of pytorch/some-error jammed at step 3",
            regex="frobnicator of pytorch/some-error jammed at step",
            supersedes=["pytorch/some-error"],
        )
    )
    done = verify(root)
    assert done.returncode == 1
    assert "what was raised ranks pytorch/thief first" in done.stderr


def test_nothing_runs_unasked(root: Path) -> None:
    done = kb("verify", "pytorch/some-error", "--entries", root)
    assert done.returncode == 2
    assert str(root / "pytorch" / "some-error" / "verify.py") in done.stderr
    assert "--yes" in done.stderr


def test_one_case_with_its_control(root: Path) -> None:
    done = verify(root, "--case", "oil-it", "--format", "json")
    assert sorted({row["arm"] for row in json.loads(done.stdout)}) == ["reproduce", "workaround"]


def test_what_was_raised_can_be_kept_as_samples_and_never_over_a_file(root: Path) -> None:
    samples = root / "pytorch" / "some-error" / "samples"
    samples.mkdir()
    (samples / "run-dry.txt").write_text("mine")
    verify(root, "--save-sample")
    assert (samples / "run-dry.txt").read_text() == "mine"
    kept = (samples / "run-rusty.txt").read_text()
    assert kept.startswith("Traceback")
    assert str(root) not in kept


def test_what_cannot_run_here_is_said(root: Path) -> None:
    script = root / "pytorch" / "some-error" / "verify.py"
    script.write_text(
        SCRIPT.replace(
            "\n\n\n@pytest.fixture", '\n\npytestmark = pytest.mark.requires(device="cuda")\n\n\n@pytest.fixture', 1
        )
    )
    done = verify(root)
    assert done.returncode == 3
    assert kb("verify", "--entries", root).returncode == 2
    assert kb("verify", "nowhere/nothing", "--entries", root).returncode == 2
