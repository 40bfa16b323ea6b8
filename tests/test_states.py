"""What is said of one workaround or dead end, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import SCRIPT, fix, loaded, one_dead_end, one_fix, published, refuting_run, run, trial


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "verify.py").write_text(SCRIPT)
    return tmp_path


def test_a_fix_that_never_worked_is_refuted(folder: Path) -> None:
    found = one_fix(published(folder, run("wrong_result")))
    assert (found.state, found.success_rate) == ("refuted", 0.0)
    assert found.state_reason == "worked in 0 of 1 run on CPU, torch 2.13"


def test_a_dead_end_that_works_is_refuted(folder: Path) -> None:
    found = one_dead_end(published(folder, run(dead="works")))
    assert (found.state, found.fail_rate) == ("refuted", 0.0)


def test_an_arm_that_is_not_written_says_so(folder: Path) -> None:
    found = one_fix(published(folder, workarounds=[fix(verification={"unverifiable": "needs two GPUs"})]))
    assert (found.state, found.state_reason) == ("unverifiable", "needs two GPUs")
    found = one_fix(published(folder, workarounds=[fix(verification="verify.py::test_other")]))
    assert (found.state, found.state_reason) == ("unverifiable", "test_other is not written yet")
    (folder / "verify.py").unlink()
    assert one_fix(published(folder)).state_reason == "verify.py is not written yet"


def test_a_changed_script_makes_a_claim_stale(folder: Path) -> None:
    found = one_fix(published(folder, run(fresh=False)))
    assert (found.state, found.state_reason) == ("stale", "its script changed since the last run, 2026-11-22")
    found = one_fix(published(folder, run(fresh=[False, True, True])))
    assert found.state == "stale"
    assert "the reproduction changed" in found.state_reason


def test_a_claim_not_run_or_not_proven_is_unmeasured(folder: Path) -> None:
    assert one_fix(published(folder)).state_reason == "not run yet"
    file = loaded(
        [trial("reproduce", outcome="not_reproduced"), trial("workaround", outcome="fixed", control="not_reproduced")]
    )
    found = one_fix(published(folder, file))
    assert found.state == "unmeasured"
    assert "did not come" in found.state_reason


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("needs cuda", "unverifiable", "needs cuda"),
        ("its control was skipped: needs 2 GPUs, found 0", "unverifiable", "needs 2 GPUs, found 0"),
        ("needs peft >=0.17, not installed", "unmeasured", "skipped so far: needs peft >=0.17, not installed"),
    ],
)
def test_a_skipped_claim_says_what_it_needs(folder: Path, reason: str, state: str, words: str) -> None:
    skipped = {"outcome": "skipped", "reason": reason}
    file = loaded([trial("reproduce", **skipped), trial("workaround", control="skipped", **skipped)])
    found = one_fix(published(folder, file))
    assert (found.state, found.state_reason) == (state, words)


def test_contributed_runs_are_shown_and_move_nothing(folder: Path) -> None:
    record = published(folder, run(contributed_by="somebody"))
    assert one_fix(record).state == "unmeasured"
    assert one_fix(record).state_reason == "contributed runs only: worked in 1 of 1 run"
    assert one_fix(record).measured is None
    assert record.verification_tier == "sourced"
    assert record.evidence_count == 0


def test_dead_ends_of_a_refuted_claim_say_what_really_happens(folder: Path) -> None:
    found = one_dead_end(published(folder, refuting_run()))
    assert (found.state, found.state_reason) == ("refuted", "ran without an error in 1 of 1 run")
    found = one_dead_end(published(folder, refuting_run(dead="fails_differently")))
    assert found.state == "nothing_to_fix"
    assert found.state_reason.startswith("goes wrong in another way in 1 of 1 run")
    assert found.fail_rate is None
