"""What a wheel holds: every file is streamed out of the archive and searched. Nothing is written, nothing is run."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from kb.models.provenance import Place
from kb.provenance import strings

PLACES = 5
"""Places that are kept for each literal."""
LARGEST_MEMBER = 8 * 2**30
LARGEST_WHOLE = 24 * 2**30
"""Bytes a wheel may unpack to; the largest real ones reach a fifth of it."""
MOST_MEMBERS = 200_000
_CHUNK = 4 * 2**20
_TEXT = 32 * 2**20
"""Bytes up to which a file is read at once, so that lines can be counted."""
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Only these are unpacked piece by piece; a piece of the others may grow to any size at once."""
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


class WheelRefusedError(Exception):
    """The archive as a whole cannot be looked at. `str()` says why, in one line."""


@dataclass
class Found:
    """Where one literal stands."""

    files: int = 0
    places: list[Place] = field(default_factory=list)

    def add(self, place: Place) -> None:
        """One more file in which it stands."""
        self.files += 1
        if len(self.places) < PLACES:
            self.places.append(place)


@dataclass(frozen=True)
class Scan:
    """What was found of each literal, and which files could not be read."""

    found: Mapping[str, Found]
    unread: tuple[str, ...]
    """One line for each file, with its reason."""


def scan(wheel: Path, literals: Sequence[str], *, largest: int = LARGEST_MEMBER, whole: int = LARGEST_WHOLE) -> Scan:
    """Look for all literals in every file of a wheel.

    A file that unpacks to more than `largest` bytes is left unread. Raises WheelRefusedError for what is no wheel, or
    unpacks to more than `whole` bytes.
    """
    found = {literal: Found() for literal in literals}
    unread: list[str] = []
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in _members(archive, whole):
                problem = _search(archive, member, found, largest)
                if problem:
                    unread.append(f"{_name(member)}: {problem}")
    except _BROKEN as failure:
        raise WheelRefusedError(f"is no archive that can be read: {_line(failure)}") from None
    return Scan(found, tuple(unread))


def _members(archive: zipfile.ZipFile, whole: int) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise WheelRefusedError(f"holds {len(members)} files")
    unpacked = sum(member.file_size for member in members)
    if unpacked > whole:
        raise WheelRefusedError(f"unpacks to {unpacked // 2**20} MiB")
    return [member for member in members if _is_content(member)]


def _is_content(member: zipfile.ZipInfo) -> bool:
    """Whether an installer would put this file, as it is, below the place of installation."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if member.is_dir() or path.is_absolute() or ".." in path.parts or not path.parts:
        return False
    if stat.S_ISLNK(member.external_attr >> 16):
        return False
    # Descriptions and file lists quote messages without raising them.
    return not path.parts[0].endswith(".dist-info")


def _search(archive: zipfile.ZipFile, member: zipfile.ZipInfo, found: Mapping[str, Found], largest: int) -> str | None:
    """Search one file; why it was not read whole, None if it was."""
    if member.file_size > largest:
        return f"unpacks to {member.file_size // 2**20} MiB"
    if member.compress_type not in _BOUNDED:
        return "is packed in a way that wheels are not"
    try:
        with archive.open(member) as stream:
            if member.file_size > _TEXT:
                # Never more than the archive declares, whatever the stream holds.
                hits = _stream(stream, member.file_size, list(found))
                places = {literal: Place(file=_name(member), line=None, form="text") for literal in hits}
            else:
                places = _whole(_name(member), stream.read(_TEXT + 1), list(found))
    except _BROKEN as failure:
        return f"cannot be read: {_line(failure)}"
    for literal, place in places.items():
        found[literal].add(place)
    return None


def _stream(stream: IO[bytes], size: int, literals: Sequence[str]) -> set[str]:
    sought = {literal: literal.encode() for literal in literals}
    overlap = max(map(len, sought.values()), default=1) - 1
    hits: set[str] = set()
    tail = b""
    left = size
    while left > 0 and (data := stream.read(min(_CHUNK, left))):
        left -= len(data)
        window = tail + data
        hits |= {literal for literal, needle in sought.items() if literal not in hits and needle in window}
        tail = window[-overlap:] if overlap else b""
    return hits


def _whole(name: str, data: bytes, literals: Sequence[str]) -> dict[str, Place]:
    binary = b"\0" in data[:8192]
    places: dict[str, Place] = {}
    for literal in literals:
        at = data.find(literal.encode())
        if at >= 0:
            line = None if binary else data.count(b"\n", 0, at) + 1
            places[literal] = Place(file=name, line=line, form="text")
    if name.endswith(".py") and not binary:
        missing = [literal for literal in literals if literal not in places]
        for literal, (line, form) in strings.find(data, missing).items():
            places[literal] = Place(file=name, line=line, form=form)
    return places


def _name(member: zipfile.ZipInfo) -> str:
    return " ".join(member.filename.replace("\\", "/").splitlines()) or "?"


def _line(failure: BaseException) -> str:
    return " ".join(str(failure).split()) or type(failure).__name__
