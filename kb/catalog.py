"""The catalogue: entries read from layers of folders, path = id.

Contributed files are untrusted. Whatever is wrong with one is a problem with file, field and remedy, and never keeps
the others from being read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kb.complaints import complaints
from kb.errors import EntryError
from kb.layers import Layer, packaged_root
from kb.models.entry import AuthoredEntry

__all__ = ["Catalog", "LoadedEntry", "load", "packaged_root", "read_json", "read_model"]

_LARGEST_FILE = 4 * 2**20
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class LoadedEntry:
    """One entry and the folder it was read from."""

    entry: AuthoredEntry
    folder: Path
    layer: str

    @cached_property
    def samples(self) -> tuple[Path, ...]:
        """Pastes that this entry must win."""
        return tuple(path for path in self._pastes if not path.name.startswith("not-"))

    @cached_property
    def near_misses(self) -> tuple[Path, ...]:
        """Pastes that this entry must not match."""
        return tuple(path for path in self._pastes if path.name.startswith("not-"))

    @property
    def script(self) -> Path | None:
        """`verify.py`, None if there is none."""
        path = self.folder / "verify.py"
        return path if path.is_file() else None

    @cached_property
    def _pastes(self) -> tuple[Path, ...]:
        return tuple(sorted(path for path in (self.folder / "samples").glob("*.txt") if path.is_file()))


@dataclass(frozen=True)
class Catalog:
    """Every acceptable entry by id, in the order of ids, and everything that was not acceptable."""

    entries: Mapping[str, LoadedEntry]
    problems: tuple[EntryError, ...] = ()


def load(layers: Iterable[Layer | Path]) -> Catalog:
    """Read all entries. An entry of a later layer replaces one of the same id, and a problem says so. Never raises."""
    entries: dict[str, LoadedEntry] = {}
    problems: list[EntryError] = []
    for given in layers:
        layer = given if isinstance(given, Layer) else Layer(str(given), Path(given))
        for found in _read_layer(layer):
            if isinstance(found, EntryError):
                problems.append(found)
                continue
            before = entries.get(found.entry.id)
            if before is not None:
                problems.append(_replaced(found, before))
            entries[found.entry.id] = found
    return Catalog(dict(sorted(entries.items())), tuple(problems))


def read_json(file: Path) -> Any:
    """The JSON value of a file. Raises EntryError if it cannot be read, is not UTF-8, or repeats a key."""
    return _read(file, EntryError)[1]


def read_model(file: Path, model: type[_Model], error: type[EntryError] = EntryError) -> _Model:
    """The file as `model`. Raises `error` for the first thing wrong, an ExceptionGroup of them for several."""
    text, data = _read(file, error)
    try:
        return model.model_validate_json(text)
    except ValidationError as refusal:
        found = [error(str(file), *complaint) for complaint in complaints(refusal, data, model)]
    if len(found) == 1:
        raise found[0]
    raise ExceptionGroup(f"{file} is not acceptable", found)


def _read(file: Path, error: type[EntryError]) -> tuple[str, Any]:
    name = str(file)
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise error(name, "", f"is larger than {_LARGEST_FILE // 2**20} MiB", "keep logs in samples/, shortened")
        text = file.read_bytes().decode("utf-8")
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise error(name, "", f"cannot be read: {reason}", "make it a readable file") from None
    except UnicodeDecodeError as failure:
        raise error(name, "", f"is not UTF-8 at byte {failure.start}", "save it as UTF-8") from None
    try:
        return text, json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except _RepeatedKeyError as failure:
        message = f"the key `{failure.key}` stands twice in one object"
        raise error(name, failure.key, message, "keep one of the two") from None
    except json.JSONDecodeError as failure:
        message = f"is not JSON: {failure.msg} in line {failure.lineno}, column {failure.colno}"
        raise error(name, "", message, "correct it there") from None
    except (ValueError, RecursionError) as failure:
        raise error(name, "", f"is not JSON that can be read: {failure}", "correct it") from None


class _RepeatedKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _read_layer(layer: Layer) -> Iterator[LoadedEntry | EntryError]:
    try:
        root = layer.root.resolve(strict=True)
        folders = list(_entry_folders(layer.root))
    except (OSError, RuntimeError) as failure:
        yield EntryError(str(layer.root), "", f"cannot be read: {failure}", "make it a readable folder")
        return
    for folder in folders:
        yield from _read_entry(folder, layer, root)


def _entry_folders(root: Path) -> Iterator[Path]:
    for domain in _folders(root):
        slugs = _folders(domain)
        # A folder that holds entry.json itself sits one level too high; it is read so that its id can be judged.
        yield from [domain] if (domain / "entry.json").is_file() else slugs


def _folders(parent: Path) -> list[Path]:
    try:
        children = sorted(parent.iterdir())
    except PermissionError:
        return [parent]
    return [
        child for child in children if not child.name.startswith((".", "__")) and (child.is_dir() or _is_broken(child))
    ]


def _is_broken(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _read_entry(folder: Path, layer: Layer, root: Path) -> Iterator[LoadedEntry | EntryError]:
    file = folder / "entry.json"
    try:
        outside = _leading_outside(folder, root)
        if outside is not None:
            yield EntryError(str(outside), "", "leads outside the folder of entries", "put the file itself there")
            return
        if not file.is_file():
            yield EntryError(str(folder), "", "holds no entry.json", "add one, or remove the folder")
            return
        entry = read_model(file, AuthoredEntry)
    except EntryError as problem:
        yield problem
    except ExceptionGroup as problems:
        yield from (problem for problem in problems.exceptions if isinstance(problem, EntryError))
    except (OSError, RuntimeError) as failure:
        yield EntryError(str(folder), "", f"cannot be read: {failure}", "make it a readable folder")
    else:
        wanted = folder.relative_to(layer.root).as_posix()
        if entry.id == wanted:
            yield LoadedEntry(entry, folder, layer.name)
        else:
            message = f"is `{entry.id}`, but the folder says `{wanted}`"
            yield EntryError(str(file), "id", message, "the path is the id: rename one of the two")


def _leading_outside(folder: Path, root: Path) -> Path | None:
    """The first link in an entry's folder, itself included, whose target is not below the root."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink() or path is folder:
            target = path.resolve(strict=True)
            if not target.is_relative_to(root):
                return path
    return None


def _replaced(found: LoadedEntry, before: LoadedEntry) -> EntryError:
    message = f"`{found.entry.id}` replaces the entry of that id in {before.folder}"
    return EntryError(str(found.folder / "entry.json"), "id", message, "rename it if both are wanted")
