"""Findings that an entry may keep for a while: `check-exceptions.json` in its folder.

Each names a code and a reason and ends on a day. One that is over, or that nothing needs any more, is a finding itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kb.lint.finding import Finding
from kb.models.base import Date, Line, Strict

NAME = "check-exceptions.json"
NEVER = frozenset({"catalogue-file", "evidence-invalid", "evidence-changed", "secret-left", "exception-invalid"})
"""What nobody may be excused from."""


class Exemption(Strict):
    """One finding that may stay."""

    code: Line
    field: str = ""
    """Of the entry; empty for all."""
    reason: Line
    until: Date


_FILE = TypeAdapter(tuple[Exemption, ...])


def applied(folder: Path, findings: Sequence[Finding], today: date) -> Iterator[Finding]:
    """The findings of one entry without those that are excused, and what is wrong with the excuses."""
    file = folder / NAME
    if not file.is_file():
        yield from findings
        return
    try:
        exemptions = _FILE.validate_json(file.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        yield Finding("exception-invalid", str(file), place, first["msg"], "a list of code, field, reason, until")
        yield from findings
        return
    used: set[int] = set()
    for finding in findings:
        number = _excuse(finding, exemptions)
        if number is None:
            yield finding
        else:
            used.add(number)
    for number, one in enumerate(exemptions):
        place = str(number)
        if one.code in NEVER:
            yield Finding("exception-invalid", str(file), place, f"{one.code} is never excused", "repair it")
        elif number not in used:
            yield Finding("exception-unneeded", str(file), place, f"nothing finds {one.code} here", "take it out")
        elif date.fromisoformat(str(one.until)) < today:
            message = f"the excuse for {one.code} ended on {one.until}: {one.reason}"
            yield Finding("exception-expired", str(file), place, message, "repair it, or argue anew for a later day")


def _excuse(finding: Finding, exemptions: Sequence[Exemption]) -> int | None:
    if finding.code in NEVER:
        return None
    for number, one in enumerate(exemptions):
        if one.code == finding.code and one.field in ("", finding.field):
            return number
    return None
