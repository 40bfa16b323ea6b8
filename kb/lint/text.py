"""Checks of the files of an entry as text: what is left to write, secrets, and the form of the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from kb.catalog import LoadedEntry
from kb.lint.finding import Finding
from kb.redact import redact
from kb.scaffold import TODO


def todo_left(loaded: LoadedEntry) -> Iterator[Finding]:
    """A new folder says TODO where a person has to write."""
    file = loaded.folder / "entry.json"
    for field, text in _texts(json.loads(file.read_text(encoding="utf-8"))):
        if text.startswith(TODO) or text == "todo" or text.endswith("/TODO"):
            yield Finding("todo-left", str(file), field, "is still to be written", "write it, or take the field out")
    script = loaded.folder / "verify.py"
    if script.is_file() and TODO in script.read_text(encoding="utf-8", errors="replace"):
        yield Finding("todo-left", str(script), "", "an arm is still to be written", "write it, or take the claim out")


def secrets(loaded: LoadedEntry) -> Iterator[Finding]:
    """Pastes carry tokens, keys and addresses of people; entries must not."""
    for path in sorted([loaded.folder / "entry.json", *loaded.folder.glob("samples/*.txt")]):
        text = path.read_bytes().decode("utf-8", "replace")
        if redact(text) != text:
            line = next(
                n
                for n, part in enumerate(text.split("\n"), start=1)
                if redact(part) != part or n == text.count("\n") + 1
            )
            yield Finding(
                "secret-left",
                str(path),
                f"line {line}",
                "holds a secret or somebody's address",
                "`kb check --fix` redacts samples",
            )


def formatted(loaded: LoadedEntry) -> Iterator[Finding]:
    """One form for all, so that changes show what changed."""
    file = loaded.folder / "entry.json"
    text = file.read_text(encoding="utf-8")
    if text != canonical(text):
        yield Finding("format", str(file), "", "is not in the common form", "`kb check --fix` writes it")


def dates(loaded: LoadedEntry) -> Iterator[Finding]:
    """Nothing was seen on a day that has not come."""
    seen = loaded.entry.first_seen
    if seen and date.fromisoformat(str(seen)) > datetime.now(tz=UTC).date():
        yield Finding(
            "date-in-future", str(loaded.folder / "entry.json"), "first_seen", f"{seen} has not come", "correct the day"
        )


def canonical(text: str) -> str:
    """An entry's JSON in the common form: two spaces, characters as they are, one newline at the end."""
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def fix(folder: Path) -> list[Path]:
    """Repair what needs no judgement: the form of entry.json, secrets in samples. The files that changed."""
    changed = []
    file = folder / "entry.json"
    for path, repaired in (
        (file, canonical),
        *((sample, redact) for sample in sorted(folder.glob("samples/*.txt"))),
    ):
        try:
            before = path.read_text(encoding="utf-8")
            after = repaired(before)
        except (OSError, ValueError):
            continue  # what cannot be read is another finding
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key != "reported":
                yield from _texts(part, f"{field}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _texts(part, f"{field}.{number}".lstrip("."))


CHECKS: tuple[Callable[[LoadedEntry], Iterator[Finding]], ...] = (todo_left, secrets, formatted, dates)
