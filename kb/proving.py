"""Around a verification run: which entries need one, and what its trials mean for the claims of the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kb import evidence
from kb.build import Judge
from kb.catalog import Catalog, LoadedEntry
from kb.errors import UnknownEntryError, UsageError
from kb.evidence import control_tests
from kb.models.entry import DeadEnd, Workaround
from kb.redact import redact
from kb.verify.runner import Report, ScriptRun

_HELD = {
    "reproduce": {"reproduced"},
    "refute": {"not_reproduced"},
    "workaround": {"fixed", "works_without_fix"},
    "dead_end": {"still_fails", "fails_differently"},
}
_SAMPLES_PER_RUN = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One claim of a run: in how many configurations it held."""

    entry: str
    arm: str
    id: str | None
    k: int
    n: int
    skipped: int
    step_seconds: float | None
    peak_bytes: int | None
    matched: bool | None
    """Whether what the reproductions raised ranks this entry first; None where nothing was raised."""
    outcomes: tuple[str, ...]


def choose(catalog: Catalog, ids: Sequence[str], *, every: bool, stale: bool, device: str | None) -> list[LoadedEntry]:
    """Entries to run, each with a script. Raises UsageError or UnknownEntryError."""
    if not ids and not every and not stale:
        raise UsageError("nothing to verify", "name entries, or --all, or --stale")
    if unknown := [entry_id for entry_id in ids if entry_id not in catalog.entries]:
        raise UnknownEntryError(f"no entry has the id {unknown[0]!r}", "`kb list` shows what there is")
    chosen = [catalog.entries[entry_id] for entry_id in ids] or list(catalog.entries.values())
    if missing := [loaded.entry.id for loaded in chosen if ids and loaded.script is None]:
        raise UsageError(f"{missing[0]} has no verify.py", "write one; CONTRIBUTING.md says how")
    chosen = [loaded for loaded in chosen if loaded.script is not None]
    return [loaded for loaded in chosen if is_stale(loaded, device)] if stale else chosen


def is_stale(loaded: LoadedEntry, device: str | None) -> bool:
    """Whether an arm of the entry has no fresh trial that really ran on this kind of device."""
    if loaded.script is None:
        return False
    from kb.digest import arm_digests

    source = loaded.script.read_text(encoding="utf-8")
    entry = loaded.entry
    claims: list[Workaround | DeadEnd] = [*entry.workarounds, *entry.dead_ends]
    named = [str(claim.verification).partition("::")[2] for claim in claims]
    wanted = {test for test in (*control_tests(source), *named) if test} & set(arm_digests(source))
    files, _ = evidence.load(loaded.folder, entry.id)
    ran = {
        trial.test
        for file in files
        if device is None or file.evidence.environment.device == device
        for trial, fresh in file.trials()
        if fresh and trial.outcome != "skipped"
    }
    return not wanted <= ran


def table(report: Report, judge: Judge) -> list[Row]:
    """One row per claim, reproductions first, in the order of scripts."""
    return [row for run in report.runs for row in _rows(run, judge)]


def _rows(run: ScriptRun, judge: Judge) -> Iterator[Row]:
    groups: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for trial in run.trials:
        groups.setdefault((trial["arm"], trial["id"]), []).append(trial)
    for (arm, claim), trials in sorted(groups.items(), key=lambda item: list(_HELD).index(item[0][0])):
        ran = [trial for trial in trials if trial["outcome"] != "skipped"]
        steps = [trial["step_seconds"] for trial in ran if trial["step_seconds"] is not None]
        peaks = [trial["peak_bytes"] for trial in ran if trial["peak_bytes"] is not None]
        raised = [trial for trial in ran if arm == "reproduce" and trial["traceback"]]
        yield Row(
            entry=run.entry,
            arm=arm,
            id=claim,
            k=sum(trial["outcome"] in _HELD[arm] for trial in ran),
            n=len(ran),
            skipped=len(trials) - len(ran),
            step_seconds=median(steps) if steps else None,
            peak_bytes=round(median(peaks)) if peaks else None,
            matched=all(judge.wins(run.entry, trial["traceback"]) for trial in raised) if raised else None,
            outcomes=tuple(sorted({trial["outcome"] for trial in ran})),
        )


def unmatched(report: Report, judge: Judge) -> list[tuple[str, str, str | None]]:
    """Reproductions whose traceback does not rank their entry first: entry, configuration, what came first instead."""
    found = []
    for run in report.runs:
        for trial in run.trials:
            if trial["outcome"] == "reproduced" and trial["traceback"]:
                first = judge.first(trial["traceback"])
                if first != run.entry:
                    found.append((run.entry, trial["config"], first))
    return found


def save_samples(report: Report, folders: dict[str, Path]) -> list[Path]:
    """Keep real tracebacks of reproductions as samples of their entries, a few per run, never over a file."""
    saved = []
    for run in report.runs:
        raised = [trial for trial in run.trials if trial["outcome"] == "reproduced" and trial["traceback"]]
        kept = {path.read_text(encoding="utf-8") for path in (folders[run.entry] / "samples").glob("*.txt")}
        for trial in raised[:_SAMPLES_PER_RUN]:
            text = redact(trial["traceback"], paths=True).rstrip("\n") + "\n"
            if text in kept:
                continue  # configurations often differ only in what the program did before
            name = re.sub(r"[^a-z0-9]+", "-", (trial["config"] or trial["test"]).lower()).strip("-")
            path = folders[run.entry] / "samples" / f"run-{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                continue
            kept.add(text)
            saved.append(path)
    return saved
