"""Which failure of a log began it: root, consequence or wrapper.

From what is certain to what is likely: an entry's kind, exception chains, known transitions between entries, and
the order of lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kb.match import Found
from kb.models.result import Incident, Role


@dataclass(frozen=True, slots=True)
class Part:
    """A match with its role in the log and the words for it."""

    found: Found
    role: Role
    why: str


def assign(
    found: Sequence[Found], incidents: Sequence[Incident], edges: Mapping[str, frozenset[str]]
) -> tuple[Part, ...]:
    """Matches with their roles, the root first, wrappers last.

    `edges` maps an entry to those it is known to lead to.
    """
    concrete = [match for match in found if match.kind != "wrapper"]
    chained = {match.entry_id: _origin(match, concrete, incidents) for match in concrete}
    caused = {match.entry_id: _cause(match, concrete, edges) for match in concrete}
    free = [m for m in concrete if not chained[m.entry_id] and not caused[m.entry_id]] or list(concrete)
    first = min(free, key=lambda match: (match.kind == "warning", match.line), default=None)
    parts = [_part(match, first, chained.get(match.entry_id), caused.get(match.entry_id)) for match in found]
    order = {"root": 0, "consequence": 1, "wrapper": 2}
    return tuple(
        sorted(parts, key=lambda p: (order[p.role], p.found is not first, p.found.level != "exact", p.found.line))
    )


def _part(match: Found, first: Found | None, origin: Found | None, cause: Found | None) -> Part:
    if match.kind == "wrapper":
        return Part(match, "wrapper", "reports that something else failed")
    if match is first:
        return Part(match, "root", "the first failure of the log" if origin or cause else "")
    if origin is not None:
        return Part(match, "consequence", f"raised because of {origin.entry_id}")
    if cause is not None:
        return Part(match, "consequence", f"known to follow {cause.entry_id}")
    return Part(match, "consequence", "appears after the first failure; it may be one of its own")


def _origin(match: Found, concrete: Sequence[Found], incidents: Sequence[Incident]) -> Found | None:
    """The recognised exception from which this one was raised."""
    by_incident = {other.incident: other for other in concrete}
    origin: Found | None = None
    seen: set[int] = set()
    current = incidents[match.incident].follows
    while current is not None and current not in seen:
        seen.add(current)
        if (other := by_incident.get(current)) is not None and other is not match:
            origin = other
        current = incidents[current].follows
    return origin


def _cause(match: Found, concrete: Sequence[Found], edges: Mapping[str, frozenset[str]]) -> Found | None:
    return next(
        (
            other
            for other in concrete
            if other is not match
            and _leads(other.entry_id, match.entry_id, edges)
            and not _leads(match.entry_id, other.entry_id, edges)
        ),
        None,
    )


def _leads(start: str, goal: str, edges: Mapping[str, frozenset[str]]) -> bool:
    seen: set[str] = set()
    open_ids = [start]
    while open_ids:
        current = open_ids.pop()
        for following in edges.get(current, frozenset()):
            if following == goal:
                return True
            if following not in seen:
                seen.add(following)
                open_ids.append(following)
    return False
