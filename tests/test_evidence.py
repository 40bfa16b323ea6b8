"""Evidence files: what is accepted, and which trials still speak of today's script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kb.digest import arm_digests
from kb.errors import EntryError, EvidenceError
from kb.evidence import control_tests, gpu_slug, load
from tests.runs import SCRIPT, document, trial, write

ENTRY = "pytorch/some-error"
DIGESTS = arm_digests(SCRIPT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "verify.py").write_text(SCRIPT)
    return tmp_path


def ours(arm: str, **changes: Any) -> dict[str, Any]:
    plain = trial(arm, **changes)
    return {**plain, "arm_digest": DIGESTS[plain["test"]]}


def run(**changes: Any) -> dict[str, Any]:
    return document([ours("reproduce"), ours("workaround", outcome="fixed")], **changes)


def refused(folder: Path) -> EntryError:
    found, (problem,) = load(folder, ENTRY)
    assert found == ()
    assert isinstance(problem, EvidenceError)
    assert problem.remedy
    return problem


def test_a_folder_without_evidence_is_fine(folder: Path) -> None:
    assert load(folder, ENTRY) == ((), ())


def test_runs_come_oldest_first(folder: Path) -> None:
    for moment in ("2026-11-22T10:00:00+02:00", "2026-11-22T09:00:00Z", "2026-10-01T00:00:00Z"):
        write(folder, run(started_at=moment))
    found, problems = load(folder, ENTRY)
    assert problems == ()
    assert [one.evidence.run.started_at for one in found] == [
        "2026-10-01T00:00:00Z",
        "2026-11-22T10:00:00+02:00",
        "2026-11-22T09:00:00Z",
    ]


def test_a_run_on_a_gpu_carries_its_name(folder: Path) -> None:
    file = write(folder, run(gpu="NVIDIA H100 80GB HBM3"))
    assert "_nvidia-h100-80gb-hbm3_" in file.name
    assert load(folder, ENTRY)[1] == ()


def test_trials_of_an_unchanged_script_are_fresh(folder: Path) -> None:
    write(folder, run())
    (found,), _ = load(folder, ENTRY)
    assert found.fresh == (True, True)


def test_reformatting_keeps_trials_fresh(folder: Path) -> None:
    write(folder, run())
    (folder / "verify.py").write_text("# a comment\n" + SCRIPT.replace("assert True", "assert (\n        True\n    )"))
    assert load(folder, ENTRY)[0][0].fresh == (True, True)


def test_only_the_arm_that_changed_goes_stale(folder: Path) -> None:
    write(folder, run())
    (folder / "verify.py").write_text(SCRIPT.replace("assert True", "assert 1"))
    assert load(folder, ENTRY)[0][0].fresh == (True, False)


@pytest.mark.parametrize("script", [None, "def broken(:"])
def test_without_a_readable_script_nothing_is_fresh(folder: Path, script: str | None) -> None:
    write(folder, run())
    (folder / "verify.py").unlink()
    if script is not None:
        (folder / "verify.py").write_text(script)
    (found,), problems = load(folder, ENTRY)
    assert found.fresh == (False, False)
    assert len(problems) == (script is not None)


def test_an_edited_file_is_refused(folder: Path) -> None:
    file = write(folder, run())
    file.write_text(file.read_text().replace('"fixed"', '"not_fixed"'))
    assert "it was edited" in refused(folder).detail


@pytest.mark.parametrize("name", ["run.json", "2026-11-22_cpu_12345678.txt", "2026-11-22_CPU_12345678.json"])
def test_other_names_are_refused(folder: Path, name: str) -> None:
    file = write(folder, run())
    file.rename(file.with_name(name))
    assert "is not called" in refused(folder).detail


def test_a_name_of_another_day_or_gpu_is_refused(folder: Path) -> None:
    file = write(folder, run())
    other = file.rename(file.with_name(file.name.replace("2026-11-22", "2026-11-21")))
    assert refused(folder).field == "run.started_at"
    other.rename(file.with_name(file.name.replace("_cpu_", "_nvidia-h100_")))
    assert refused(folder).field == "environment.gpu"


def test_evidence_of_another_entry_is_refused(folder: Path) -> None:
    write(folder, run(entry="pytorch/other-error"))
    assert refused(folder).field == "entry"


def test_a_control_that_nobody_ran_is_refused(folder: Path) -> None:
    write(folder, document([ours("reproduce", config="b"), ours("workaround", outcome="fixed", config="a")]))
    assert refused(folder).field == "trials.1.control"


def test_a_control_with_another_outcome_is_refused(folder: Path) -> None:
    write(folder, document([ours("reproduce", outcome="not_reproduced"), ours("workaround", outcome="fixed")]))
    assert refused(folder).field == "trials.1.control"


def test_a_trial_without_its_claim_is_refused(folder: Path) -> None:
    write(folder, document([ours("reproduce"), ours("workaround", id=None)]))
    assert refused(folder).field == "trials.1.id"


def test_a_moment_that_does_not_exist_is_refused(folder: Path) -> None:
    write(folder, run(started_at="2026-02-31T10:00:00Z"))
    assert refused(folder).field == "run.started_at"


def test_cuda_without_a_gpu_is_refused(folder: Path) -> None:
    data = run()
    data["environment"]["device"] = "cuda"
    write(folder, data)
    assert refused(folder).field == "environment.gpu"


def test_unknown_fields_and_repeated_keys_are_refused(folder: Path) -> None:
    write(folder, run() | {"success_rate": 1.0})
    assert refused(folder).field == "success_rate"
    next((folder / "evidence").iterdir()).write_text('{"entry": 1, "entry": 2}')
    assert "stands twice" in refused(folder).detail


def test_one_bad_file_leaves_the_others(folder: Path) -> None:
    write(folder, run())
    (folder / "evidence" / "notes.json").write_text(json.dumps(run()))
    found, problems = load(folder, ENTRY)
    assert (len(found), len(problems)) == (1, 1)


def test_controls_are_found_by_their_marker() -> None:
    assert control_tests(SCRIPT) == ("test_reproduces",)
    assert control_tests("@pytest.mark.refutes\nasync def test_it(): ...\ndef test_other(): ...") == ("test_it",)


def test_the_hardware_part_of_a_name() -> None:
    assert gpu_slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu_slug(None) == "cpu"
