"""Score the matcher on a labelled corpus.

A corpus is JSON Lines: `text`, `entry` (the right id, or null where the right answer is none), optional `also`
(ids that may follow the root), `roles` (ids with the role each must have where it is shown; with `entry` null the only
ids that may be shown), `incident` (type of the exception that must be understood though no entry knows it), `noise`,
`doubt` (why an answer to a negative might be legitimate).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    shown: tuple[tuple[str, str], ...] = ()
    """Answers with their roles, in their order."""
    roles: Mapping[str, str] | None = None
    """Expected roles; None where the row says nothing of them."""
    incident: str | None = None
    incidents: tuple[str, ...] = ()
    """Types of the exceptions that were understood."""


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
    abstained: Share = field(default_factory=lambda: share(0, 0))
    """Covered cases that got no answer."""
    roles: Share = field(default_factory=lambda: share(0, 0))
    """Of the covered cases that say something of roles: the right root and no labelled id in a wrong role."""
    others_shown: Share = field(default_factory=lambda: share(0, 0))
    """Of the consequences and wrappers labelled in such cases: those that were shown at all."""
    by_noise: dict[str, Share] = field(default_factory=dict)
    by_entry: dict[str, Share] = field(default_factory=dict)
    confusions: tuple[tuple[str, str, int], ...] = ()
    missed: tuple[tuple[str, str, str], ...] = ()
    """Case id, expected entry, first answer (empty: none)."""
    misjudged: tuple[tuple[str, str], ...] = ()
    """Case id, and what is wrong with its roles."""

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
        shown=tuple((match.entry_id, match.role) for match in result.matches),
        roles=_expected_roles(row, names),
        incident=row.get("incident"),
        incidents=tuple(incident.type or "" for incident in result.query.incidents if incident.kind == "exception"),
    )


def _expected_roles(row: dict[str, Any], names: dict[str, str]) -> dict[str, str] | None:
    if row.get("roles") is None:
        return {} if row.get("also") else None
    return {names.get(item, item): role for item, role in row["roles"].items()}


def score(cases: Sequence[Case]) -> Report:
    """Pure scoring of matched cases."""
    positives = [case for case in cases if case.expected]
    covered = [case for case in positives if case.covered]
    negatives = [case for case in cases if not case.expected]
    certain = [case for case in negatives if not case.doubt]
    doubtful = [case for case in negatives if case.doubt]
    uncovered = [case for case in positives if not case.covered]
    wrong = [case for case in covered if case.ranked[:1] != (case.expected,)]
    judged = [case for case in cases if case.covered and case.roles is not None]
    misjudged = tuple((case.id, fault) for case in judged if (fault := role_fault(case)))
    labelled = [(case, item) for case in judged for item in {**dict.fromkeys(case.also), **(case.roles or {})}]
    return Report(
        coverage=share(len(covered), len(positives)),
        top1=share(sum(_place(case) == 1 for case in covered), len(covered)),
        top3=share(sum(1 <= _place(case) <= 3 for case in covered), len(covered)),
        mrr=sum(1 / place for case in covered if (place := _place(case))) / len(covered) if covered else 0.0,
        false_answers=share(sum(_is_false(case) for case in certain), len(certain)),
        false_answers_with_doubt=share(sum(_is_false(case) for case in doubtful), len(doubtful)),
        uncovered_wrong=share(sum(map(_is_misled, uncovered)), len(uncovered)),
        abstained=share(sum(not case.ranked for case in covered), len(covered)),
        roles=share(len(judged) - len(misjudged), len(judged)),
        others_shown=share(sum(item in case.ranked for case, item in labelled), len(labelled)),
        misjudged=misjudged,
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
            for case in [*wrong, *filter(_is_false, certain), *filter(_is_misled, uncovered)]
        ),
    )


def role_fault(case: Case) -> str:
    """What is wrong with the roles of a case, empty if nothing is."""
    roots = [item for item, role in case.shown if role == "root"]
    if not roots and case.shown[:1] == ((case.expected, "wrapper"),):
        roots = [case.shown[0][0]]  # a wrapper alone is an answer
    expected = dict(case.roles or {})
    if case.expected:
        if roots != [case.expected] or case.ranked[:1] != (case.expected,):
            return f"root {', '.join(roots) or '(none)'}, not {case.expected}"
        if beside := [item for item in case.also if item in roots]:
            return f"{beside[0]} is shown as root"
    elif roots:
        return f"root {roots[0]}, though no entry knows what came first"
    elif extra := [item for item, _ in case.shown if item not in expected]:
        return f"{extra[0]} is shown, though no entry knows what came first"
    for item, role in case.shown:
        if role != expected.get(item, role):
            return f"{item} is {role}, not {expected[item]}"
    if case.incident and not any(name.rpartition(".")[2] == case.incident for name in case.incidents):
        return f"{case.incident} was not understood"
    return ""


def _is_false(case: Case) -> bool:
    """A negative was answered with something its labels do not allow."""
    return not set(case.ranked) <= set(case.roles or {})


def _is_misled(case: Case) -> bool:
    return bool(case.ranked) and case.ranked[0] not in case.also


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
