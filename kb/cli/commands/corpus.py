"""`eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kb import evaluate as evaluation
from kb.cli import terminal
from kb.opening import ask
from kb.render import structured


def evaluate(path: Path, *, as_json: bool, entries: Sequence[Path]) -> None:
    """Score a corpus and print the report."""
    rows = evaluation.read_corpus(path)
    report = ask(entries, lambda base: evaluation.evaluate(rows, base))
    if as_json:
        terminal.write(structured.dumps(report.plain()))
        return
    terminal.write(_page(report))


def _page(report: evaluation.Report) -> str:
    lines = [
        f"coverage             {report.coverage}",
        f"right entry first    {report.top1}",
        f"right within three   {report.top3}",
        f"mean reciprocal rank {report.mrr:.3f}",
        f"no answer            {report.abstained}",
        f"false answers        {report.false_answers} of negatives nobody doubts",
        f"                     {report.false_answers_with_doubt} of doubtful negatives",
        f"uncovered, misled    {report.uncovered_wrong}",
    ]
    if report.roles.n:
        lines += [
            f"roles right          {report.roles}",
            f"others shown         {report.others_shown} of labelled consequences and wrappers",
        ]
    for title, table in (("noise", report.by_noise), ("entry", report.by_entry)):
        lines += _section(f"by {title}", [f"{name:<50} {value}" for name, value in table.items()])
    lines += _section("confused", [f"{a:<45} taken for {b} ({n})" for a, b, n in report.confusions])
    lines += _section("not right", [f"{a:<10} {b or '(none)':<45} got {c or '(none)'}" for a, b, c in report.missed])
    lines += _section("roles not right", [f"{a:<20} {fault}" for a, fault in report.misjudged])
    return "\n".join(lines) + "\n"


def _section(title: str, rows: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {row}" for row in rows)] if rows else []
