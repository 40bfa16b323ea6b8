"""Score the matcher on a labelled corpus.

A corpus is JSON Lines: `text`, `entry` (the right id, or null where the right answer is none), optional `also`
(ids that may follow the root), `noise`, `doubt` (why an answer to a negative might be legitimate).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kb.errors import PasteError
from kb.knowledge import KnowledgeBase
from kb.rates import wilson


@dataclass(frozen=True, slots=True)
class Share:
    """k of n with its Wilson 95 % interval."""

    k: int
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.k} of {self.n} ({self.k / self.n:.1%}, 95 %: {self.low:.3f}–{self.high:.3f})"
            if self.n
            else "0 of 0"
        )


def share(k: int, n: int) -> Share:
    """A share with its interval; 0 to 1 where n is 0."""
    low, high = wilson(k, n) if n else (0.0, 1.0)
    return Share(k, n, low, high)


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled paste and what the matcher said."""

    id: str
    expected: str | None
    ranked: tuple[str, ...]
    noise: tuple[str, ...]
    covered: bool
    doubt: bool
    also: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Scores over a corpus. `covered` are cases whose entry the catalogue has."""

    coverage: Share
    top1: Share
    top3: Share
    mrr: float
    false_answers: Share
    false_answers_with_doubt: Share
    uncovered_wrong: Share
    """Cases of entries the catalogue lacks that were answered with something not even listed as a consequence."""
    by_noise: dict[str, Share] = field(default_factory=dict)
    by_entry: dict[str, Share] = field(default_factory=dict)
    confusions: tuple[tuple[str, str, int], ...] = ()
    missed: tuple[tuple[str, str, str], ...] = ()
    """Case id, expected entry, first answer (empty: none)."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """Rows of a corpus. Raises PasteError naming the line."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PasteError(f"{path}: cannot be read: {error}", "give a UTF-8 JSON Lines file") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PasteError(f"{path}:{number}: is not JSON: {error}", "one object a line") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "entry" not in row:
            raise PasteError(f"{path}:{number}: needs `text` and `entry`", "`entry` is an id, or null")
        rows.append(row)
    return rows


def evaluate(rows: Iterable[dict[str, Any]], base: KnowledgeBase) -> Report:
    """Match every paste without knowledge of any machine, and score."""
    names = {name: record["id"] for record in base.index.records() for name in (record["id"], *record["aliases"])}
    return score([_case(row, base, names) for row in rows])


def _case(row: dict[str, Any], base: KnowledgeBase, names: dict[str, str]) -> Case:
    result = base.match(row["text"])
    expected = row["entry"]
    return Case(
        id=str(row.get("id") or ""),
        expected=names.get(expected, expected) if expected else None,
        ranked=tuple(match.entry_id for match in result.matches),
        noise=tuple(row.get("noise") or ()),
        covered=expected is None or expected in names,
        doubt=bool(row.get("doubt")),
        also=tuple(names.get(item, item) for item in row.get("also") or ()),
    )


def score(cases: Sequence[Case]) -> Report:
    """Pure scoring of matched cases."""
    positives = [case for case in cases if case.expected]
    covered = [case for case in positives if case.covered]
    negatives = [case for case in cases if not case.expected]
    certain = [case for case in negatives if not case.doubt]
    doubtful = [case for case in negatives if case.doubt]
    uncovered = [case for case in positives if not case.covered]
    wrong = [case for case in covered if case.ranked[:1] != (case.expected,)]
    return Report(
        coverage=share(len(covered), len(positives)),
        top1=share(sum(_place(case) == 1 for case in covered), len(covered)),
        top3=share(sum(1 <= _place(case) <= 3 for case in covered), len(covered)),
        mrr=sum(1 / place for case in covered if (place := _place(case))) / len(covered) if covered else 0.0,
        false_answers=share(sum(bool(case.ranked) for case in certain), len(certain)),
        false_answers_with_doubt=share(sum(bool(case.ranked) for case in doubtful), len(doubtful)),
        uncovered_wrong=share(
            sum(bool(case.ranked) and case.ranked[0] not in case.also for case in uncovered), len(uncovered)
        ),
        by_noise=_grouped(covered, lambda case: case.noise),
        by_entry=_grouped(covered, lambda case: (case.expected or "",)),
        confusions=tuple(
            (a, b, n)
            for (a, b), n in Counter(
                (case.expected or "", case.ranked[0]) for case in wrong if case.ranked
            ).most_common(20)
        ),
        missed=tuple(
            (case.id, case.expected or "", (case.ranked or ("",))[0])
            for case in [*wrong, *(c for c in [*certain, *uncovered] if c.ranked and c.ranked[0] not in c.also)]
        ),
    )


def _place(case: Case) -> int:
    return case.ranked.index(case.expected) + 1 if case.expected in case.ranked else 0


def _grouped(cases: Sequence[Case], keys: Any) -> dict[str, Share]:
    totals: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for case in cases:
        for key in keys(case):
            totals[key] += 1
            right[key] += _place(case) == 1
    return {key: share(right[key], total) for key, total in sorted(totals.items())}
