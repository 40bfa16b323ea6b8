"""Explanations as a page of text: one heading for each stage, in the order of the stages."""

from __future__ import annotations

from dataclasses import fields

from kb.explain import Explanation, Searched, Tried, WhyNot
from kb.models.result import Environment, Incident
from kb.render.page import Page
from kb.render.text import place

MOST = 12
"""Rows of one stage that are shown; `--format json` has them all."""

_MARKS = {"won": "✓", "lost": "·", "frames": "✗", "pattern": "✗"}


def explanation(item: Explanation, *, width: int, color: bool) -> str:
    """What every stage made of a paste."""
    page = Page(width, color=color)
    _denoised(page, item)
    _parsed(page, item)
    _matched(page, item)
    _judged(page, item)
    page.title("Environment", _environment(item.environment) or "nothing is known of it")
    return page.text()


def why_not(item: WhyNot, *, width: int, color: bool) -> str:
    """The first condition that an entry failed."""
    page = Page(width, color=color)
    answered = item.condition == "answered"
    page.title(item.entry_id, "is an answer" if answered else "is not an answer", "green" if answered else "yellow")
    page.field("Because", item.why)
    if item.line is not None:
        page.field("Line", f"{item.line}: {item.text}" if item.text else str(item.line))
    if item.signature:
        page.field("Wording", item.signature, "dim")
    if item.condition == "literal":
        _rows(page, "Needs one", [f"`{literal}`" for literal in item.needs])
    elif item.condition in ("pattern", "frames"):
        _rows(page, "Needs", list(item.needs))
    if item.winner:
        page.field("Instead", f"kb show {item.winner}")
    if item.note:
        page.field("Note", item.note)
    return page.text()


def _denoised(page: Page, item: Explanation) -> None:
    changed = sum(noise.lines for noise in item.noise)
    page.title("Denoise", f"{item.lines} lines, {changed} of them changed")
    rows = [f"{noise.taken.strip()} — from {_times(noise.lines)}, first on line {noise.line}" for noise in item.noise]
    _rows(page, "taken off", rows)
    page.blank()


def _parsed(page: Page, item: Explanation) -> None:
    page.title("Parse", f"{_count(len(item.streams), 'stream')}, {_count(len(item.incidents), 'incident')}")
    named = [stream for stream in item.streams if stream.name]
    _rows(page, "streams", [f"{s.name}: {_count(s.lines, 'line')} from line {s.line}" for s in named])
    _rows(page, "incidents", [f"[{n}] {_incident(incident)}" for n, incident in enumerate(item.incidents)])
    page.blank()


def _incident(incident: Incident) -> str:
    first = next((line for line in incident.message.split("\n") if line.strip()), "")[:160]
    words = [f"line {incident.line}: {incident.type}: {first}" if incident.type else f"line {incident.line}: {first}"]
    if incident.ranks:
        shown = ", ".join(incident.ranks[:4])
        words.append(f"on {shown}" + (f" and {len(incident.ranks) - 4} more" if len(incident.ranks) > 4 else ""))
    if incident.follows is not None:
        how = "raised from" if incident.link == "cause" else "while handling"
        words.append(f"{how} [{incident.follows}]")
    if incident.user_frame:
        words.append(f"your code: {place(incident.user_frame)}")
    return " · ".join(words)


def _matched(page: Page, item: Explanation) -> None:
    candidates = {tried.entry_id for searched in item.searched for tried in searched.tried}
    page.title("Match", f"{_count(len(item.searched), 'text')} with a literal of {_count(len(candidates), 'entry')}")
    for searched in item.searched[:MOST]:
        copies = f", and {_times(searched.copies - 1)} like it" if searched.copies > 1 else ""
        page.field(f"line {searched.line}", f"{searched.text[:160]}{copies}", "yellow")
        _tried(page, searched)
    if len(item.searched) > MOST:
        page.field("", f"… {len(item.searched) - MOST} more texts", "dim")
    page.blank()


def _tried(page: Page, searched: Searched) -> None:
    """One row an entry: its wording that came furthest."""
    furthest: dict[str, Tried] = {}
    order = ("pattern", "frames", "lost", "won")
    for tried in searched.tried:
        known = furthest.get(tried.entry_id)
        if known is None or order.index(tried.outcome) > order.index(known.outcome):
            furthest[tried.entry_id] = tried
    for tried in furthest.values():
        span = f", columns {tried.span[0]} to {tried.span[1]}" if tried.span else ""
        literal = f"`{tried.literal}`: " if tried.literal else ""
        words = f"{_MARKS[tried.outcome]} {tried.entry_id} · {literal}{tried.why}{span}"
        page.field("", words, *(("green",) if tried.outcome == "won" else ("dim",)), indent=2)


def _judged(page: Page, item: Explanation) -> None:
    page.title("Roles", "" if item.answers else "nothing was recognised")
    for answer in item.answers:
        reason = answer.role_why or "nothing before it explains it"
        page.field("", f"{answer.role}: {answer.entry_id} · {answer.level} · {answer.why} · {reason}")
    if item.first_ranks:
        page.field("launcher", f"saw {', '.join(item.first_ranks)} fail first", "dim")
    if item.unknown is not None:
        page.field("unknown", f"[{item.unknown}] {_incident(item.incidents[item.unknown])}", "yellow")
    page.blank()


def _environment(known: Environment) -> str:
    words = [f"{name} {version}" for name, version in sorted(known.packages.items())]
    words += [
        f"{field.name.replace('_', ' ')} {getattr(known, field.name)}"
        for field in fields(known)
        if field.name != "packages" and getattr(known, field.name)
    ]
    return ", ".join(words)


def _rows(page: Page, label: str, rows: list[str]) -> None:
    for number, row in enumerate(rows[:MOST]):
        page.field(label if number == 0 else "", row)
    if len(rows) > MOST:
        page.field("", f"… {len(rows) - MOST} more", "dim")


def _count(number: int, noun: str) -> str:
    plural = {"entry": "entries"}.get(noun, noun + "s")
    return f"{number} {noun if number == 1 else plural}"


def _times(number: int) -> str:
    return _count(number, "line")
