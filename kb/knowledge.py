"""The knowledge base as one object: entries in layers, their index, and answers to pastes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kb
from kb import rank, roles
from kb.denoise import denoise
from kb.environment import from_paste, merged
from kb.index import Hit, Index
from kb.literals import encodable
from kb.localize import localized
from kb.matcher import Found, error_line, find
from kb.models.result import Environment, Incident, Line, Match, Query, Related, Result
from kb.parse import parse

if TYPE_CHECKING:
    from kb.excerpt import Row
    from kb.explain import Explanation, WhyNot

LARGE = 1_000_000
"""Code points from which on a text is read in excerpts."""


@dataclass(frozen=True)
class KnowledgeBase:
    """An open index. Safe to share between threads as far as SQLite's read-only connections are."""

    index: Index
    warnings: tuple[str, ...] = ()
    """What the user should know, for example that the index had to be kept in memory."""

    @property
    def file(self) -> Path | None:
        """Where the index is kept, None if in memory."""
        return self.index.path

    def match(
        self, paste: str | Sequence[Row], environment: Environment | None = None, *, locale: str = "en"
    ) -> Result:
        """Answer a paste, or the excerpt of a log. Never raises on any text; abstains when nothing is recognised.

        `environment` is what is known beyond the paste itself; what the paste says wins over it. A long text is read
        in excerpts.
        """
        return self._answered(*self._read(paste), environment, locale)

    def _read(self, paste: str | Sequence[Row]) -> tuple[Iterable[tuple[int, str]], Sequence[Line]]:
        """Raw lines with their numbers, and the denoised ones."""
        if isinstance(paste, str) and len(paste) > LARGE:
            paste = self.excerpt([paste])
        if isinstance(paste, str):
            paste = encodable(paste)
            return enumerate(paste.split("\n"), start=1), denoise(paste)
        from kb.excerpt import lines

        return ((row.number, row.text) for row in paste), lines(paste)

    def excerpt(self, chunks: Iterable[str]) -> list[Row]:
        """What matters of a log of any size, given in pieces, in bounded memory: to be matched as a paste is.

        That is its head and tail and what is around the places that could matter; lines keep their numbers.
        """
        from kb.excerpt import excerpt

        return excerpt(chunks, self.index.scanner())

    def warm(self) -> None:
        """Build now what a long-lived process otherwise builds after some look-ups."""
        self.index.automaton()
        self.index.scanner()

    def _answered(
        self, raw: Iterable[tuple[int, str]], lines: Sequence[Line], environment: Environment | None, locale: str
    ) -> Result:
        parsed = parse(lines)
        incidents, found = find(parsed, self.index.candidates)
        known = merged(from_paste(lines, parsed.frames), environment or Environment())
        clues = roles.clues(raw, lines, incidents) if found and len(incidents) > 1 else None
        parts = roles.assign(found, incidents, self.index.edges() if len(found) > 1 else {}, clues)
        known_root = not parts or parts[0].role == "root"
        matches = tuple(self._answer(part, known, locale) for part in parts)
        related = () if matches else self._related(incidents)
        return Result(
            schema_version=1,
            kb_version=kb.__version__,
            query=Query(incidents=incidents, environment=known),
            matches=matches,
            related=related,
            abstained=not matches,
            unknown_root=None if known_root else roles.unknown_origin(incidents, found, clues),
        )

    def _answer(self, part: roles.Part, environment: Environment, locale: str) -> Match:
        found: Found = part.found
        record = localized(self.index.record(found.entry_id), locale)
        why = f"{found.why}; {part.why}" if part.why else found.why
        return Match(
            entry_id=found.entry_id,
            level=found.level,
            role=part.role,
            incident=found.incident,
            repeats=found.repeats,
            line=found.line,
            span=found.span,
            why=why,
            signature=found.signature,
            root_cause=record["root_cause"],
            url=record.get("official_doc_url"),
            verification_tier=record["verification_tier"],
            tier_reason=record["tier_reason"],
            fixes=rank.fixes(record, environment),
            dead_ends=rank.cautions(record),
            causes=tuple(record.get("causes") or ()),
            recoverability=record["recoverability"],
            transition_graph=record["transition_graph"],
        )

    def _related(self, incidents: Sequence[Incident]) -> tuple[Related, ...]:
        line = error_line(incidents)
        if not line:
            return ()
        hits = self.index.related(line.split())
        return tuple(
            Related(hit.entry_id, hit.signature, "shares rare words with the last error; not an answer") for hit in hits
        )

    def explain(self, paste: str | Sequence[Row], environment: Environment | None = None) -> Explanation:
        """What each stage made of a paste that `match` would read in the same way."""
        from kb.explain import explain

        raw, lines = self._read(paste)
        return explain(list(raw), lines, self.index.candidates, self.index.edges(), environment)

    def why_not(self, paste: str | Sequence[Row], entry_id: str) -> WhyNot:
        """The first condition that an entry, given by id or alias, fails on a paste. Raises UnknownEntryError."""
        from kb.explain import why_not

        name = self.index.record(entry_id)["id"]
        own = [signature for signature in self.index.signatures() if signature.entry_id == name]
        return why_not(self._read(paste)[1], name, own, self.index.candidates)

    def get(self, entry_id: str) -> Mapping[str, Any]:
        """The published record. Raises UnknownEntryError."""
        return self.index.record(entry_id)

    def search(self, words: str, *, limit: int = 20, domain: str | None = None) -> Sequence[Hit]:
        """Entries about these words, best first."""
        return self.index.search(words, limit=limit, domain=domain)
