"""Make an index out of entry folders: read, publish, write, open.

Evidence is judged by the matcher itself: a reproduction counts only if what it raised ranks its entry first. So a
matcher over the bare entries comes first, and the entries are published with what it says of their evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kb import rates
from kb.catalog import Catalog, load
from kb.errors import EntryError, IndexUnavailableError
from kb.evidence import LoadedEvidence
from kb.index import Index
from kb.index_build import build, build_memory, locked
from kb.knowledge import KnowledgeBase
from kb.layers import Layer
from kb.models.evidence import Trial
from kb.models.published import Rate
from kb.publish import Publication, publish, publish_all


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


class Judge:
    """Reads evidence with today's matcher: which entry does what was really raised belong to?"""

    def __init__(self, base: KnowledgeBase) -> None:
        self._base = base
        # The same traceback is judged for every rate it counts in.
        self._judged: dict[str, str | None] = {}

    def first(self, text: str | None) -> str | None:
        """Id of the entry ranked first for a text, None if it is unknown."""
        if not text:
            return None
        if text not in self._judged:
            matches = self._base.match(text).matches
            self._judged[text] = matches[0].entry_id if matches else None
        return self._judged[text]

    def wins(self, entry_id: str, traceback: str) -> bool:
        """Whether a captured traceback ranks this entry first."""
        return self.first(traceback) == entry_id

    def names(self, trial: Trial) -> str | None:
        """The entry of what a trial raised."""
        return self.first(trial.traceback or f"{trial.exception}: {trial.message}")

    def by_environment(self, entry_id: str, files: Sequence[LoadedEvidence]) -> list[tuple[str, str | None, Rate]]:
        """Rates of one entry, environment by environment."""
        return rates.by_environment(files, partial(self.wins, entry_id))


def unmeasured(catalog: Catalog) -> KnowledgeBase:
    """A knowledge base over a catalogue, scripts and evidence left aside: which entry wins a paste needs neither."""
    return KnowledgeBase(
        build_memory(Publication(publish(loaded, proofs=False)) for loaded in catalog.entries.values())
    )


def judge(catalog: Catalog) -> Judge:
    """A judge over the patterns of this catalogue."""
    return Judge(unmeasured(catalog))


def published(catalog: Catalog) -> tuple[tuple[Publication, ...], tuple[EntryError, ...]]:
    """Every entry with what its evidence shows today."""
    judging = judge(catalog)
    return publish_all(catalog, wins=judging.wins, names=judging.names)
