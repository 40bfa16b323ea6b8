"""The knowledge base as one object: entries in layers, their index, and answers to pastes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kb
from kb import rank, roles
from kb.denoise import denoise
from kb.environment import from_paste, merged
from kb.index import Hit, Index
from kb.localize import localized
from kb.match import Found, error_line, find
from kb.models.result import Environment, Incident, Match, Query, Related, Result
from kb.parse import parse


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

    def match(self, text: str, environment: Environment | None = None, *, locale: str = "en") -> Result:
        """Answer one paste. Never raises on any text; abstains when nothing is recognised.

        `environment` is what is known beyond the paste itself; what the paste says wins over it.
        """
        lines = denoise(text)
        parsed = parse(lines)
        incidents, found = find(parsed, self.index.candidates)
        known = merged(from_paste(lines, parsed.frames), environment or Environment())
        clues = roles.clues(text, lines, incidents) if found and len(incidents) > 1 else None
        parts = roles.assign(found, incidents, self.index.edges() if len(found) > 1 else {}, clues)
        matches = tuple(self._answer(part, known, locale) for part in parts)
        related = () if matches else self._related(incidents)
        return Result(
            schema_version=1,
            kb_version=kb.__version__,
            query=Query(incidents=incidents, environment=known),
            matches=matches,
            related=related,
            abstained=not matches,
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

    def get(self, entry_id: str) -> Mapping[str, Any]:
        """The published record. Raises UnknownEntryError."""
        return self.index.record(entry_id)

    def search(self, words: str, *, limit: int = 20, domain: str | None = None) -> Sequence[Hit]:
        """Entries about these words, best first."""
        return self.index.search(words, limit=limit, domain=domain)
