"""Provenance files are written once and judged when read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kb.errors import EvidenceError
from kb.models.provenance import Place, Provenance, Search
from kb.provenance import load, problems, read, write
from tests.test_provenance_survey import LITERAL, look


def made(entry_id: str = "demo/x", **changes: object) -> Provenance:
    looks = (look("1.0", True).model_copy(update={"places": (Place(file="a.txt", line=3, form="text"),)}),)
    search = Search(package="demo", versions="", literal=LITERAL, origin="raised_by", looks=looks)
    plain = Provenance(
        schema_version=1, entry=entry_id, made_at="2026-11-22T10:00:00Z", kb_version="0.1", searches=(search,)
    )
    return plain.model_copy(update=changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "demo" / "x"
    path.mkdir(parents=True)
    return path


def test_what_was_written_is_read_again(folder: Path) -> None:
    later = made(made_at="2026-11-23T10:00:00Z")
    files = [write(folder, later), write(folder, made())]
    assert {file.name.partition("_")[0] for file in files} == {"2026-11-22", "2026-11-23"}
    assert load(folder) == (made(), later)
    assert problems(folder) == ()
    assert read(files[0], "demo/x") == later


def test_a_record_is_written_once(folder: Path) -> None:
    file = write(folder, made())
    before = file.read_bytes()
    with pytest.raises(EvidenceError, match="written once"):
        write(folder, made())
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text.replace('"stands": true', '"stands": false'), "it was edited"),
        (lambda text: text + " ", "it was edited"),
        (lambda _: "{}", "is missing"),
        (lambda _: "\x00", "not JSON"),
    ],
)
def test_an_edited_file_is_left_out_and_said(folder: Path, change: object, complaint: str) -> None:
    file = write(folder, made())
    file.write_text(change(file.read_text()))  # type: ignore[operator]
    assert load(folder) == ()
    assert any(complaint in str(problem) for problem in problems(folder)), problems(folder)


def test_a_file_of_another_entry_or_another_name_is_refused(folder: Path) -> None:
    other = write(folder, made("demo/other"))
    assert "move it below its entry" in problems(folder)[0].remedy
    other.rename(other.with_name("notes.json"))
    assert "DATE_DIGEST" in str(problems(folder)[0])


@pytest.mark.parametrize(
    ("looks", "complaint"),
    [
        ((look("1.0", True).model_copy(update={"version": "latest"}),), "'latest' is no version"),
        ((look("1.0", True).model_copy(update={"sha256": None}),), "names none"),
        ((look("1.0", None).model_copy(update={"reason": None}),), "does not say why"),
        ((look("1.0", False).model_copy(update={"files": 3}),), "counts other files"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(folder: Path, looks: tuple[object, ...], complaint: str) -> None:
    search = made().searches[0].model_copy(update={"looks": looks})
    file = write(folder, made(searches=(search,)))
    with pytest.raises(EvidenceError, match=complaint):
        read(file, "demo/x")


def test_an_entry_without_records_has_none(folder: Path) -> None:
    assert load(folder) == ()
    assert problems(folder) == ()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(folder: Path) -> None:
    (folder / "provenance").write_text("in the way")
    with pytest.raises(EvidenceError, match="--no-write"):
        write(folder, made())
