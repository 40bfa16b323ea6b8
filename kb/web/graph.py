"""The transition graph around one entry as positions for a drawing: what comes before it, after it, beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BOX_WIDTH, BOX_HEIGHT, GAP, MARGIN = 230, 40, 14, 8
SIDE = 90
"""Width of the arrows between columns."""
MOST = 6
"""Boxes of a column."""


@dataclass(frozen=True)
class Box:
    """One entry of the drawing; `x` and `y` are its upper left corner in pixels."""

    id: str
    x: int
    y: int
    kind: str
    """`before`, `self`, `after` or `confused`."""
    domain: str
    slug: str


@dataclass(frozen=True)
class Drawing:
    """Boxes and lines `(x1, y1, x2, y2, kind)`; sizes in pixels."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[tuple[int, int, int, int, str], ...]


def drawing(record: Mapping[str, Any]) -> Drawing | None:
    """None for an entry that nothing is known to come before, after or beside."""
    graph = record["transition_graph"]
    before, after = graph["preceded_by"][:MOST], graph["leads_to"][:MOST]
    beside = graph["frequently_confused_with"][:MOST]
    if not (before or after or beside):
        return None
    rows = max(len(before), len(after), 1)
    top = MARGIN
    middle = top + (rows * (BOX_HEIGHT + GAP) - GAP) // 2
    left = MARGIN + (BOX_WIDTH + SIDE if before else 0)
    boxes = [_box(record["id"], left, middle - BOX_HEIGHT // 2, "self")]
    lines: list[tuple[int, int, int, int, str]] = []
    for place, box_top in zip(before, _tops(len(before), middle), strict=True):
        boxes.append(_box(place, MARGIN, box_top, "before"))
        lines.append((MARGIN + BOX_WIDTH, box_top + BOX_HEIGHT // 2, left, middle, "leads"))
    right = left + BOX_WIDTH + SIDE
    for place, box_top in zip(after, _tops(len(after), middle), strict=True):
        boxes.append(_box(place, right, box_top, "after"))
        lines.append((left + BOX_WIDTH, middle, right, box_top + BOX_HEIGHT // 2, "leads"))
    bottom = top + rows * (BOX_HEIGHT + GAP)
    for number, place in enumerate(beside):
        box_top = bottom + 24 + number * (BOX_HEIGHT + GAP)
        boxes.append(_box(place, left, box_top, "confused"))
        if number == 0:
            lines.append((left + BOX_WIDTH // 2, middle + BOX_HEIGHT // 2, left + BOX_WIDTH // 2, box_top, "confused"))
    height = (bottom + 24 + len(beside) * (BOX_HEIGHT + GAP) if beside else bottom) + MARGIN
    width = (right + BOX_WIDTH if after else left + BOX_WIDTH) + MARGIN
    return Drawing(width, height, tuple(boxes), tuple(lines))


def _tops(count: int, middle: int) -> Sequence[int]:
    height = count * (BOX_HEIGHT + GAP) - GAP
    return [middle - height // 2 + number * (BOX_HEIGHT + GAP) for number in range(count)]


def _box(entry_id: str, x: int, y: int, kind: str) -> Box:
    domain, _, slug = entry_id.partition("/")
    return Box(entry_id, x, y, kind, domain, slug)


def drawings(edges: Mapping[str, Collection[str]]) -> list[Drawing]:
    """One drawing for each connected part of the whole graph, larger ones first: causes left, consequences right."""
    neighbours: dict[str, set[str]] = {}
    for source, targets in edges.items():
        for target in targets:
            neighbours.setdefault(source, set()).add(target)
            neighbours.setdefault(target, set()).add(source)
    parts: list[list[str]] = []
    seen: set[str] = set()
    for start in sorted(neighbours):
        part = []
        waiting = [start]
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                part.append(one)
                waiting += sorted(neighbours[one])
        if part:
            parts.append(sorted(part))
    return [_layered(part, edges) for part in sorted(parts, key=lambda part: (-len(part), part))]


def _layered(part: Sequence[str], edges: Mapping[str, Collection[str]]) -> Drawing:
    columns = _columns(part, edges)
    places: dict[str, tuple[int, int]] = {}
    for number, column in enumerate(columns):
        for row, one in enumerate(column):
            places[one] = (MARGIN + number * (BOX_WIDTH + SIDE), MARGIN + row * (BOX_HEIGHT + GAP))
    boxes = tuple(_box(one, *places[one], "self") for one in part)
    lines = []
    for source in part:
        for target in sorted(edges.get(source, ())):
            (x1, y1), (x2, y2) = places[source], places[target]
            forth = x2 > x1
            lines.append(
                (
                    x1 + (BOX_WIDTH if forth else 0),
                    y1 + BOX_HEIGHT // 2,
                    x2 + (0 if forth else BOX_WIDTH),
                    y2 + BOX_HEIGHT // 2,
                    "leads",
                )
            )
    width = 2 * MARGIN + len(columns) * (BOX_WIDTH + SIDE) - SIDE
    height = 2 * MARGIN + max(len(column) for column in columns) * (BOX_HEIGHT + GAP) - GAP
    return Drawing(width, height, boxes, tuple(lines))


def _columns(part: Sequence[str], edges: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Each entry one column behind the last of those that lead to it; what goes round in a circle is cut somewhere."""
    depth = dict.fromkeys(part, 0)
    for _ in part:
        moved = False
        for source in part:
            for target in edges.get(source, ()):
                if depth[target] <= depth[source] < len(part) - 1 and depth[source] + 1 <= 6:
                    depth[target] = depth[source] + 1
                    moved = True
        if not moved:
            break
    used = sorted(set(depth.values()))
    return [[one for one in part if depth[one] == value] for value in used]
