"""What each stage made of a paste, and why an entry was not the answer.

Slower than matching, and for people: every verdict comes from the stages themselves, asked again about one text and
one signature at a time, so that an explanation cannot disagree with the answer it explains.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kb import roles
from kb.environment import from_paste, merged
from kb.index import Signature
from kb.literals import fold_case
from kb.matcher import WINDOW, Candidates, Found, find
from kb.models.result import Environment, Frame, Incident, Line, Role
from kb.parse import Failure, Parsed, parse, passage

SHOWN_TEXT = 400
"""Code points of a searched text that an explanation quotes."""

Outcome = Literal["won", "lost", "frames", "pattern"]
Condition = Literal["answered", "withdrawn", "empty", "literal", "pattern", "frames", "lost"]


@dataclass(frozen=True, slots=True)
class Noise:
    """One kind of noise that was taken off lines."""

    taken: str
    """As it stood on the first such line; pieces are joined by ` … `."""
    line: int
    lines: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Lines that were read one after the other because they carried the same mark."""

    name: str | None
    line: int
    lines: int


@dataclass(frozen=True, slots=True)
class Tried:
    """One signature whose literal stands in a searched text."""

    entry_id: str
    signature: str
    literal: str
    """Empty if the pattern requires none."""
    outcome: Outcome
    why: str
    line: int | None = None
    span: tuple[int, int] | None = None
    """Where the pattern was found, as in an answer; None if it was not."""


@dataclass(frozen=True, slots=True)
class Searched:
    """One text that patterns were searched in: an exception's, a log line's, or that of neighbouring lines."""

    kind: Literal["exception", "log"]
    line: int
    text: str
    ranks: tuple[str, ...]
    tried: tuple[Tried, ...]
    copies: int = 1
    """Log lines with the same outcome, this one included."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer with its role and the reasons for both."""

    entry_id: str
    level: str
    role: Role
    line: int
    why: str
    role_why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every stage's result, in the order of the stages."""

    lines: int
    noise: tuple[Noise, ...]
    streams: tuple[Stream, ...]
    incidents: tuple[Incident, ...]
    searched: tuple[Searched, ...]
    """Texts with at least one candidate."""
    answers: tuple[Judged, ...]
    first_ranks: tuple[str, ...]
    """Ranks that the launcher saw fail first."""
    unknown: int | None
    """Index of the incident that no entry knows and that began it, as far as can be told."""
    environment: Environment


@dataclass(frozen=True, slots=True)
class WhyNot:
    """The first condition that an entry failed, over the text on which it came furthest."""

    entry_id: str
    condition: Condition
    why: str
    signature: str | None = None
    """The wording that came furthest."""
    line: int | None = None
    text: str | None = None
    needs: tuple[str, ...] = ()
    """Literals of which one must stand, the pattern, or frame patterns: what the condition asks for."""
    winner: str | None = None
    """The entry that won instead."""
    note: str = ""


def explain(
    raw: Sequence[tuple[int, str]],
    lines: Sequence[Line],
    candidates: Candidates,
    edges: Mapping[str, frozenset[str]],
    environment: Environment | None = None,
) -> Explanation:
    """Take denoised lines through all further stages and keep what each made of them.

    `raw` are the lines as they were, with their numbers.
    """
    parsed = parse(lines)
    incidents, found = find(parsed, candidates)
    clues = roles.clues(raw, lines, incidents)
    parts = roles.assign(found, incidents, edges, clues)
    return Explanation(
        lines=len(lines),
        noise=_noise(dict(raw), lines),
        streams=_streams(lines),
        incidents=incidents,
        searched=tuple(_searched(parsed, candidates(_folded(parsed)), found)),
        answers=tuple(Judged(p.found.entry_id, p.found.level, p.role, p.found.line, p.found.why, p.why) for p in parts),
        first_ranks=clues.first_ranks,
        unknown=None if any(part.role == "root" for part in parts) else roles.unknown_origin(incidents, found, clues),
        environment=merged(from_paste(lines, parsed.frames), environment or Environment()),
    )


