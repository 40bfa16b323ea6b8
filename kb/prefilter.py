"""Which literals stand in a text: an automaton over all of them, or short grams that an index can be asked for.

An automaton reads a text once, however many literals there are, and is worth building where many texts are read. A
single look-up asks the index for the grams of its text instead, which needs nothing built or loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GRAM = 4
"""Code points of a gram. Of a shorter literal, which only imported patterns have, the gram is the empty text."""


class Automaton:
    """All literals in one Aho-Corasick automaton. Immutable, so threads may share it."""

    def __init__(self, literals: Mapping[str, Iterable[int]]) -> None:
        """`literals` maps each case-folded literal to what it stands for."""
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        self.meanings: tuple[tuple[int, ...], ...] = tuple(tuple(numbers) for numbers in literals.values())
        self._search: Any = None
        if literals:
            patterns = [literal.encode("utf-8", "surrogatepass") for literal in literals]
            self._search = BytesAhoCorasick(patterns, implementation=Implementation.ContiguousNFA)

    def hits(self, folded: bytes) -> Sequence[tuple[int, int, int]]:
        """(number of the literal, start, end) of all literals in a folded text, by their ends; they may overlap."""
        found: Sequence[tuple[int, int, int]] = ()
        if self._search is not None:
            found = self._search.find_matches_as_indexes(folded, overlapping=True)
        return found

    def numbers(self, folded: str) -> set[int]:
        """What the literals in a case-folded text stand for."""
        hits = self.hits(folded.encode("utf-8", "surrogatepass"))
        return {number for literal in {hit[0] for hit in hits} for number in self.meanings[literal]}


def grams(folded: str) -> set[str]:
    """Every gram of a text."""
    return {folded[start : start + GRAM] for start in range(len(folded) - GRAM + 1)}


def rarest_grams(literals: Iterable[str]) -> dict[str, str]:
    """For each literal the one of its grams by which it is looked up: the gram fewest literals share.

    Literals are pieces of error messages, so what is rare among them is rare in the texts that are asked.
    """
    known = sorted(set(literals))
    shared = Counter(gram for literal in known for gram in grams(literal))
    return {literal: min(grams(literal), key=lambda gram: (shared[gram], gram), default="") for literal in known}
