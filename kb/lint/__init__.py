"""`kb check`: many small checks, each with a code. `record` looks at one entry, `whole` at the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kb.catalog import Catalog, LoadedEntry
from kb.lint import proof, record, whole
from kb.lint.finding import Finding

__all__ = ["Finding", "check"]


def check(catalog: Catalog, *, clean: Iterable[Path] = (), only: Sequence[str] = ()) -> list[Finding]:
    """All findings for a catalogue, sorted by file. `only` limits the record checks to these ids.

    `clean` are pastes that must match nothing.
    """
    findings = [Finding("catalogue-file", p.file, p.field, p.detail, p.remedy) for p in catalog.problems]
    chosen = [loaded for entry_id, loaded in catalog.entries.items() if not only or entry_id in only]
    for loaded in chosen:
        findings += _of_record((*record.CHECKS, *proof.CHECKS), loaded)
    findings += whole.links(catalog)
    findings += whole.pastes(catalog, chosen, clean)
    return sorted(findings, key=lambda finding: (finding.file, finding.field, finding.code))


def _of_record(checks: Sequence[Callable[[LoadedEntry], Iterator[Finding]]], loaded: LoadedEntry) -> Iterator[Finding]:
    for one in checks:
        yield from one(loaded)
