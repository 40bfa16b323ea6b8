"""Provenance: the write-once record of looking for an entry's message in published distributions."""

from __future__ import annotations

from typing import Literal

from kb.models.base import EntryId, Line, Sha256, Strict, Text, Timestamp

Form = Literal["text", "joined", "placeholders"]


class Place(Strict):
    """One place in which a literal stands."""

    file: Line
    """Path inside the wheel, slashes forward."""
    line: int | None
    """Line of a text file, counted from 1; null in a binary."""
    form: Form
    """`text`: as it is; `joined`: once adjacent string literals are joined; `placeholders`: with a part filled in."""


class Look(Strict):
    """One release on one platform: what its wheel holds, or why nobody looked."""

    version: Line
    previous: str | None
    """The release before it, among those that had a wheel when this was made; null for the oldest."""
    platform: Line
    """`any` for a wheel that runs everywhere, else the platform asked for, for example `linux-x86_64`."""
    wheel: Line | None
    """File name, null if none was fetched."""
    sha256: Sha256 | None
    size: int | None
    """Bytes of the wheel, null if unknown. Known for one that was too large to fetch."""
    stands: bool | None
    """Whether the literal stands in it; null if that was not found out."""
    files: int
    """In how many files of the wheel it stands."""
    places: tuple[Place, ...]
    """The first of them, one for each file."""
    reason: str | None
    """Why it was not looked at, or not whole; null if it was."""


class Search(Strict):
    """One literal in the releases of one distribution."""

    package: Line
    versions: str
    """PEP 440 range in which the entry says it stands, empty if it says nothing."""
    literal: Text
    origin: Literal["raised_by", "signature"]
    """`signature`: the entry claims no literal, so the longest constant part of its signature was looked for."""
    looks: tuple[Look, ...]


class Provenance(Strict):
    """One file below an entry's `provenance/` folder. Written once, never edited."""

    schema_version: Literal[1]
    entry: EntryId
    made_at: Timestamp
    kb_version: Line
    searches: tuple[Search, ...]
