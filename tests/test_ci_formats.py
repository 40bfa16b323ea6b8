"""SARIF for code scanning, workflow commands for GitHub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sarif_pydantic import Sarif

TRACE = """\
Traceback (most recent call last):
  File "{place}/train.py", line 12, in main
    y = layer(x)
RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "job.log"
    file.write_text(TRACE.format(place=tmp_path), encoding="utf-8")
    return file


def match(folder: Path, *options: str, **environment: str) -> str:
    import os

    command = [sys.executable, "-m", "kb", "match", *options]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def test_a_result_stands_at_the_users_own_line(trace: Path) -> None:
    log: dict[str, Any] = json.loads(match(trace.parent, "job.log", "--format", "sarif"))
    Sarif.model_validate(log)
    (result,) = log["runs"][0]["results"]
    assert result["ruleId"] == "pytorch/linear-dtype-mismatch"
    assert result["level"] == "error"
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "train.py"}, "region": {"startLine": 12}}
    assert "Do first" in result["message"]["text"]
    (rule,) = log["runs"][0]["tool"]["driver"]["rules"]
    assert rule["id"] == result["ruleId"]
    assert rule["help"]["text"]


def test_several_inputs_make_one_log_and_strangers_none(trace: Path) -> None:
    (trace.parent / "other.log").write_text("KeyError: 'rows'\n", encoding="utf-8")
    log = json.loads(match(trace.parent, "job.log", "other.log", "job.log", "--format", "sarif"))
    Sarif.model_validate(log)
    assert len(log["runs"][0]["results"]) == 2
    assert len(log["runs"][0]["tool"]["driver"]["rules"]) == 1


def test_a_log_line_without_code_points_into_the_log(tmp_path: Path) -> None:
    (tmp_path / "a b.log").write_text("starting\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB\n", encoding="utf-8")  # fmt: skip
    log = json.loads(match(tmp_path, "a b.log", "--format", "sarif"))
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "a%20b.log"}, "region": {"startLine": 2}}


def test_an_annotation_for_each_match_and_the_whole_answer_in_the_summary(trace: Path) -> None:
    summary = trace.parent / "summary.md"
    shown = match(trace.parent, "job.log", "--format", "github", GITHUB_STEP_SUMMARY=str(summary))
    (line,) = shown.splitlines()
    assert line.startswith("::error file=train.py,line=12,title=pytorch/linear-dtype-mismatch (root)::RuntimeError")
    assert "%0ADo first" in line
    assert summary.read_text(encoding="utf-8").startswith("### pytorch/linear")


def test_nothing_in_a_paste_can_make_a_command(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(
        'Traceback (most recent call last):\n  File "a,line=1::b%0A::error::x.py", line 3, in f\n'
        "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16%0A::error::gotcha\n"
        "::set-output name=a::b\n",
        encoding="utf-8",
    )
    shown = match(tmp_path, "x.log", "--format", "github")
    assert len(shown.splitlines()) == 1
    assert "%0A::error" not in shown
    assert "file=a%2Cline=1%3A%3Ab%250A" in shown


def test_an_unknown_error_is_a_notice(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("KeyError: 'rows'\n", encoding="utf-8")
    assert match(tmp_path, "x.log", "--format", "github") == "::notice title=kb::x.log: no entry knows this error\n"
