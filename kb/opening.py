"""Open the knowledge base: the packaged entries with a team's own laid over them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from kb.errors import IndexUnavailableError
from kb.index import Index
from kb.knowledge import KnowledgeBase
from kb.layers import default_path, layers, stamp

T = TypeVar("T")


def open_base(entries: Sequence[Path] = (), *, rebuild: bool = False) -> KnowledgeBase:
    """Open the packaged entries with overlays laid over them, building the index where it is missing or stale.

    Where no file can be written or read the index is kept in memory, and a warning says so.
    """
    found = layers(overlays(entries))
    path = default_path(found)
    mark = stamp(found)
    if not rebuild:
        try:
            return _opened(Index.open(path, stamp=mark))
        except IndexUnavailableError:
            pass
    from kb.build import built

    index, warning = built(found, path, mark, rebuild=rebuild)
    return _opened(index, *([warning] if warning else []))


def ask(entries: Sequence[Path], question: Callable[[KnowledgeBase], T]) -> T:
    """Open the knowledge base, say its warnings on standard error, and ask; once more on a new index if it is damaged.

    Damage inside a file shows only where it is read.
    """
    for rebuild in (False, True):
        base = open_base(entries, rebuild=rebuild)
        try:
            answer = question(base)
        except IndexUnavailableError:
            if rebuild:
                raise
            continue
        for warning in base.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        return answer
    raise AssertionError("unreachable")


def _opened(index: Index, *warnings: str) -> KnowledgeBase:
    first: dict[str, str] = {}
    for problem in index.problems():
        if problem.field == "id" and " replaces the entry " in problem.message:
            continue  # an overlay that does its work; `kb check` tells it
        first.setdefault(problem.file, f"{problem.field}: {problem.message}" if problem.field else problem.message)
    broken = [f"{file}: {message}" for file, message in first.items()]
    if len(broken) > 3:
        broken = [*broken[:3], f"and {len(broken) - 3} more; `kb check` lists them"]
    return KnowledgeBase(index, (*warnings, *(f"left out: {line}" for line in broken)))


def overlays(extra: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Entry folders besides the packaged one: `KB_ENTRIES` (separated as PATH is), then `extra`."""
    named = [Path(item) for item in os.environ.get("KB_ENTRIES", "").split(os.pathsep) if item]
    return tuple(dict.fromkeys(path.expanduser().resolve() for path in (*named, *extra)))
