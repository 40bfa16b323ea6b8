"""Make an index out of entry folders: read, publish, write, open.

Evidence is judged by the matcher itself: a reproduction counts only if what it raised ranks its entry first. So the
entries are published twice where there is evidence, the second time with a matcher made of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kb.catalog import Catalog, load
from kb.errors import EntryError, IndexUnavailableError
from kb.index import Index
from kb.index_build import build, build_memory, locked
from kb.knowledge import KnowledgeBase
from kb.layers import Layer
from kb.models.evidence import Trial
from kb.publish import Publication, publish_all


def built(layers: Sequence[Layer], path: Path, stamp: str, *, rebuild: bool = False) -> tuple[Index, str]:
    """A fresh index at `path`, or in memory with a warning if it cannot be kept there.

    Of several processes that need one at once, one builds it and the others take what it built.
    """
    try:
        with locked(path):
            if not rebuild:
                try:
                    return Index.open(path, stamp=stamp), ""
                except IndexUnavailableError:
                    pass
            build(path, *published(load(layers)), stamp)
        return Index.open(path, stamp=stamp), ""
    except (OSError, IndexUnavailableError) as error:
        return build_memory(*published(load(layers))), f"the index is kept in memory: {error}"


def in_memory(catalog: Catalog) -> KnowledgeBase:
    """A knowledge base over a catalogue, kept in memory."""
    return KnowledgeBase(build_memory(*published(catalog)))


def published(catalog: Catalog) -> tuple[tuple[Publication, ...], tuple[EntryError, ...]]:
    """Every entry with what its evidence shows today."""
    publications, problems = publish_all(catalog)
    if not any(publication.evidence for publication in publications):
        return publications, problems
    base = KnowledgeBase(build_memory(publications, problems))

    def first(text: str | None) -> str | None:
        matches = base.match(text).matches if text else ()
        return matches[0].entry_id if matches else None

    def wins(entry_id: str, text: str) -> bool:
        return first(text) == entry_id

    def names(trial: Trial) -> str | None:
        return first(trial.traceback or f"{trial.exception}: {trial.message}")

    return publish_all(catalog, wins=wins, names=names)