def why_not(lines: Sequence[Line], entry_id: str, signatures: Sequence[Signature], candidates: Candidates) -> WhyNot:
    """Why denoised lines are not answered with an entry. `signatures` are all of that entry, none if withdrawn."""
    if not signatures:
        return WhyNot(entry_id, "withdrawn", "the entry is withdrawn: nothing is matched against it")
    parsed = parse(lines)
    _, found = find(parsed, candidates)
    if answer := next((match for match in found if match.entry_id == entry_id), None):
        note = "the exception class is not one of the entry's, which only lowers the level to `line`"
        demoted = answer.level == "line" and "though carried by" in answer.why
        why = f"it is an answer: {answer.why}"
        return WhyNot(entry_id, "answered", why, answer.signature, answer.line, note=note if demoted else "")
    if not any(line.text.strip() for line in lines):
        return WhyNot(entry_id, "empty", "the paste has no text")
    others = [s for s in candidates(_folded(parsed)) if s.entry_id != entry_id]
    reached = [
        (place, tried)
        for place in _searched(parsed, [*others, *signatures], found)
        for tried in place.tried
        if tried.entry_id == entry_id
    ]
    if not reached:
        return _without_literal(entry_id, signatures, lines)
    order = {"pattern": 0, "frames": 1, "lost": 2, "won": 3}
    place, tried = max(reached, key=lambda pair: order[pair[1].outcome])
    signature = next(s for s in signatures if s.signature == tried.signature)
    condition: Condition = "lost" if tried.outcome == "won" else tried.outcome
    return WhyNot(
        entry_id,
        condition,
        tried.why,
        tried.signature,
        tried.line or place.line,
        place.text,
        needs=signature.frames if condition == "frames" else (signature.regex,),
        winner=next((t.entry_id for t in place.tried if t.outcome == "won"), None) if condition == "lost" else None,
    )


def _without_literal(entry_id: str, signatures: Sequence[Signature], lines: Sequence[Line]) -> WhyNot:
    literals = tuple(dict.fromkeys(literal for s in signatures for literal in s.literals))
    note = ""
    place = next((line for line in lines if any(literal in fold_case(line.text) for literal in literals)), None)
    if place is not None:
        note = f"one stands on line {place.number}, in source code or a frame of a traceback, which is not searched"
    elif any(literal in fold_case(" ".join(" ".join(line.text for line in lines).split())) for literal in literals):
        note = f"one stands in the paste, but broken over lines that are not read together (at most {WINDOW} are)"
    why = "none of the literals that its patterns require stands in an exception's message or a log line"
    return WhyNot(entry_id, "literal", why, line=place.number if place else None, needs=literals, note=note)


def _folded(parsed: Parsed) -> str:
    texts = [*(failure.subject.text for failure in parsed.failures), *(line.text for line in parsed.log)]
    return fold_case(" ".join(" ".join(texts).split()))


# --- denoise and parse ----------------------------------------------------------------------------------------


def _noise(raw: Mapping[int, str], lines: Iterable[Line]) -> tuple[Noise, ...]:
    """What was taken off, gathered over lines where it differs in figures only."""
    kinds: dict[str, Noise] = {}
    for line in lines:
        pieces = _taken(raw.get(line.number, ""), line)
        if not pieces:
            continue
        shape = " … ".join(re.sub(r"\d+", "0", piece) for piece in pieces)
        known = kinds.get(shape)
        kinds[shape] = replace(known, lines=known.lines + 1) if known else Noise(" … ".join(pieces), line.number, 1)
    return tuple(kinds.values())


def _taken(raw: str, line: Line) -> list[str]:
    pieces = []
    end = 0
    length = len(line.text)
    for (clean, start), following in zip(line.cuts, [*line.cuts[1:], (length, 0)], strict=True):
        pieces.append(raw[end:start].rpartition("\r")[2])
        end = start + max(0, min(following[0], length) - clean)
    pieces.append(raw[end:].partition("\r")[0])
    return [piece for piece in pieces if piece.strip()]


def _streams(lines: Iterable[Line]) -> tuple[Stream, ...]:
    streams: dict[str | None, Stream] = {}
    for line in lines:
        known = streams.get(line.source)
        streams[line.source] = replace(known, lines=known.lines + 1) if known else Stream(line.source, line.number, 1)
    return tuple(streams.values())


# --- match ----------------------------------------------------------------------------------------------------


