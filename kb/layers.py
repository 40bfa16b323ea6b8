"""Layers: the folders that entries are read from, what identifies their state, and where their index is kept.

Standard library only: every look-up starts here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import kb
from kb.errors import IndexUnavailableError, UsageError

INDEX_SCHEMA = 2
"""Version of the index's tables; an index with another one is built anew."""
STAMP_FILE = "STAMP"
"""Written into the packaged entries when a wheel is built."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One folder of entries. Later layers add to earlier ones and may replace their entries."""

    name: str
    root: Path


def packaged_root() -> Path:
    """Folder of the entries that come with the package: inside the installation, else of the checkout it runs from.

    Raises IndexUnavailableError if there is neither.
    """
    package = Path(kb.__file__).resolve().parent
    for root in (package / "_entries", package.parent / "entries"):
        if root.is_dir():
            return root
    raise IndexUnavailableError(f"no entries beside {package}", "reinstall provenfix")


def layers(overlays: Sequence[Path] = ()) -> tuple[Layer, ...]:
    """The packaged layer, then one for each overlay folder. Raises UsageError if an overlay is no folder."""
    found = [Layer("packaged", packaged_root())]
    for path in overlays:
        root = Path(path).resolve()
        if not root.is_dir():
            raise UsageError(f"no such folder of entries: {path}", "check --entries and KB_ENTRIES")
        if any(root == layer.root.resolve() for layer in found):
            continue  # a checkout's own entries, named once more
        found.append(Layer(str(path), root))
    return tuple(found)


def stamp(layers: Iterable[Layer]) -> str:
    """Text that changes whenever an index of these layers would.

    A built wheel carries its own stamp; elsewhere path, size and time of change of every file stand for the contents.
    """
    states = [f"{layer.name}\n{layer.root}\n{_state(layer.root)}" for layer in layers]
    return "\n".join([f"kb {kb.__version__}", f"index {INDEX_SCHEMA}", *states])


def default_path(layers: Iterable[Layer]) -> Path:
    """Where the index of these layers is kept: `KB_CACHE`, else the user's cache folder. Nothing is created."""
    places = "\n".join(f"{layer.name}\n{layer.root}" for layer in layers)
    name = f"index-{crc32(os.fsencode(places)):08x}.sqlite"
    chosen = os.environ.get("KB_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute() / name
    from platformdirs import user_cache_path

    return user_cache_path("provenfix") / name


def _state(root: Path) -> str:
    try:
        return "built " + (root / STAMP_FILE).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        pass
    from hashlib import sha256

    digest = sha256()
    for line in sorted(_files(root, "")):
        digest.update(os.fsencode(line) + b"\n")
    return "files " + digest.hexdigest()


def _files(folder: Path, prefix: str) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield f"{prefix} unreadable {error.errno}"
        return
    for entry in entries:
        name = prefix + entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    yield name + "/"
                    yield from _files(Path(entry.path), name + "/")
                continue
            state = entry.stat()
            yield f"{name} {state.st_size} {state.st_mtime_ns}"
        except OSError as error:
            yield f"{name} unreadable {error.errno}"
