"""`verify`: run the proofs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kb.build import Judge, judge
from kb.catalog import Catalog, LoadedEntry, load
from kb.cli import terminal
from kb.errors import UsageError
from kb.layers import layers
from kb.opening import overlays
from kb.proving import Row, choose, save_samples, table, unmatched
from kb.render import structured
from kb.render.page import columns, safe
from kb.throwaway import interpreter
from kb.verify.runner import Progress, Report, ScriptRun, run


@dataclass(frozen=True)
class Options:
    """The options of `kb verify`."""

    ids: Sequence[str]
    every: bool
    stale: bool
    device: str | None
    evidence: Path | None
    cases: Sequence[str]
    requirements: Sequence[str]
    jobs: int
    cost: bool
    timeout: float | None
    memory: float | None
    yes: bool
    save_sample: bool
    bundle: Path | None
    format: str
    entries: Sequence[Path]


def verify(options: Options) -> int:
    """Run arms, print the table, write evidence; the exit code of the command table."""
    if options.device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {options.device}: unknown", "cpu or cuda; nothing takes CUDA if there is one")
    catalog = load(layers(overlays(options.entries)))
    terminal.warn(str(problem) for problem in catalog.problems[:3])
    chosen = choose(catalog, options.ids, every=options.every, stale=options.stale, device=options.device)
    if options.bundle is not None:
        return _bundle(options.bundle, chosen)
    if not chosen:
        print("nothing is stale", file=sys.stderr)
        return 0
    if not options.yes:
        _agree(chosen)
    with interpreter(options.requirements) as python:
        report = run(
            [loaded.folder for loaded in chosen],
            device=options.device,
            cases=options.cases,
            timeout=options.timeout,
            memory_limit=int(options.memory * 2**30) if options.memory else None,
            jobs=options.jobs,
            cost=options.cost,
            evidence=_places(options.evidence) if options.evidence else None,
            python=str(python),
            on_trial=_progress(),
        )
    return _finish(options, report, judge(catalog), catalog)


def _agree(chosen: Sequence[LoadedEntry]) -> None:
    """Say what will run, and ask. Scripts are code of their contributors."""
    print("These scripts will be run on this machine, without a sandbox:", file=sys.stderr)
    for loaded in chosen:
        print(f"  {loaded.script}", file=sys.stderr)
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to agree to it", "add --yes")
    print("Run them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not run", "answer y, or add --yes")


def _places(folder: Path) -> Callable[[ScriptRun], Path]:
    """An entries folder takes evidence beside the entries; any other takes one folder per entry."""

    def place(one: ScriptRun) -> Path:
        beside = folder / one.entry
        return beside / "evidence" if (beside / "entry.json").is_file() else beside

    return place


def _progress() -> Callable[[Progress], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(step: Progress) -> None:
        more = f" (+{step.scripts_left} scripts)" if step.scripts_left else ""
        text = f"{step.done}/{step.known}{more}  {step.node.entry}  {step.node.test}  {step.trial['outcome']}"
        print(f"\r\x1b[K{safe(text)[: terminal.width() - 1]}", end="", file=sys.stderr, flush=True)

    return show


def _finish(options: Options, report: Report, judging: Judge, catalog: Catalog) -> int:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    rows = table(report, judging)
    if options.format == "json":
        terminal.write(structured.dumps([asdict(row) for row in rows]))
    else:
        terminal.write(_text(rows))
    lost = unmatched(report, judging)
    _complain(report, lost)
    if options.save_sample:
        folders = {entry_id: loaded.folder for entry_id, loaded in catalog.entries.items()}
        for path in save_samples(report, folders):
            print(f"sample: {path}", file=sys.stderr)
    for one in report.runs:
        if one.evidence:
            print(f"evidence: {one.evidence}", file=sys.stderr)
    counted = f"{len(rows)} claims of {len(report.runs)} {'entry' if len(report.runs) == 1 else 'entries'}"
    print(f"{counted} in {report.seconds:.1f} s", file=sys.stderr)
    if options.evidence is None:
        print("nothing was kept; --evidence entries keeps it", file=sys.stderr)
    return 1 if lost and report.exit_code == 0 else report.exit_code


def _complain(report: Report, lost: Sequence[tuple[str, str, str | None]]) -> None:
    for one in report.runs:
        if one.problem:
            print(safe(f"problem: {one.entry}: {one.problem.reason}"), file=sys.stderr)
        for trial, against in one.contradictions():
            print(safe(f"contradicted: {one.entry} {trial['test']} [{trial['config']}]: {against}"), file=sys.stderr)
    for entry_id, config, first in lost:
        said = f"ranks {first} first" if first else "matches nothing"
        print(safe(f"contradicted: {entry_id} [{config}]: what was raised {said}"), file=sys.stderr)


def _text(rows: Sequence[Row]) -> str:
    lines = [("entry", "arm", "claim", "k/n", "skipped", "step", "peak", "matched", "outcomes")]
    for row in rows:
        lines.append(
            (
                row.entry,
                row.arm,
                row.id or "",
                f"{row.k}/{row.n}",
                str(row.skipped or ""),
                f"{row.step_seconds * 1000:.3g} ms" if row.step_seconds is not None else "",
                f"{row.peak_bytes / 2**20:.3g} MiB" if row.peak_bytes is not None else "",
                {True: "yes", False: "no", None: ""}[row.matched],
                ", ".join(row.outcomes),
            )
        )
    return columns(lines)


def _bundle(destination: Path, chosen: Sequence[LoadedEntry]) -> int:
    from kb.verify.bundle import bundle

    start = bundle(destination, [loaded.folder for loaded in chosen])
    terminal.write(f"{start}\n")
    print(f"on the node: python {start}; at home: kb import {start.parent / 'results'}", file=sys.stderr)
    return 0
