"""A bundle runs where nothing of ours is installed, and its results come home unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kb.errors import UsageError
from kb.models.evidence import Evidence
from kb.verify import processes
from kb.verify.bundle import bundle, collect
from tests.verify_entries import HEAD, write_entry

ABSENT = ("pydantic", "typer", "sqlite_utils", "re2", "regex", "filelock", "platformdirs", "jsonschema", "torch")
pytestmark = pytest.mark.skipif(not processes.can_fork(), reason="needs processes that can be forked")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A catalogue of two entries."""
    fix = '@pytest.mark.workaround("use-two")\ndef test_use_two(config):\n    assert 1 / (config + 2) == 0.5\n'
    write_entry(tmp_path / "home", HEAD + fix)
    write_entry(tmp_path / "home", HEAD, id="python/other")
    return tmp_path / "home" / "entries"


@pytest.fixture
def node(home: Path, tmp_path: Path) -> Path:
    """A bundle of both, before it ran."""
    bundle(tmp_path / "node", sorted(home.glob("*/*")))
    return tmp_path / "node"


def run(node: Path, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs a bundle where importing any of our dependencies fails."""
    blocked = tmp_path / "blocked"
    blocked.mkdir(exist_ok=True)
    for name in ABSENT:
        (blocked / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    command = [sys.executable, "-P", str(node / "run.py"), "--device=cpu", *options]
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)


def test_a_bundle_runs_with_python_and_pytest_alone_and_its_results_come_home(
    node: Path, home: Path, tmp_path: Path
) -> None:
    done = run(node, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "python/zero  workaround use-two  [int]  fixed  control reproduced" in done.stdout
    results = sorted((node / "results").iterdir())
    assert len(results) == 2

    collected = collect(node / "results", home)
    assert (collected.present, collected.refused) == ([], [])
    assert sorted(path.relative_to(home).parts[:3] for path in collected.imported) == [
        ("python", "other", "evidence"),
        ("python", "zero", "evidence"),
    ]
    assert {path.name: path.read_bytes() for path in collected.imported} == {
        path.name: path.read_bytes() for path in results
    }
    for path in collected.imported:
        Evidence.model_validate_json(path.read_bytes(), strict=True)
    again = collect(node / "results", home)
    assert (again.imported, sorted(again.present)) == ([], sorted(collected.imported))


def test_a_bundle_holds_no_more_than_it_needs(node: Path) -> None:
    assert sorted(path.name for path in node.iterdir()) == ["bundle.json", "entries", "kb", "run.py"]
    assert {path.name for path in node.glob("entries/*/*/*")} == {"entry.json", "verify.py"}
    modules = {path.relative_to(node).as_posix() for path in node.rglob("kb/**/*.py")}
    outside = {name for name in modules if not name.startswith("kb/verify/")}
    assert outside == {"kb/__init__.py", "kb/digest.py", "kb/errors.py", "kb/lazy.py", "kb/redact.py"}
    assert "kb/verify/bundle.py" not in modules


def test_a_contradicted_claim_is_the_exit_code_of_the_node(tmp_path: Path) -> None:
    broken = HEAD + '@pytest.mark.workaround("use-two")\ndef test_use_two(config):\n    1 / config\n'
    write_entry(tmp_path / "home", broken)
    bundle(tmp_path / "node", [tmp_path / "home/entries/python/zero"])
    done = run(tmp_path / "node", tmp_path, "--case=int", "--contributor=jane")
    assert done.returncode == 1
    assert "! python/zero  workaround use-two  [int]  not_fixed" in done.stdout
    [file] = (tmp_path / "node/results").iterdir()
    assert Evidence.model_validate_json(file.read_bytes()).run.contributed_by == "jane"


def test_an_entry_the_bundle_lacks_is_refused(node: Path, tmp_path: Path) -> None:
    done = run(node, tmp_path, "python/third")
    assert (done.returncode, done.stdout) == (2, "not in this bundle: python/third\n")


def test_a_bundle_overwrites_nothing(node: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="not an empty folder"):
        bundle(node, [home / "python/zero"])


def test_an_entry_without_a_script_cannot_be_bundled(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no verify\.py"):
        bundle(tmp_path / "node", [tmp_path])


def test_evidence_that_was_tampered_with_stays_out(node: Path, home: Path, tmp_path: Path) -> None:
    assert run(node, tmp_path, "--case=int").returncode == 0
    first, second = sorted((node / "results").iterdir())
    first.write_text(first.read_text().replace('"reproduced"', '"not_reproduced"'))
    (node / "results" / "note.json").write_text("[]")
    collected = collect(node / "results", home)
    assert [path.name for path in collected.imported] == [second.name]
    assert {problem.file for problem in collected.refused} == {str(first), str(node / "results" / "note.json")}


def test_evidence_of_an_unknown_entry_and_of_a_taken_name_stays_out(node: Path, home: Path, tmp_path: Path) -> None:
    assert run(node, tmp_path, "--case=int").returncode == 0
    files = {json.loads(path.read_text())["entry"]: path for path in (node / "results").iterdir()}
    (home / "python/other/entry.json").unlink()
    taken = home / "python/zero/evidence" / files["python/zero"].name
    taken.parent.mkdir()
    taken.write_text("{}")
    collected = collect(node / "results", home)
    assert collected.imported == []
    assert taken.read_text() == "{}"
    assert sorted(problem.detail.rpartition("/")[2] for problem in collected.refused) == [
        f"{taken.name} has other content",
        "there is no such entry here",
    ]


def test_nothing_to_bring_home_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evidence files"):
        collect(tmp_path, tmp_path)
