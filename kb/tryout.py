"""A pattern before it is contributed: what it hits, and which pastes of other entries it would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kb.build import unmeasured
from kb.catalog import Catalog, LoadedEntry, read_model
from kb.errors import EntryError
from kb.intake import decode
from kb.knowledge import KnowledgeBase
from kb.models.entry import AuthoredEntry


@dataclass(frozen=True)
class Outcome:
    """One paste with and without the entry."""

    file: str
    matched: bool
    """Whether the entry matches it at all."""
    line: int | None
    """Raw line of the match."""
    before: str | None
    """Entry that came first without it."""
    after: str | None
    """Entry that comes first with it."""

    @property
    def taken(self) -> bool:
        """Whether another entry loses it."""
        return self.before is not None and self.before != self.after


@dataclass(frozen=True)
class Tryout:
    """What an entry would do to the catalogue."""

    entry_id: str
    given: tuple[Outcome, ...]
    """The pastes that were given."""
    stolen: tuple[Outcome, ...]
    """Samples of other entries that it would win."""


def tryout(file: Path, pastes: Sequence[tuple[str, str]], catalog: Catalog) -> Tryout:
    """Try the entry in `file` on `(name, text)` pastes and on every sample of the catalogue.

    Raises EntryError for the first thing wrong with the file.
    """
    try:
        entry = read_model(file, AuthoredEntry)
    except ExceptionGroup as several:
        first = several.exceptions[0]
        raise first if isinstance(first, EntryError) else several from None
    others = {name: loaded for name, loaded in catalog.entries.items() if name != entry.id}
    own = LoadedEntry(entry, file.parent, "tried")
    without = unmeasured(replace(catalog, entries=others))
    with_it = unmeasured(replace(catalog, entries={**others, entry.id: own}))
    given = tuple(_outcome(name, text, entry.id, without, with_it) for name, text in pastes)
    samples = [path for loaded in others.values() for path in loaded.samples]
    outcomes = (
        _outcome(str(path), decode(path.read_bytes(), str(path)), entry.id, without, with_it) for path in samples
    )
    return Tryout(entry.id, given, tuple(one for one in outcomes if one.taken))


def _outcome(name: str, text: str, entry_id: str, without: KnowledgeBase, with_it: KnowledgeBase) -> Outcome:
    before, after = without.match(text).matches, with_it.match(text).matches
    own = next((match for match in after if match.entry_id == entry_id), None)
    return Outcome(
        file=name,
        matched=own is not None,
        line=own.line if own else None,
        before=before[0].entry_id if before else None,
        after=after[0].entry_id if after else None,
    )
