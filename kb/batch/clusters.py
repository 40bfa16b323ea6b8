"""Failures that no entry knows, counted by kind: the list of entries to write next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MOST = 100_000
"""Kinds that are kept when the input has more; those with the fewest logs go."""


class Clusters:
    """Counts logs by fingerprint. Every kind keeps one example, that of the log that came first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._found: dict[str, dict[str, Any]] = {}
        self.dropped = 0
        """Logs of kinds that were not kept."""

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Clusters counted elsewhere, as `rows` gives them: a single log is a cluster of one."""
        for row in rows:
            mine = self._found.get(row["fingerprint"])
            if mine is None:
                self._found[row["fingerprint"]] = dict(row)
            else:
                mine["logs"] += row["logs"]
                mine["first"] = min(filter(None, (mine["first"], row["first"])), default=None)
                mine["last"] = max(filter(None, (mine["last"], row["last"])), default=None)
        if len(self._found) > 2 * self._most:
            self._shrink()

    def rows(self) -> list[dict[str, Any]]:
        """Columns of `unknown.parquet`, times as text; the most frequent first."""
        return sorted(self._found.values(), key=lambda row: (-row["logs"], row["fingerprint"]))

    def _shrink(self) -> None:
        kept = self.rows()[: self._most]
        self.dropped += sum(row["logs"] for row in self._found.values()) - sum(row["logs"] for row in kept)
        self._found = {row["fingerprint"]: row for row in kept}
