"""Which files hold logs, and of what kind each is. Everything is reached through fsspec, by path or by URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from glob import has_magic
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kb.errors import UsageError

Kind = Literal["text", "lines", "rows"]
PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""Suffixes of compressed files, and what fsspec calls the compression."""
_KINDS: Mapping[str, Kind] = {".jsonl": "lines", ".ndjson": "lines", ".parquet": "rows"}
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")
_STATE = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")


class Unit(NamedTuple):
    """One file, or a stretch of a large one."""

    path: str
    """As the file system calls it."""
    name: str
    """Relative to what was asked for, with forward slashes."""
    kind: Kind
    size: int
    """Bytes, of the stretch if it is one."""
    state: str
    """Changes when the file does."""
    modified: float | None
    """Seconds since 1970, None if the file system does not say."""
    start: int = 0
    """First byte of a stretch of lines, first row group of one of rows."""
    end: int | None = None
    """Half-open; None is the end of the file."""


def compression(path: str) -> str | None:
    """What a file is compressed with, by its suffix."""
    return PACKED.get(Path(path).suffix.lower())


def kind_of(path: str) -> Kind:
    """What a file holds: a log, a log in each line, or a log in each row."""
    plain = path[: -len(Path(path).suffix)] if compression(path) else path
    return _KINDS.get(Path(plain).suffix.lower(), "text")


def absolute(location: str) -> str:
    """A path as seen from everywhere on this machine; a URL stays as it is."""
    if "://" in location or "::" in location:
        return location
    return str(Path(location).expanduser().absolute())


def opened(location: str) -> tuple[Any, str]:
    """The file system of a path or URL, and what that file system calls it. Raises UsageError."""
    from fsspec.core import url_to_fs

    try:
        found: tuple[Any, str] = url_to_fs(location)
    except ImportError as error:
        raise UsageError(
            f"{location}: {error}", "install what fsspec needs for such addresses, as s3fs or gcsfs"
        ) from error
    except ValueError as error:
        raise UsageError(f"{location}: {error}", "a path, or a URL that fsspec knows") from error
    return found


def find(location: str) -> Iterator[Unit]:
    """Every file of a folder, a pattern, or a single file, in the order of names.

    In folders what begins with `.` or `_` is left out, as other programs leave markers so named. Raises UsageError if
    there is nothing.
    """
    system, root = opened(location)
    if system.isfile(root):
        yield _unit(system.info(root), root.rsplit("/", 1)[-1])
    elif system.isdir(root):
        yield from _walk(system, root, "")
    elif has_magic(root):
        fixed = root[: next(place for place, character in enumerate(root) if character in "*?[")]
        folder = fixed.rpartition("/")[0]
        for path, info in sorted(system.glob(root, detail=True).items()):
            name = path.removeprefix(folder).lstrip("/")
            if info["type"] == "file":
                yield _unit(info, name)
    else:
        raise UsageError(f"{location}: nothing there", "a folder, a file, a pattern such as 'logs/*.jsonl', or a URL")


def _walk(system: Any, folder: str, prefix: str) -> Iterator[Unit]:
    for info in sorted(system.ls(folder, detail=True), key=lambda info: str(info["name"])):
        path = str(info["name"]).rstrip("/")
        last = path.rsplit("/", 1)[-1]
        if path == folder.rstrip("/") or last.startswith((".", "_")):
            continue
        if info.get("islink"):
            info = system.info(str(Path(path).resolve()))
            if info["type"] == "directory":
                continue  # it may lead back up
        if info["type"] == "other":
            continue  # a pipe would be waited for
        if info["type"] == "directory":
            yield from _walk(system, path, f"{prefix}{last}/")
        else:
            yield _unit(info, prefix + last)


def _unit(info: Mapping[str, Any], name: str) -> Unit:
    path = str(info["name"])
    given = next((info[key] for key in _STATE if info.get(key) is not None), "")
    return Unit(path, name, kind_of(path), int(info.get("size") or 0), str(given), _modified(info))


def _modified(info: Mapping[str, Any]) -> float | None:
    for key in _MODIFIED:
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None
