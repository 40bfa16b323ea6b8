"""Every check has a fixture that breaks it and a page that explains it; the file's name is the code."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from kb.catalog import load
from kb.lint import check
from kb.lint.history import write_once
from kb.render import findings as shown
from tests.conftest import PROJECT, entry
from tests.runs import document, trial, write

FIXTURES = {path.stem: path for path in sorted((PROJECT / "tests/data/checks").glob("*.json"))}
PAGE = (PROJECT / "docs/checks.md").read_text(encoding="utf-8")
SAMPLE = "RuntimeError: the frobnicator of pytorch/some-error jammed at step 3\n"
SCRIPT = """\
import pytest

@pytest.mark.reproduces
def test_reproduces(): ...

@pytest.mark.workaround("oil-it")
def test_oil_it(): ...
"""


def put(folder: Path, name: str, text: str | None) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="utf-8")


def build(root: Path, fixture: dict[str, Any]) -> Path:
    """A sound entry, broken as the fixture says."""
    sound = entry()
    sound["workarounds"] = [{**sound["workarounds"][0], "verification": "verify.py::test_oil_it"}]
    data = sound | fixture.get("entry", {})
    folder = root / "pytorch/some-error"
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    for name, content in (
        ("entry.json", text), ("samples/one.txt", SAMPLE), ("samples/two.txt", "[rank1]: " + SAMPLE),
        ("samples/not-this.txt", "RuntimeError: the frobnicator ran\n"), ("verify.py", SCRIPT),
    ):  # fmt: skip
        put(folder, name, content)
    for name, content in fixture.get("files", {}).items():
        put(folder, name, json.dumps(data) if name == "entry.json" else content)
    if "other" in fixture:
        other = entry("another/some-error") | fixture["other"]
        put(root / "another/some-error", "entry.json", json.dumps(other, indent=2, ensure_ascii=False) + "\n")
    if "trials" in fixture:
        trials = [trial(**one) for one in fixture["trials"]]
        for one in trials:
            one["arm_digest"] = fixture.get("arm_digest") or arm_digest(folder)
        write(folder, document(trials))
    return folder


def arm_digest(folder: Path) -> str:
    from kb.digest import arm_digests

    return arm_digests((folder / "verify.py").read_text(encoding="utf-8"))["test_reproduces"]


def found(root: Path, fixture: dict[str, Any]) -> set[str]:
    folder = build(root, fixture)
    for name, content in fixture.get("clean", {}).items():
        put(root.parent / "clean", name, content)
    if "edit" in fixture:
        git(root, "init", "-q")
        for name, (before, _) in fixture["edit"].items():
            put(folder, name, before)
        git(root, "add", "-A")
        git(root, "-c", "user.email=a@example.org", "-c", "user.name=a", "commit", "-qm", "before")
        for name, (_, after) in fixture["edit"].items():
            put(folder, name, after)
        return {finding.code for finding in write_once(root, "HEAD")}
    pastes = sorted((root.parent / "clean").glob("*.txt"))
    return {finding.code for finding in check(load([root]), clean=pastes, today=date(2026, 11, 22))}


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("code", FIXTURES)
def test_each_code_has_a_fixture_that_breaks_it(tmp_path: Path, code: str) -> None:
    root = tmp_path / "entries"
    assert code in found(root, json.loads(FIXTURES[code].read_text(encoding="utf-8")))


def test_the_entry_all_fixtures_start_from_is_sound(tmp_path: Path) -> None:
    assert found(tmp_path / "entries", {}) == set()


def test_codes_fixtures_and_pages_are_the_same() -> None:
    sources = [*(PROJECT / "kb/lint").glob("*.py"), PROJECT / "kb/patterns.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    codes = set(re.findall(r'(?:Finding|Violation)\(\s*"([a-z0-9-]+)"', text)) | {"regex-not-re2", "regex-too-large"}
    assert set(FIXTURES) == codes
    assert set(re.findall(r"^## ([a-z0-9-]+)$", PAGE, re.MULTILINE)) == codes


def test_what_needs_no_judgement_is_repaired(tmp_path: Path) -> None:
    from kb.lint.text import fix

    for code in ("format", "secret-left"):
        root = tmp_path / code / "entries"
        folder = build(root, json.loads(FIXTURES[code].read_text(encoding="utf-8")))
        assert fix(folder)
        assert check(load([root])) == []
        assert fix(folder) == []


def test_an_excuse_holds_until_its_day(tmp_path: Path) -> None:
    fixture = json.loads(FIXTURES["exception-expired"].read_text(encoding="utf-8"))
    root = tmp_path / "entries"
    build(root, fixture)
    assert check(load([root]), today=date(2019, 12, 31)) == []
    assert [finding.code for finding in check(load([root]), today=date(2020, 1, 2))] == ["exception-expired"]


@pytest.mark.parametrize("format", shown.FORMATS)
def test_findings_are_shown_in_every_format(tmp_path: Path, format: str) -> None:
    root = tmp_path / "entries"
    build(root, {"entry": {"workarounds_zh": ["一", "二"]}})
    text = shown.render(check(load([root])), format)
    assert "zh-length" in text
    assert "one line each, in the same order" in text
    if format == "sarif":
        from sarif_pydantic import Sarif

        Sarif.model_validate_json(text)
