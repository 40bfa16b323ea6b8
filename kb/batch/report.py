"""What a batch found as one HTML page: shares, a trend, the most frequent errors, the entries to write next.

The page needs no network and no script. Everything on it that came from a log is redacted and escaped.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

from kb.batch import totals
from kb.batch.store import Store
from kb.errors import UsageError

TOP = 25
"""Errors, and kinds of unknown failures, that are shown."""
_BARS = 60
_WIDTH, _HEIGHT = 900, 180
_SPARK = 120
"""Pixels of the plots."""
KINDS = ("known", "unknown", "silent")


@dataclass(frozen=True)
class Bar:
    """One stretch of time in a plot. `stacks` are kind, logs, top and height in pixels, from below."""

    label: str
    x: float
    width: float
    stacks: tuple[tuple[str, int, float, float], ...]


@dataclass(frozen=True)
class Row:
    """One error in the table."""

    name: str
    logs: int
    share: float
    """Of the logs in which a failure was seen."""
    bar: float
    """Pixels, the most frequent error being the longest."""
    followed: int
    """Of these, logs that show only a consequence or a launcher's summary, and not what began it."""
    spark: str
    """Points of a line, empty where times are not known."""


def draw(location: str) -> str:
    """The page for the results in a folder. Raises UsageError if no batch has ended there."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from kb.render.page import safe

    store = Store(location)
    data = store.read("summary.json")
    if data is None:
        raise UsageError(f"{location}: no batch has ended here", "kb batch IN OUT, then kb batch report OUT")
    summary = json.loads(data)
    counts = totals.read(store, "counts.parquet")
    faults = totals.read(store, "failures.parquet")
    templates = Environment(
        loader=PackageLoader("kb.batch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(safe_text=safe, grouped=lambda number: f"{number:,}", percent=_percent)
    bins = _bins([row["hour"] for row in counts if row["hour"] is not None])
    return templates.get_template("report.html").render(
        summary=summary,
        style=(files("kb.web") / "static" / "style.css").read_text("utf-8"),
        failures=summary["known"] + summary["unknown"],
        bars=_bars(counts, bins),
        box=(_WIDTH, _HEIGHT, _SPARK),
        undated=sum(row["logs"] for row in counts if row["hour"] is None),
        rows=_rows(counts, bins),
        clusters=totals.read(store, "unknown.parquet")[:TOP],
        faults=faults[:TOP],
        kinds=KINDS,
    )


def _kind(row: Mapping[str, Any]) -> str:
    return "unknown" if row["unknown"] else "known" if row["entry"] else "silent"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


@dataclass(frozen=True)
class _Bins:
    """Equal stretches of time."""

    start: datetime
    step: timedelta
    count: int

    def place(self, time: datetime) -> int:
        return min(self.count - 1, (time - self.start) // self.step)

    def label(self, place: int) -> str:
        at = self.start + place * self.step
        return at.strftime("%Y-%m-%d" if self.step >= timedelta(days=1) else "%Y-%m-%d %H:%M")


def _bins(times: Sequence[datetime]) -> _Bins | None:
    """Hours, days, or as many days as it takes to keep the plot readable."""
    if not times:
        return None
    first, last = min(times), max(times)
    if last - first < timedelta(hours=_BARS):
        step = timedelta(hours=1)
    else:
        first = first.replace(hour=0)
        step = timedelta(days=(last - first).days // _BARS + 1)
    return _Bins(first, step, (last - first) // step + 1)


def _bars(counts: Sequence[Mapping[str, Any]], bins: _Bins | None) -> list[Bar]:
    if bins is None:
        return []
    found: list[Counter[str]] = [Counter() for _ in range(bins.count)]
    for row in counts:
        if row["hour"] is not None:
            found[bins.place(row["hour"])][_kind(row)] += row["logs"]
    most = max(sum(one.values()) for one in found) or 1
    width = _WIDTH / bins.count
    return [
        Bar(bins.label(place), round(place * width, 1), round(max(1.0, width - 2), 1), _stacked(one, most))
        for place, one in enumerate(found)
    ]


def _stacked(one: Counter[str], most: int) -> tuple[tuple[str, int, float, float], ...]:
    stacks, below = [], 0
    for kind in KINDS:
        height = one[kind] * _HEIGHT / most
        below += one[kind]
        if one[kind]:
            stacks.append((kind, one[kind], round(_HEIGHT - below * _HEIGHT / most, 1), round(height, 1)))
    return tuple(stacks)


def _rows(counts: Sequence[Mapping[str, Any]], bins: _Bins | None) -> list[Row]:
    logs: Counter[str] = Counter()
    followed: Counter[str] = Counter()
    trend: dict[str, Counter[int]] = defaultdict(Counter)
    for row in counts:
        if (name := row["entry"]) is None:
            continue
        logs[name] += row["logs"]
        followed[name] += row["logs"] if row["role"] != "root" else 0
        if bins is not None and row["hour"] is not None:
            trend[name][bins.place(row["hour"])] += row["logs"]
    failures = sum(row["logs"] for row in counts if row["entry"] or row["unknown"])
    top = sorted(logs.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    return [
        Row(
            name,
            number,
            share=number / failures,
            bar=round(_SPARK * number / top[0][1], 1),
            followed=followed[name],
            spark=_spark(trend[name], bins),
        )
        for name, number in top
    ]


def _spark(trend: Counter[int], bins: _Bins | None) -> str:
    if bins is None or bins.count < 2 or not trend:
        return ""
    most = max(trend.values())
    points = (
        f"{place * _SPARK / (bins.count - 1):.1f},{22 - 20 * trend[place] / most:.1f}" for place in range(bins.count)
    )
    return " ".join(points)
