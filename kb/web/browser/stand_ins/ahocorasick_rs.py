"""Stands in for ahocorasick_rs where only Python is: each literal is looked for by itself."""

from collections.abc import Iterable


class Implementation:
    """Accepted and ignored."""

    ContiguousNFA = DFA = NoncontiguousNFA = None


class BytesAhoCorasick:
    """Finds byte strings."""

    def __init__(self, patterns: Iterable[bytes], implementation: object = None) -> None:  # noqa: ARG002
        self._patterns = [bytes(pattern) for pattern in patterns]

    def find_matches_as_indexes(self, haystack: bytes, overlapping: bool = False) -> list[tuple[int, int, int]]:  # noqa: ARG002
        """`(number, start, end)` of all, by their ends."""
        text = bytes(haystack)
        found = []
        for number, pattern in enumerate(self._patterns):
            at = text.find(pattern)
            while at >= 0:
                found.append((number, at, at + len(pattern)))
                at = text.find(pattern, at + 1)
        return sorted(found, key=lambda hit: (hit[2], hit[1]))
