"""`pytest --kb` explains failed tests, and is silent otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
def test_known():
    raise RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16")

def test_unknown():
    raise KeyError("rows")

def test_fine():
    pass
"""


def pytest_run(folder: Path, *options: str) -> str:
    (folder / "test_it.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_it.py"]
    if "kb.integrations.pytest_plugin" not in options and not _registered():
        command[3:3] = ["-p", "kb.integrations.pytest_plugin"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def _registered() -> bool:
    from importlib.metadata import entry_points

    return any(point.value == "kb.integrations.pytest_plugin" for point in entry_points(group="pytest11"))


def test_a_known_failure_gets_a_section(tmp_path: Path) -> None:
    shown = pytest_run(tmp_path, "--kb")
    assert shown.count("kb: pytorch/linear-dtype-mismatch") == 1
    assert "2 failed, 1 passed" in shown


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert "kb:" not in pytest_run(tmp_path)
