"""An answer for a reader that pays for every token: what to do first, in at most about 1,500 tokens.

Text is cut, never lists of facts about proof: each claim keeps its rate or the reason why it has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kb.models.result import Caution, Fix, Frame, Incident, Match, Result
from kb.render import causes
from kb.render.page import safe
from kb.render.text import place, shown
from kb.render.words import TIERS

FIXES = 3
DEAD_ENDS = 3
OTHERS = 5
CAUSES = 4
_HOW, _TEXT, _LINE, _SHORT = 1_200, 360, 200, 80


def answer(result: Result, *, full: bool = False) -> dict[str, Any]:
    """`{recognised, entry, also, unknown, related}` of plain values; `full` cuts nothing of the first entry."""
    return {
        "recognised": not result.abstained,
        "entry": _entry(result.matches[0], result, full=full) if result.matches else None,
        "also": [_other(match) for match in result.matches[1 : None if full else 1 + OTHERS]],
        "unknown": _unknown(result),
        "related": [hit.entry_id for hit in result.related],
    }


def _entry(match: Match, result: Result, *, full: bool) -> dict[str, Any]:
    incident = result.query.incidents[match.incident]
    return {
        "id": match.entry_id,
        "role": match.role,
        "why": _cut(match.why, _LINE, full),
        "seen": _cut(shown(incident), _LINE, full),
        "your_code": _place(incident.user_frame),
        "ranks": list(incident.ranks[:8]),
        "proof": TIERS[match.verification_tier][1],
        "root_cause": _cut(match.root_cause, _TEXT, full),
        "causes": _causes(match, match.fixes[: _few(full, FIXES)], full=full),
        "fixes": [
            _fix(fix, match, first=number == 0, full=full)
            for number, fix in enumerate(match.fixes[: _few(full, FIXES)])
        ],
        "dead_ends": [_dead_end(item, full=full) for item in match.dead_ends[: _few(full, DEAD_ENDS)]],
        "recoverability": match.recoverability,
    }


def _few(full: bool, count: int) -> int | None:
    return None if full else count


def _causes(match: Match, fixes: Sequence[Fix], *, full: bool) -> list[dict[str, str]]:
    """What to tell the causes apart by that these fixes are for."""
    wanted = {name for fix in fixes for name in causes.meant(fix, match.causes)}
    listed = [
        {"id": cause["id"], "tell_by": _cut(cause.get("detection") or causes.gist(cause), _SHORT, full)}
        for cause in causes.told_apart(match.causes, match.fixes)
        if full or cause["id"] in wanted
    ]
    return listed[: _few(full, CAUSES)]


def _fix(fix: Fix, match: Match, *, first: bool, full: bool) -> dict[str, Any]:
    return {
        "id": fix.id,
        "action": _cut(fix.action, _LINE, full),
        "for_causes": list(causes.meant(fix, match.causes)),
        "condition": _cut(fix.condition, _SHORT, full),
        "how": _cut(fix.how, _HOW, full) if first or full else "",
        "why": _cut(fix.why, _LINE, full),
        "applies": fix.applies,
        "trade_off": _cut(fix.trade_off, _LINE, full) if first or full else "",
        "verification": fix.verification,
    }


def _dead_end(item: Caution, *, full: bool) -> dict[str, Any]:
    return {
        "id": item.id,
        "action": _cut(item.action, _LINE, full),
        "why": _cut(f"{item.why}; {item.why_fails}", 2 * _SHORT, full),
    }


def _other(match: Match) -> dict[str, Any]:
    return {"id": match.entry_id, "role": match.role, "why": _cut(match.why, _LINE, False)}


def _unknown(result: Result) -> dict[str, Any] | None:
    """What was understood of a failure that no entry knows."""
    index = result.unknown_root
    if index is None and result.abstained:
        index = next((i for i in reversed(range(len(result.query.incidents)))), None)
    if index is None:
        return None
    incident: Incident = result.query.incidents[index]
    return {
        "seen": _cut(shown(incident), _LINE, False),
        "raised_by": incident.package,
        "your_code": _place(incident.user_frame),
    }


def _place(frame: Frame | None) -> str | None:
    return _cut(place(frame), _LINE, False) if frame else None


def _cut(text: str, length: int, full: bool) -> str:
    kept = "\n".join(safe(line) for line in text.split("\n"))
    return kept if full or len(kept) <= length else kept[: length - 1].rstrip() + "…"


def text(data: Mapping[str, Any]) -> str:
    """The same in lines, for a model to read."""
    lines: list[str] = []
    if entry := data["entry"]:
        lines += [f"{entry['id']} ({entry['role']}; {entry['proof']})", f"Seen: {entry['seen']}"]
        lines += [f"Your code: {entry['your_code']}"] if entry["your_code"] else []
        lines += [f"Cause: {entry['root_cause']}"]
        lines += [f"- {cause['id']}: {cause['tell_by']}" for cause in entry["causes"]]
        lines += ["Fixes, best first:"]
        for number, fix in enumerate(entry["fixes"], start=1):
            lines.append(f"{number}. {fix['action']} [{fix['why']}]")
            lines += [f"   For: {', '.join(fix['for_causes'])}"] if fix["for_causes"] else []
            lines += [f"   When: {fix['condition']}"] if fix["condition"] else []
            lines += [f"   {line}" for line in fix["how"].split("\n") if line.strip()]
            lines += [f"   But: {fix['trade_off']}"] if fix["trade_off"] else []
        lines += ["Do not:"] if entry["dead_ends"] else []
        lines += [f"- {item['action']} [{item['why']}]" for item in entry["dead_ends"]]
        lines.append(f"Recoverability: {entry['recoverability']}")
    lines += [f"Also: {other['id']} ({other['role']}: {other['why']})" for other in data["also"]]
    if unknown := data["unknown"]:
        lines.append(
            f"In no entry: {unknown['seen']}" + (f" at {unknown['your_code']}" if unknown["your_code"] else "")
        )
    if not data["recognised"]:
        lines.insert(0, "Unknown: no entry of the knowledge base matches this. Do not guess from related entries.")
        lines += [f"Related, not an answer: {', '.join(data['related'])}"] if data["related"] else []
    return "\n".join(lines)
