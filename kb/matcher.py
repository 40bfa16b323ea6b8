"""Which entries a parsed paste shows: a literal prefilter, then confirmation by a linear-time pattern.

Pure functions over values. A match always says which line, which span, which signature and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kb.index import Signature
from kb.literals import fold_case
from kb.models.result import Frame, Incident, Level, Line
from kb.parse import Failure, Parsed, Passage, passage
from kb.patterns import compile_pattern

LEGACY_TIMEOUT = 0.05
"""Seconds an imported pattern outside the linear-time subset may take on one text."""
WINDOW = 3
"""Log lines read together when a message was broken over several lines."""
LOG_TEXT = 4_000
"""Code points of one log line, or window of lines, that are searched at once."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry recognised in one incident."""

    entry_id: str
    kind: str
    level: Level
    incident: int
    line: int
    span: tuple[int, int]
    signature: str
    why: str
    ordinal: int
    supersedes: frozenset[str] = frozenset()
    repeats: tuple[int, ...] = ()
    """Indices of further exceptions that show this entry, for example another rank's with other frames."""


class Hit(NamedTuple):
    """A pattern found in one passage."""

    signature: Signature
    start: int
    end: int


Candidates = Callable[[str], Sequence[Signature]]
"""Gives the signatures that can match in a case-folded text."""


def find(
    parsed: Parsed, signatures: Sequence[Signature] | Candidates
) -> tuple[tuple[Incident, ...], tuple[Found, ...]]:
    """Incidents of the paste, log lines that matched included, and the winning entry of each.

    An entry is reported once, at its best incident. Incidents are in the order of their lines.
    """
    subjects = [failure.subject for failure in parsed.failures]
    log = [line for line in parsed.log if line.text.strip()]
    haystack = fold_case(" ".join(" ".join([*(s.text for s in subjects), *_twice_at_most(log), *_healed(log)]).split()))
    candidates = signatures(haystack) if callable(signatures) else _possible(signatures, haystack)
    if not candidates:
        return tuple(failure.incident for failure in parsed.failures), ()
    superseded = _Superseded(candidates)
    found: list[tuple[Incident, Found]] = []
    for failure in parsed.failures:
        hits = [
            h
            for h in _hits(candidates, failure.subject)
            if _frames_agree(h.signature, failure.incident.frames or parsed.frames)
        ]
        if winner := superseded.best(hits):
            found.append((failure.incident, _of_exception(failure, winner)))
    found += _in_log(candidates, log, parsed.frames, superseded)
    return _numbered(parsed, found)


def _possible(signatures: Iterable[Signature], folded: str) -> list[Signature]:
    """Signatures of which a literal stands in a folded text, or that have none."""
    return [s for s in signatures if not s.literals or any(literal in folded for literal in s.literals)]


def _twice_at_most(log: Sequence[Line]) -> Iterator[str]:
    """Texts of lines, runs of the same one cut to two: what spans neighbours still does."""
    before = last = None
    for line in log:
        if not (line.text == last == before):
            yield line.text
        before, last = last, line.text


def _healed(log: Sequence[Line]) -> Iterator[str]:
    """Texts of neighbours between which a word was cut."""
    for index, line in enumerate(log):
        if line.full:
            window = [other for other in log[index : index + WINDOW] if other.source == line.source]
            yield passage(window).text


def _hits(candidates: Iterable[Signature], subject: Passage) -> Iterator[Hit]:
    folded = fold_case(subject.text)
    for signature in candidates:
        if signature.literals and not any(literal in folded for literal in signature.literals):
            continue
        if span := _search(signature, subject.text):
            yield Hit(signature, *span)


def _search(signature: Signature, text: str) -> tuple[int, int] | None:
    if signature.engine == "re2":
        hit = compile_pattern(signature.regex).search(text)
        return (hit.start(), hit.end()) if hit else None
    import regex

    try:
        legacy = regex.search(signature.regex, text[:LOG_TEXT], timeout=LEGACY_TIMEOUT)
    except (TimeoutError, regex.error):
        return None
    return (legacy.start(), legacy.end()) if legacy else None


def _frames_agree(signature: Signature, frames: Sequence[Frame]) -> bool:
    if not signature.frames:
        return True
    patterns = [compile_pattern(pattern) for pattern in signature.frames]
    places = {text for frame in frames for text in (frame.file.replace("\\", "/"), frame.function) if text}
    return any(pattern.search(place) for place in places for pattern in patterns)


class _Superseded:
    """Picks the most specific of several hits in one text."""

    def __init__(self, candidates: Iterable[Signature]) -> None:
        self.beats = {s.entry_id: frozenset(s.supersedes) for s in candidates}

    def best(self, hits: Iterable[Hit]) -> Hit | None:
        remaining = list(hits)
        ids = {hit.signature.entry_id for hit in remaining}
        beaten = {loser for winner in ids for loser in self.beats.get(winner, ()) if loser != winner}
        remaining = [hit for hit in remaining if hit.signature.entry_id not in beaten] or remaining
        order = {"error": 0, "warning": 1, "wrapper": 2}
        return min(
            remaining,
            key=lambda hit: (
                hit.signature.legacy,
                order[hit.signature.kind],
                not hit.signature.frames,
                -(hit.end - hit.start),
                hit.signature.entry_id,
                hit.signature.ordinal,
            ),
            default=None,
        )


def _of_exception(failure: Failure, hit: Hit) -> Found:
    incident = failure.incident
    name = (incident.type or "").rpartition(".")[2]
    expected = {item.rpartition(".")[2] for item in hit.signature.exceptions}
    exact = not expected or name in expected
    place = f"line {incident.line}"
    if exact:
        why = f"{place}: {name} with this message"
    else:
        why = f"{place}: this message, though carried by {name} and not by {' or '.join(sorted(expected))}"
    if hit.signature.frames:
        why += ", and the frames of this case"
    if hit.signature.legacy:
        why += ", by an imported pattern"
    return _found(hit, failure.subject, "exact" if exact else "line", why)


