"""`kb match --try`: what a pattern that is being written hits, and what it would take from others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import entry


def tried(tmp_path: Path, *pastes: str, **changes: Any) -> tuple[int, dict[str, Any], str]:
    file = tmp_path / "entry.json"
    file.write_text(json.dumps(entry("pytorch/mine", **changes)), encoding="utf-8")
    names = []
    for number, text in enumerate(pastes):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
        names.append(str(tmp_path / f"{number}.txt"))
    command = [sys.executable, "-m", "kb", "match", *names, "--try", str(file)]
    told = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == told.returncode, told.stderr
    return told.returncode, json.loads(told.stdout), shown.stdout


def test_a_good_pattern_hits_its_paste_and_takes_nothing(tmp_path: Path) -> None:
    code, told, shown = tried(tmp_path, "RuntimeError: the frobnicator of pytorch/mine jammed at step 3\n")
    assert code == 0
    assert told["given"][0]["matched"] is True
    assert told["stolen"] == []
    assert "matched in line 1, comes first" in shown


def test_a_greedy_pattern_shows_whose_samples_it_takes(tmp_path: Path) -> None:
    code, told, shown = tried(
        tmp_path,
        regex="have the same dtype, but got.{0,200}",
        signature="RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16",
        supersedes=["pytorch/linear-dtype-mismatch"],
    )
    assert code == 1
    assert {one["before"] for one in told["stolen"]} >= {"pytorch/linear-dtype-mismatch"}
    assert "from pytorch/linear-dtype-mismatch" in shown


def test_a_miss_says_who_has_it(tmp_path: Path) -> None:
    code, _, shown = tried(
        tmp_path, "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16\n"
    )
    assert code == 1
    assert "not matched (pytorch/linear-dtype-mismatch is)" in shown


def test_a_file_that_is_no_entry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "entry.json").write_text('{"id": "x"}', encoding="utf-8")
    command = [sys.executable, "-m", "kb", "match", "--try", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "entry.json: " in done.stderr
