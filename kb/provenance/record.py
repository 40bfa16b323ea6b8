"""Provenance files of an entry: `provenance/<date>_<digest8>.json`, written once."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import InvalidVersion, Version

from kb.catalog import read_model
from kb.errors import EntryError, EvidenceError
from kb.models.provenance import Provenance

FOLDER = "provenance"
_NAME = re.compile(r"(?P<date>\d{4}-\d{2}-\d{2})_(?P<digest>[0-9a-f]{8})\.json")


def load(folder: Path) -> tuple[Provenance, ...]:
    """All acceptable records of the entry in `folder`, oldest first. Never raises; `problems` has the others."""
    return _judged(folder)[0]


def problems(folder: Path) -> tuple[EntryError, ...]:
    """What is wrong with the provenance files of the entry in `folder`. Never raises."""
    return _judged(folder)[1]


def read(file: Path, entry_id: str) -> Provenance:
    """One provenance file. Raises EvidenceError, or an ExceptionGroup of them, if it is not acceptable."""
    record = read_model(file, Provenance, EvidenceError)
    try:
        made = _moment(record.made_at)
    except ValueError as error:
        raise EvidenceError(str(file), "made_at", f"is no moment: {error}", "run `kb provenance` again") from None
    name = _NAME.fullmatch(file.name)
    if not name:
        remedy = "keep the name `kb provenance` gave it"
        raise EvidenceError(str(file), "", "is not called DATE_DIGEST.json", remedy)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    if name["digest"] != digest:
        message = f"its content has the digest {digest}, its name says {name['digest']}: it was edited"
        raise EvidenceError(str(file), "", message, "it is written once: restore it, or run `kb provenance` again")
    if name["date"] != made.date().isoformat():
        message = f"its name says {name['date']}, its content {record.made_at}"
        raise EvidenceError(str(file), "made_at", message, "keep the name `kb provenance` gave it")
    if record.entry != entry_id:
        message = f"is of `{record.entry}`, found below `{entry_id}`"
        raise EvidenceError(str(file), "entry", message, "move it below its entry")
    _check_looks(file, record)
    return record


def write(folder: Path, record: Provenance) -> Path:
    """Write a record below the entry in `folder` and return its file. Raises EvidenceError if that cannot be."""
    data = (json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n").encode()
    name = f"{_moment(record.made_at).date().isoformat()}_{hashlib.sha256(data).hexdigest()[:8]}.json"
    file = folder / FOLDER / name
    try:
        file.parent.mkdir(exist_ok=True)
        with file.open("xb") as stream:
            stream.write(data)
    except OSError as failure:
        if file.exists():
            raise EvidenceError(str(file), "", "is there already, and is written once", "run it again") from None
        reason = failure.strerror or str(failure)
        raise EvidenceError(str(file), "", f"cannot be written: {reason}", "or print it with --no-write") from None
    return file


def _judged(folder: Path) -> tuple[tuple[Provenance, ...], tuple[EntryError, ...]]:
    found: list[Provenance] = []
    refused: list[EntryError] = []
    for file in _files(folder / FOLDER):
        try:
            found.append(read(file, "/".join(folder.resolve().parts[-2:])))
        except EntryError as problem:
            refused.append(problem)
        except ExceptionGroup as several:
            refused += [problem for problem in several.exceptions if isinstance(problem, EntryError)]
    return tuple(sorted(found, key=lambda record: _moment(record.made_at))), tuple(refused)


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    except OSError:
        return []


def _check_looks(file: Path, record: Provenance) -> None:
    for number, search in enumerate(record.searches):
        for position, look in enumerate(search.looks):
            field = f"searches.{number}.looks.{position}"
            if not _is_version(look.version) or not (look.previous is None or _is_version(look.previous)):
                raise EvidenceError(str(file), field, f"{look.version!r} is no version", "run it again")
            if look.stands is not None and look.sha256 is None:
                raise EvidenceError(str(file), field, "says what a wheel holds and names none", "run it again")
            if look.stands is None and not look.reason:
                raise EvidenceError(str(file), field, "was not looked at, and does not say why", "run it again")
            if bool(look.stands) != bool(look.files) or len(look.places) > look.files:
                raise EvidenceError(str(file), field, "counts other files than it found", "run it again")


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