def _in_log(
    candidates: Sequence[Signature], log: Sequence[Line], frames: Sequence[Frame], superseded: _Superseded
) -> list[tuple[Incident, Found]]:
    """Each entry's first log line, and the ranks that logged it."""
    first: dict[str, tuple[Incident, Found]] = {}
    for subject in _windows(candidates, log):
        hits = [h for h in _hits(candidates, subject) if _frames_agree(h.signature, frames)]
        winner = superseded.best(hits)
        if winner is None:
            continue
        line, _ = subject.locate(winner.start)
        entry_id = winner.signature.entry_id
        if entry_id in first:
            incident, found = first[entry_id]
            if line.source and line.source not in incident.ranks:
                ranks = (*incident.ranks, line.source)
                first[entry_id] = (_log_incident(incident.message, incident.line, ranks), found)
            continue
        why = f"line {line.number}: a log line with this message"
        if winner.signature.legacy:
            why += ", by an imported pattern"
        incident = _log_incident(line.text.strip(), line.number, (line.source,) if line.source else ())
        first[entry_id] = (incident, _found(winner, subject, "line", why))
    return list(first.values())


def _windows(candidates: Sequence[Signature], log: Sequence[Line]) -> Iterator[Passage]:
    """Single lines first; then, for what no single line showed, neighbours read together."""
    gate = _Gate(candidates)
    texts = [" ".join(line.text.split()) for line in log]
    folded = [fold_case(text) for text in texts]
    interesting = {index for index, text in enumerate(folded) if gate.lets_through(text)}
    for index in sorted(interesting):
        yield Passage((log[index],), texts[index])
    for index in range(len(log) - 1):
        if index in interesting:
            continue
        source = log[index].source
        near = [other for other in range(index, min(index + WINDOW, len(log))) if log[other].source == source]
        if len(near) == 1 or sum(len(log[other].text) for other in near) > LOG_TEXT:
            continue
        if any(log[other].full for other in near[:-1]):
            window = passage([log[other] for other in near])
            if gate.lets_through(fold_case(window.text)):
                yield window
        elif gate.lets_through(" ".join([folded[other] for other in near])):
            yield Passage(tuple(log[other] for other in near), " ".join([texts[other] for other in near]))


class _Gate:
    """Whether any of several signatures can match in a folded text."""

    def __init__(self, signatures: Sequence[Signature]) -> None:
        self._literals = {literal for signature in signatures for literal in signature.literals}
        self._open = not all(signature.literals for signature in signatures)

    def lets_through(self, folded: str) -> bool:
        if self._open:
            return True
        for literal in self._literals:  # noqa: SIM110  (asked for every line of a log; a generator takes twice as long)
            if literal in folded:
                return True
        return False


def _log_incident(message: str, line: int, ranks: tuple[str, ...]) -> Incident:
    return Incident(kind="log", type=None, message=message[:LOG_TEXT], line=line, ranks=ranks)


def _found(hit: Hit, subject: Passage, level: Level, why: str) -> Found:
    line, start = subject.locate(hit.start)
    last, end = subject.locate(max(hit.start, hit.end - 1))
    raw_start = line.raw_column(start)
    raw_end = line.raw_column(end) + 1 if last is line else line.raw_column(max(start, len(line.text.rstrip()) - 1)) + 1
    return Found(
        entry_id=hit.signature.entry_id,
        kind=hit.signature.kind,
        level=level,
        incident=-1,
        line=line.number,
        span=(raw_start, raw_end),
        signature=hit.signature.signature,
        why=why,
        ordinal=hit.signature.ordinal,
        supersedes=frozenset(hit.signature.supersedes),
    )


def _numbered(
    parsed: Parsed, found: Sequence[tuple[Incident, Found]]
) -> tuple[tuple[Incident, ...], tuple[Found, ...]]:
    """Put log incidents behind the exceptions, sort all by line, and point matches and chains at the new places."""
    from dataclasses import replace

    best: dict[str, tuple[Incident, Found]] = {}
    for incident, match in sorted(
        found, key=lambda pair: (pair[1].level != "exact", pair[0].kind == "log", pair[1].line)
    ):
        best.setdefault(match.entry_id, (incident, match))
    exceptions = [failure.incident for failure in parsed.failures]
    logs = [incident for incident, _ in best.values() if incident.kind == "log"]
    order = sorted([*enumerate(exceptions), *((None, incident) for incident in logs)], key=lambda pair: pair[1].line)
    position = {old: new for new, (old, _) in enumerate(order) if old is not None}
    places = {id(incident): new for new, (_, incident) in enumerate(order)}
    incidents = tuple(
        replace(incident, follows=position[incident.follows]) if incident.follows is not None else incident
        for _, incident in order
    )
    shown: dict[str, set[int]] = {}
    for incident, match in found:
        if incident.kind == "exception":
            shown.setdefault(match.entry_id, set()).add(places[id(incident)])
    matches = []
    for incident, match in best.values():
        place = places[id(incident)]
        repeats = tuple(sorted(shown.get(match.entry_id, set()) - {place}))
        matches.append(replace(match, incident=place, repeats=repeats))
    return incidents, tuple(sorted(matches, key=lambda match: match.line))


def error_line(incidents: Sequence[Incident]) -> str:
    """The line to look for relatives with when nothing matched: the last exception's."""
    for incident in reversed(incidents):
        if incident.kind == "exception":
            first = incident.message.split("\n", 1)[0]
            return re.sub(r"\s+", " ", f"{incident.type}: {first}")[:400]
    return ""