def _searched(parsed: Parsed, signatures: Sequence[Signature], found: Sequence[Found]) -> list[Searched]:
    """Every text with a candidate, in the order of lines; log lines with the same outcome are counted."""
    places = [_of_failure(failure, signatures, parsed.frames) for failure in parsed.failures]
    log = [line for line in parsed.log if line.text.strip()]
    singles = [_of_lines([line], signatures, parsed.frames) for line in log]
    won = {place.line for place in (*places, *singles) if any(tried.outcome == "won" for tried in place.tried)}
    joined = {match.line for match in found} - won
    for index, line in enumerate(log):
        if line.number in joined:  # matched only together with its neighbours
            group = [other for other in log[index : index + WINDOW] if other.source == line.source]
            singles.append(_of_lines(group, signatures, parsed.frames))
    grouped: dict[tuple[tuple[str, str, str], ...], Searched] = {}
    for place in singles:
        key = tuple((tried.entry_id, tried.signature, tried.outcome) for tried in place.tried)
        known = grouped.get(key)
        grouped[key] = replace(known, copies=known.copies + 1) if known else place
    return sorted((place for place in [*places, *grouped.values()] if place.tried), key=lambda place: place.line)


def _of_failure(failure: Failure, signatures: Sequence[Signature], frames: tuple[Frame, ...]) -> Searched:
    incident = replace(failure.incident, follows=None, link=None)
    parsed = Parsed((replace(failure, incident=incident),), (), frames)
    tried = _contest(parsed, failure.subject.text, signatures)
    return Searched("exception", incident.line, failure.subject.text[:SHOWN_TEXT], incident.ranks, tried)


def _of_lines(lines: Sequence[Line], signatures: Sequence[Signature], frames: tuple[Frame, ...]) -> Searched:
    text = passage(lines).text
    ranks = (lines[0].source,) if lines[0].source else ()
    tried = _contest(Parsed((), tuple(lines), frames), text, signatures)
    return Searched("log", lines[0].number, text[:SHOWN_TEXT], ranks, tried)


def _contest(parsed: Parsed, text: str, signatures: Sequence[Signature]) -> tuple[Tried, ...]:
    folded = fold_case(text)
    standing = [(s, next((lit for lit in s.literals if lit in folded), None)) for s in signatures]
    candidates = [(s, literal or "") for s, literal in standing if literal is not None or not s.literals]
    spans = {id(s): _first(parsed, [replace(s, frames=())]) for s, _ in candidates}
    fitting = [s for s, _ in candidates if spans[id(s)] and _first(parsed, [s])]
    best = _first(parsed, fitting)
    winner = best and next(s for s in fitting if (s.entry_id, s.ordinal) == (best.entry_id, best.ordinal))
    return tuple(
        _tried(s, literal, spans[id(s)], fits=s in fitting, winner=winner or None, best=best)
        for s, literal in candidates
    )


def _first(parsed: Parsed, signatures: Sequence[Signature]) -> Found | None:
    _, found = find(parsed, list(signatures))
    return found[0] if found else None


def _tried(
    signature: Signature, literal: str, hit: Found | None, *, fits: bool, winner: Signature | None, best: Found | None
) -> Tried:
    outcome: Outcome = "lost"
    if hit is None:
        outcome, why = "pattern", "the literal stands there, but the pattern does not match"
    elif not fits:
        outcome, why = "frames", f"no frame of the paste fits {' or '.join(signature.frames)}"
    elif signature is winner:
        outcome, why = "won", hit.why
    elif winner is not None and best is not None:
        why = _lost(signature, hit, winner, best)
    else:
        why = ""
    return Tried(
        signature.entry_id,
        signature.signature,
        literal,
        outcome,
        why,
        line=hit.line if hit else None,
        span=hit.span if hit else None,
    )


def _lost(signature: Signature, hit: Found, winner: Signature, best: Found) -> str:
    """The first rule of preference by which the winner was taken."""
    name = winner.entry_id
    if signature.entry_id == name:
        return "another wording of the same entry fits better"
    if signature.entry_id in winner.supersedes:
        return f"{name} supersedes it"
    if signature.legacy and not winner.legacy:
        return f"its pattern is imported, that of {name} is not"
    if signature.kind != winner.kind:
        return f"a {signature.kind} yields to the {winner.kind} {name}"
    if winner.frames and not signature.frames:
        return f"{name} is also confirmed by frames"
    own, other = hit.span[1] - hit.span[0], best.span[1] - best.span[0]
    if other > own:
        return f"{name} matches more of the text: {other} against {own} characters"
    return f"{name} is as good and comes first by its id, or a third entry supersedes this one"
