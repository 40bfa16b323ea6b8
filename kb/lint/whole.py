"""Checks that need the whole catalogue: links, and whose pastes are won by whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kb.build import unmeasured
from kb.catalog import Catalog, LoadedEntry
from kb.intake import decode
from kb.knowledge import KnowledgeBase
from kb.lint.finding import Finding


def links(catalog: Catalog) -> Iterator[Finding]:
    """Ids that entries point at exist."""
    known = set(catalog.entries)
    for loaded in catalog.entries.values():
        entry = loaded.entry
        graph = entry.transition_graph
        named = [
            *(("transition_graph.leads_to", i) for i in graph.leads_to),
            *(("transition_graph.preceded_by", i) for i in graph.preceded_by),
            *(("transition_graph.frequently_confused_with", i) for i in graph.frequently_confused_with),
            *(("supersedes", i) for i in entry.supersedes),
            *((("moved_to", entry.moved_to),) if entry.moved_to else ()),
        ]
        for field, target in named:
            if target not in known:
                yield Finding(
                    "link-missing",
                    str(loaded.folder / "entry.json"),
                    field,
                    f"there is no entry `{target}`",
                    "write it first, or leave the link out",
                )


def pastes(catalog: Catalog, chosen: Sequence[LoadedEntry], clean: Iterable[Path]) -> Iterator[Finding]:
    """Samples rank their entry first, near misses do not match it, clean pastes match nothing.

    Samples of entries that were not chosen are looked at where a chosen one matches them: it may have taken them.
    """
    base = unmeasured(catalog)
    for loaded in chosen:
        for path in loaded.samples:
            yield from _sample(base, loaded.entry.id, path)
    own = {loaded.entry.id: loaded for loaded in chosen}
    if others := [loaded for entry_id, loaded in catalog.entries.items() if entry_id not in own]:
        alone = unmeasured(replace(catalog, entries=own))
        for loaded in others:
            for path in loaded.samples:
                if _winners(alone, path):
                    yield from _sample(base, loaded.entry.id, path)
    for loaded in chosen:
        for path in loaded.near_misses:
            if loaded.entry.id in (ids := _winners(base, path)):
                yield Finding(
                    "near-miss-matched",
                    str(path),
                    "",
                    f"is matched by {loaded.entry.id}, among {ids}",
                    "make the pattern more specific",
                )
    for path in clean:
        if ids := _winners(base, path):
            yield Finding(
                "clean-matched", str(path), "", f"is matched by {', '.join(ids)}", "make the pattern more specific"
            )


def _sample(base: KnowledgeBase, entry_id: str, path: Path) -> Iterator[Finding]:
    ids = _winners(base, path)
    if not ids:
        yield Finding(
            "sample-unmatched",
            str(path),
            "",
            f"{entry_id} does not match it",
            "see `kb match FILE`; widen the pattern or add a variant",
        )
    elif ids[0] != entry_id:
        yield Finding(
            "sample-lost",
            str(path),
            "",
            f"is won by {ids[0]}, not by {entry_id}",
            "give the more specific entry `frames` or `supersedes`",
        )


def _winners(base: KnowledgeBase, path: Path) -> list[str]:
    return [match.entry_id for match in base.match(decode(path.read_bytes(), str(path))).matches]
