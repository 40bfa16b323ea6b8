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
    terminal.write(
        f"coverage             {report.coverage}\n"
        f"right entry first    {report.top1}\n"
        f"right within three   {report.top3}\n"
        f"mean reciprocal rank {report.mrr:.3f}\n"
        f"false answers        {report.false_answers} of negatives nobody doubts\n"
        f"                     {report.false_answers_with_doubt} of doubtful negatives\n"
        f"uncovered, misled    {report.uncovered_wrong}\n"
    )
    for title, table in (("noise", report.by_noise), ("entry", report.by_entry)):
        terminal.write(f"\nby {title}\n" + "".join(f"  {name:<50} {value}\n" for name, value in table.items()))
    if report.missed:
        terminal.write(
            "\nnot right\n"
            + "".join(f"  {a:<10} {b or '(none)':<45} got {c or '(none)'}\n" for a, b, c in report.missed)
        )
