"""`kb export`: the same catalogue gives the same bytes, links lead somewhere, nothing of the machine gets out."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from kb.errors import UsageError
from kb.layers import Layer
from kb.web.export import PYODIDE, export
from tests.conftest import PROJECT, entry


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    export([Layer("packaged", PROJECT / "entries")], out, url="https://example.org/kb")
    return out


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_records_keep_their_schema_and_are_listed(site: Path) -> None:
    listed = json.loads((site / "index.json").read_text(encoding="utf-8"))["entries"]
    lines = (site / "entries.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(listed) == len(lines) >= 200
    schema = Draft202012Validator(json.loads((site / "schemas/published.schema.json").read_text(encoding="utf-8")))
    for one in listed[::20]:
        record = json.loads((site / one["path"]).read_text(encoding="utf-8"))
        schema.validate(record)
        assert record["id"] == one["id"]


def test_every_link_leads_somewhere(site: Path) -> None:
    broken = set()
    for file in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', file.read_text(encoding="utf-8")):
            if not (file.parent / link).exists():
                broken.add((file.relative_to(site).as_posix(), link))
    assert not broken


def test_a_search_engine_finds_pages_by_the_message(site: Path) -> None:
    page = (site / "entries/pytorch/linear-dtype-mismatch.html").read_text(encoding="utf-8")
    assert "<title>RuntimeError: expected mat1 and mat2 to have the same dtype" in page
    sitemap = (site / "sitemap.xml").read_text(encoding="utf-8")
    assert "<loc>https://example.org/kb/entries/pytorch/linear-dtype-mismatch.html</loc>" in sitemap
    assert sitemap.count("<loc>") == len(list(site.rglob("*.html")))


def test_models_get_texts(site: Path) -> None:
    assert "https://example.org/kb/llms/pytorch.txt" in (site / "llms.txt").read_text(encoding="utf-8")
    text = (site / "llms/pytorch.txt").read_text(encoding="utf-8")
    assert "# pytorch/linear-dtype-mismatch (verified" in text
    assert re.search(r"Fix \(\d+ of \d+ on (?:cpu|cuda)\)", text)


def test_the_database_is_the_index_without_paths(site: Path) -> None:
    connection = sqlite3.connect(site / "provenfix.sqlite")
    assert connection.execute("select count(*) from entries where folder is not null").fetchone() == (0,)
    connection.close()
    assert str(PROJECT).encode() not in (site / "provenfix.sqlite").read_bytes()
    assert not any(str(PROJECT) in path.read_text(encoding="utf-8") for path in site.rglob("*.html"))


def test_the_same_catalogue_gives_the_same_bytes(tmp_path: Path, catalogue: Callable[..., Path]) -> None:
    root = catalogue(entry(), entry("cuda/other", transition_graph={"leads_to": ["pytorch/some-error"]}))
    layers = [Layer("packaged", root)]
    pyodide = tmp_path / "pyodide"
    pyodide.mkdir()
    for name in PYODIDE:
        (pyodide / name).write_text(name, encoding="utf-8")
    export(layers, tmp_path / "one", pyodide=pyodide)
    before = digests(tmp_path / "one")
    export(layers, tmp_path / "one", pyodide=pyodide)
    export(layers, tmp_path / "two", pyodide=pyodide)
    assert before == digests(tmp_path / "one") == digests(tmp_path / "two")
    assert "match/kb.zip" in before


def test_another_folder_is_not_wiped(tmp_path: Path, catalogue: Callable[..., Path]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(UsageError, match="holds something else"):
        export([Layer("packaged", catalogue(entry()))], tmp_path / "mine")
    assert (tmp_path / "mine/letter.txt").is_file()


def test_pyodide_that_is_none_is_refused(tmp_path: Path, catalogue: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"no pyodide\.mjs"):
        export([Layer("packaged", catalogue(entry()))], tmp_path / "site", pyodide=tmp_path)


def test_the_browsers_stand_ins_find_what_the_engines_find() -> None:
    """The published matcher has neither RE2 nor the automaton; both must mean the same."""
    import importlib.util

    import ahocorasick_rs

    spec = importlib.util.spec_from_file_location("stand_in", PROJECT / "kb/web/browser/stand_ins/ahocorasick_rs.py")
    assert spec is not None and spec.loader is not None
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    patterns, text = [b"abc", b"bc", b"c d", b"zz"], b"abc abcc d zzz"
    ours = stand_in.BytesAhoCorasick(patterns).find_matches_as_indexes(text, overlapping=True)
    real = ahocorasick_rs.BytesAhoCorasick(patterns).find_matches_as_indexes(text, overlapping=True)
    assert sorted(ours) == sorted(real)
