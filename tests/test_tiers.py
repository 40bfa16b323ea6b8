"""The tier of an entry and its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import H100, SCRIPT, SOURCES, dead_end, fix, loaded, one_fix, published, refuting_run, run, trial


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "verify.py").write_text(SCRIPT)
    return tmp_path


def test_an_imported_claim_is_what_it_is(folder: Path) -> None:
    reported = {"origin": "record.json", "record": {"success_rate": 0.95}}
    imported = [fix(verification={"unverifiable": "imported, nothing was run"})]
    record = published(folder, reported=reported, sources=[], workarounds=imported)
    assert record.verification_tier == "ai_generated"
    assert record.tier_reason == "imported from record.json, nothing was checked"
    assert published(folder, reported=reported).verification_tier == "sourced"


def test_sources_anywhere_in_an_entry_count_once_each(folder: Path) -> None:
    record = published(folder, sources=[], workarounds=[fix(sources=SOURCES)], dead_ends=[dead_end(sources=SOURCES)])
    assert (record.verification_tier, record.tier_reason) == ("sourced", "read in 1 source, not run yet")


def test_tiers_rise_with_what_was_shown(folder: Path) -> None:
    assert published(folder, loaded([trial("reproduce")])).verification_tier == "reproduced"
    assert published(folder, run("not_fixed")).verification_tier == "reproduced"
    assert published(folder, run("not_fixed", gpu=H100), run()).verification_tier == "verified_cpu"
    record = published(folder, run(), run(gpu=H100))
    assert record.verification_tier == "verified_cuda"
    assert record.tier_reason == (
        f"the error was raised in 1 of 1 run on {H100}, torch 2.13, "
        f"and the fix `oil-it` worked in 1 of 1 run on {H100}, torch 2.13"
    )


def test_a_run_that_raised_nothing_leaves_an_entry_sourced(folder: Path) -> None:
    record = published(folder, loaded([trial("reproduce", outcome="not_reproduced")]))
    assert record.verification_tier == "sourced"
    assert record.tier_reason.endswith("but the error was raised in 0 of 1 run on CPU, torch 2.13")


def test_a_changed_script_makes_an_entry_stale(folder: Path) -> None:
    record = published(folder, run(fresh=False))
    assert (record.verification_tier, record.tier_reason) == (
        "stale",
        "the script changed since the last run, 2026-11-22",
    )
    assert published(folder, run(fresh=[False, True, True])).verification_tier == "stale"
    assert published(folder, run(fresh=False), run()).verification_tier == "verified_cpu"


def test_an_entry_that_needs_hardware_says_which(folder: Path) -> None:
    skipped = loaded([trial("reproduce", outcome="skipped", reason="needs 2 GPUs, found 0")])
    record = published(folder, skipped)
    assert (record.verification_tier, record.tier_reason) == ("unverifiable", "needs 2 GPUs, found 0")
    missing = loaded([trial("reproduce", outcome="skipped", reason="needs peft, not installed")])
    assert published(folder, missing).verification_tier == "sourced"


def test_an_entry_whose_arms_cannot_be_written_says_why(folder: Path) -> None:
    claims = [fix(verification={"unverifiable": "needs sm_75"}), fix("b", verification={"unverifiable": "needs sm_75"})]
    record = published(folder, workarounds=claims)
    assert (record.verification_tier, record.tier_reason) == ("unverifiable", "needs sm_75")


def test_arms_that_are_only_not_written_yet_leave_an_entry_sourced(folder: Path) -> None:
    record = published(folder, workarounds=[fix(verification={"unverifiable": "not written yet"})])
    assert record.verification_tier == "sourced"


# --- refuted claims


def test_a_refuted_claim_leaves_nothing_to_fix(folder: Path) -> None:
    record = published(folder, refuting_run(), refuting_run(torch="2.11.0"))
    reason = "the error was raised in 0 of 4 runs on CPU, torch 2.11 and CPU, torch 2.13"
    assert (record.verification_tier, record.tier_reason) == ("refuted", reason)
    found = one_fix(record)
    assert (found.state, found.state_reason, found.success_rate, found.measured) == (
        "nothing_to_fix",
        reason,
        None,
        None,
    )
    assert (record.fix_success_rate, record.confidence, record.last_confirmed) == (None, None, None)
    assert record.reproduction is not None
    assert (record.reproduction.k, record.reproduction.n) == (0, 4)


@pytest.mark.parametrize("outcome", ["reproduced", "crashed", "timed_out", "wrong_result", "fails_differently"])
def test_one_bad_run_is_enough_to_stop_a_refutation(folder: Path, outcome: str) -> None:
    record = published(folder, refuting_run(outcome))
    assert record.verification_tier == "sourced"
    assert "a refutation did not hold" in record.tier_reason


def test_a_stale_refutation_is_stale(folder: Path) -> None:
    assert published(folder, refuting_run(fresh=False)).verification_tier == "stale"
