"""`kb check`: many small checks, each with a code. `record` looks at one entry, `whole` at the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from kb.catalog import Catalog, LoadedEntry
from kb.lint import exceptions, proof, record, text, whole
from kb.lint.finding import Finding

__all__ = ["Finding", "check"]


def check(
    catalog: Catalog, *, clean: Iterable[Path] = (), only: Sequence[str] = (), today: date | None = None
) -> list[Finding]:
    """All findings for a catalogue, sorted by file. `only` limits the record checks to these ids.

    `clean` are pastes that must match nothing; `today` decides which exceptions are over.
    """
    findings = [
        Finding("catalogue-file", p.file, p.field, p.detail, p.remedy)
        for p in catalog.problems
        if not only or any(entry_id in Path(p.file).as_posix() for entry_id in only)
    ]
    chosen = [loaded for entry_id, loaded in catalog.entries.items() if not only or entry_id in only]
    for loaded in chosen:
        findings += _of_record((*record.CHECKS, *text.CHECKS, *proof.CHECKS), loaded)
    findings += whole.links(catalog)
    findings += whole.pastes(catalog, chosen, clean)
    findings = _without_excused(findings, chosen, today or datetime.now(tz=UTC).date())
    return sorted(findings, key=lambda finding: (finding.file, finding.field, finding.code))


def _of_record(checks: Sequence[Callable[[LoadedEntry], Iterator[Finding]]], loaded: LoadedEntry) -> Iterator[Finding]:
    for one in checks:
        yield from one(loaded)


def _without_excused(findings: Sequence[Finding], chosen: Sequence[LoadedEntry], today: date) -> list[Finding]:
    folders = {loaded.folder for loaded in chosen}
    own: dict[Path, list[Finding]] = {folder: [] for folder in folders}
    kept: list[Finding] = []
    for finding in findings:
        folder = next((place for place in Path(finding.file).parents if place in folders), None)
        (kept if folder is None else own[folder]).append(finding)
    for folder, some in own.items():
        kept += exceptions.applied(folder, some, today)
    return kept
