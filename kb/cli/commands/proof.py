"""`rates`: what was measured of an entry, environment by environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kb.cli import terminal
from kb.errors import UsageError
from kb.models.published import Rate
from kb.rank import cost_words
from kb.render import structured
from kb.render.page import columns


@dataclass(frozen=True)
class Row:
    """One claim in one environment."""

    entry_id: str
    arm: str
    claim: str
    rate: Rate


def rates(ids: Sequence[str], *, format: str, entries: Sequence[Path]) -> int:
    """Print k of n with its interval and cost for each claim and environment; 1 if nothing was measured."""
    if format not in ("text", "json"):
        raise UsageError(f"--format {format}: unknown", "text or json")
    rows = [row for entry_id in ids for row in measured(entry_id, entries)]
    if format == "json":
        terminal.write(
            structured.dumps(
                [
                    {"entry_id": r.entry_id, "arm": r.arm, "id": r.claim or None, **r.rate.model_dump(mode="json")}
                    for r in rows
                ]
            )
        )
    else:
        terminal.write(_table(rows))
    return 0 if rows else 1


def measured(entry_id: str, entries: Sequence[Path]) -> list[Row]:
    """Rates of one entry. Raises UnknownEntryError for an unknown id."""
    from kb import evidence, layers
    from kb.build import judge
    from kb.catalog import load
    from kb.opening import ask, overlays

    record = ask(entries, lambda base: base.get(entry_id))
    catalog = load(layers.layers(overlays(entries)))
    loaded = catalog.entries[record["id"]]
    files, problems = evidence.load(loaded.folder, loaded.entry.id)
    terminal.warn(str(problem) for problem in problems)
    return list(_rows(loaded.entry.id, judge(catalog).by_environment(loaded.entry.id, files)))


def _rows(entry_id: str, found: Sequence[tuple[str, str | None, Rate]]) -> Iterator[Row]:
    for arm, claim, rate in found:
        yield Row(entry_id, arm, claim or "", rate)


def _table(rows: Sequence[Row]) -> str:
    lines = [("entry", "arm", "claim", "k/n", "95 %", "environment", "cost", "last run")]
    for row in rows:
        rate = row.rate
        cost = cost_words(rate.model_dump()) or ""
        interval = f"{rate.low:.2f}–{rate.high:.2f}"
        where = "; ".join(rate.environments)
        lines.append((row.entry_id, row.arm, row.claim, f"{rate.k}/{rate.n}", interval, where, cost, rate.last_run))
    return columns(lines)
