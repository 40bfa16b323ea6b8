"""`batch`: many logs, and the page about them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kb.cli import terminal
from kb.errors import UsageError

if TYPE_CHECKING:
    from kb.batch.engine import Engine
    from kb.batch.run import Progress, Summary

REPORT = "report"
"""In the place of the input: draw what an earlier run found. A folder of that name is `./report`."""


def report(out: str, output: Path | None) -> int:
    """Write the page, beside the results if nothing else is said."""
    _check_installed()
    from kb.batch.report import draw
    from kb.batch.store import Store

    page = draw(out)
    if output is None:
        Store(out).write("report.html", page.encode("utf-8"))
    else:
        output.write_text(page, encoding="utf-8")
    print(f"written to {output or out.rstrip('/') + '/report.html'}", file=sys.stderr)
    return 0


def batch(
    source: str, out: str, *, workers: int, address: str | None, size: int, engine: str, retry: bool,
    entries: Sequence[Path],
) -> int:  # fmt: skip
    """Match everything. Exit code 1 if a part could not be done; what cannot be read is told and costs nothing."""
    _check_installed()
    from kb.batch.run import Options, run
    from kb.opening import overlays

    if engine not in ("auto", "daft", "processes"):
        raise UsageError(f"--engine {engine}: unknown", "auto, daft or processes")
    folders = tuple(map(str, overlays(entries)))
    bar = _Bar()
    try:
        summary = run(
            Options(
                source, out, workers=workers, address=address, size=size, entries=folders,
                engine=cast("Engine", engine), retry=retry,
            ),
            bar.draw,
        )  # fmt: skip
    except KeyboardInterrupt:
        bar.end()
        print("interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(130)  # what is done is on disk, and an engine that was stopped in the middle may not end in peace
    finally:
        bar.end()
    terminal.write(page(summary, out))
    return 1 if summary.lost else 0


def page(summary: Summary, out: str) -> str:
    """What came of a run, in a few lines."""
    failures = summary.known + summary.unknown
    lines = [
        f"logs        {summary.logs:,}",
        f"known       {summary.known:,}{_share(summary.known, failures)} of logs with a failure",
        f"unknown     {summary.unknown:,}{_share(summary.unknown, failures)}, {summary.kinds:,} kinds",
        f"no failure  {summary.silent:,}",
    ]
    if summary.faults:
        lines.append(f"not read    {summary.faults:,}, see failures.parquet")
    if summary.lost:
        lines.append(f"not done    {len(summary.lost):,} of {summary.parts:,} parts; run it again to try them again")
    lines.append(f"            {summary.seconds:,.1f} s with {summary.workers} workers; kb batch report {out}")
    return "\n".join(lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""


def _check_installed() -> None:
    from importlib.util import find_spec

    for name in ("pyarrow", "fsspec", "jinja2"):
        if find_spec(name) is None:
            raise UsageError(f"`kb batch` needs {name}", "pip install 'provenfix[batch]'")


class _Bar:
    """One line on standard error that overwrites itself, only where somebody watches."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._before: int | None = None

    def draw(self, progress: Progress) -> None:
        if not self._shown:
            return
        if self._before is None:
            self._before = progress.logs
        passed = time.monotonic() - self._begun
        speed = (progress.logs - self._before) / passed if passed > 1 else 0.0
        filled = 30 * progress.done // max(1, progress.parts)
        text = f"[{'#' * filled}{'.' * (30 - filled)}] {progress.done}/{progress.parts} parts, {progress.logs:,} logs"
        text += f", {speed:,.0f}/s" if speed else ""
        print(f"\r\x1b[K{text[: terminal.width() - 1]}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
