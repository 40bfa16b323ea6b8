"""Large logs: keep the lines around what could matter, with their true places, in bounded memory.

The log is read once, as a stream. Its text is cleaned cheaply, only well enough that literals are found in it; what is
kept goes through the whole pipeline afterwards. How the stream is cut into chunks changes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from kb import lazy
from kb.denoise import OVERLAP, SEGMENT, denoise
from kb.literals import encodable
from kb.models.result import Line

HEAD = TAIL = 2_000
"""Rows kept at either end, whatever they hold: versions stand at the head, the death at the tail."""
BEFORE, AFTER = 400, 100
"""Rows kept around the first places of a literal."""
WIDE, NEAR, MOST = 16, (3, 12), 1_000
"""How many places of one literal are kept with all around them, what is kept around later ones, how many in all."""
MARKS = ("traceback (most recent call last)", "error:", "exception:", "error_file:", "fatal python error")
"""Folded texts beside the literals that make a place worth keeping: an unknown failure is understood too."""

_BLOCK = 262_144
_ROOM_BEFORE, _ROOM_AFTER = 262_144, 65_536
_ROOM_HEAD = _ROOM_TAIL = 500_000
_ROOM = 1_000_000  # code points kept of the first places, and as many of the last
_REACH = 1_024  # bytes; no literal is longer

_SPACES = bytes(code for code in range(128) if chr(code).isspace())
_CAPITALS = bytes(range(65, 91))
_PLAIN = bytes.maketrans(_CAPITALS + _SPACES, _CAPITALS.lower() + b" " * len(_SPACES))
_UNSEEN = bytes({*range(32), 127} - {*_SPACES, 27})
_LETTERS = {
    # Grouped by bytes that most texts lack, so that one test spares several searches.
    b"\xc2": {"\u00a0": " "},
    b"\xc4": {"\u0130": "i", "\u0131": "i"},
    b"\xc5": {"\u017f": "s"},
    b"\xe2\x80": {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f", ""),
    },
    b"\xe2\x81\xa0": {"\u2060": ""},
    b"\xe2\x84\xaa": {"\u212a": "k"},
    b"\xe3\x80\x80": {"\u3000": " "},
    b"\xef\xbb\xbf": {"\ufeff": ""},
}
_DISGUISES = ("^[[", "\\x1b[", "\\u001b[", "\\033[", "[0m", "[39m", "&lt;", "&gt;", "&amp;", "&quot;", "&#")
_DISGUISE = lazy.pattern(
    r"(?:\^\[|\\x1b|\\u001b|\\033)\[[0-?]{0,40}[@-~]|\[\d{1,3}(?:;\d{1,3}){0,8}m|&(?:lt|gt|amp|quot|#\d{1,7});"
)


class Row(NamedTuple):
    """A line of the log, or a segment of an endless one."""

    number: int
    """Of the line, from 1."""
    column: int
    """Of its first code point in the line."""
    text: str


class _Block:
    """Whole lines that follow each other, or one segment of an endless line."""

    def __init__(self, number: int, column: int, text: str) -> None:
        self.text = text
        self.count = text.count("\n") + (not text.endswith("\n"))
        self.first = 0
        """Place of its first row among all rows of the log."""
        self._start = (number, column)
        self._rows: list[Row] | None = None

    def rows(self) -> list[Row]:
        if self._rows is None:
            number, column = self._start
            texts = self.text.removesuffix("\n").split("\n")
            self._rows = [Row(number + place, column, text) for place, text in enumerate(texts)]
        return self._rows


def excerpt(chunks: Iterable[str], scanner: Scanner) -> list[Row]:
    """Rows worth reading, in their order; an empty row stands where others were left out."""
    reading = _Reading(scanner)
    for block in _blocks(chunks):
        reading.take(block)
    return reading.finish()


def lines(rows: Sequence[Row]) -> list[Line]:
    """Denoised lines of an excerpt, with their places in the log."""
    found: list[Line] = []
    if not rows:
        return found
    for line in denoise(encodable("\n".join(row.text for row in rows))):
        number, column, _ = rows[line.number - 1]
        cuts = tuple((clean, raw + column) for clean, raw in line.cuts) if column else line.cuts
        found.append(replace(line, number=number, cuts=cuts))
    return found


class Scanner:
    """Finds literals and marks in raw text. Immutable, so threads may share it."""

    def __init__(self, literals: Iterable[str]) -> None:
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        known = list(dict.fromkeys([*_DISGUISES, *MARKS, *literals]))
        # The fastest form takes a row of states for each byte of each literal: too much for a large catalogue.
        form = Implementation.DFA if len(known) < 5_000 else Implementation.ContiguousNFA
        patterns = [literal.encode("utf-8", "surrogatepass") for literal in known]
        self._automaton = BytesAhoCorasick(patterns, implementation=form)

    def find(self, view: bytes) -> tuple[list[tuple[int, int]], bool]:
        """(literal, end) of each hit by their ends, and whether the text is disguised, so that others may be hidden."""
        hits = [(number, end) for number, _, end in self._automaton.find_matches_as_indexes(view, overlapping=True)]
        seen = [hit for hit in hits if hit[0] >= len(_DISGUISES)]
        return seen, len(seen) < len(hits)


class _Reading:
    """What is kept so far of a log."""

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self.places: Counter[int] = Counter()
        self.recent = _Recent()
        self.rows = 0
        self.behind = b""
        """The last of the cleaned text: what began there may end in the next block."""
        self.next = 0
        """The first row that is not kept yet."""
        self.until, self.room = HEAD, _ROOM_HEAD
        """Before which row everything is kept, as far as there is room."""
        self.first: list[tuple[int, Row]] = []
        self.last: deque[tuple[int, Row]] = deque()
        self.first_size = self.last_size = 0

    def take(self, block: _Block) -> None:
        block.first = self.rows
        self.rows += block.count
        self.recent.add(block)
        view = _view(block.text)
        hits, disguised = self.scanner.find(b"%b %b" % (self.behind, view))
        if disguised:
            view = b" ".join(filter(None, (_view(_undisguised(row.text)) for row in block.rows())))
            hits, _ = self.scanner.find(b"%b %b" % (self.behind, view))
        edge = len(self.behind)
        if any(end > edge and self.places[literal] < MOST for literal, end in hits):
            self._keep_places(block, disguised)
        self._go_on(self.rows)
        if view:
            self.behind = (b"%b %b" % (self.behind, view))[-_REACH:]

    def _keep_places(self, block: _Block, disguised: bool) -> None:
        """Find out on which rows the hits stand, and keep what is around them."""
        views = [self.behind]
        ends: list[int] = []
        length = edge = len(self.behind)
        for row in block.rows():
            if view := _view(_undisguised(row.text) if disguised else row.text):
                views.append(view)
                length += 1 + len(view)
            ends.append(length)
        hits, _ = self.scanner.find(b" ".join(views))
        for literal, end in hits:
            if end > edge and self.places[literal] < MOST:
                self.places[literal] += 1
                around = (BEFORE, AFTER) if self.places[literal] <= WIDE else NEAR
                self._keep_place(block.first + bisect_right(ends, end - 1), *around)

    def _keep_place(self, place: int, before: int, after: int) -> None:
        self._go_on(place)
        if self.next <= place:
            start, room = place, _ROOM_BEFORE
            for number, row in self.recent.back(place):
                room -= len(row.text)
                if number < max(self.next, place - before) or room < 0:
                    break
                start = number
            self.next = start
            self._keep(place + 1, _ROOM_BEFORE + SEGMENT)
        if place + 1 + after > self.until:
            self.until, self.room = place + 1 + after, max(self.room, _ROOM_AFTER)

    def _go_on(self, end: int) -> None:
        end = min(end, self.until)
        if self.next < end:
            self.room = self._keep(end, self.room)
            if self.room < 0:
                self.until = self.next

    def _keep(self, end: int, room: int) -> int:
        """Keep the rows from the next to before `end` while there is room for them; gives the room that is left."""
        for number, row in self.recent.between(self.next, end):
            room -= len(row.text)
            if room < 0:
                break
            self.next = number + 1
            if self.first_size <= _ROOM:
                self.first.append((number, row))
                self.first_size += len(row.text) + 1
                continue
            self.last.append((number, row))
            self.last_size += len(row.text) + 1
            while self.last_size > _ROOM:
                self.last_size -= len(self.last.popleft()[1].text) + 1
        return room

    def finish(self) -> list[Row]:
        tail: deque[tuple[int, Row]] = deque()
        room = _ROOM_TAIL
        for number, row in self.recent.back(self.rows):
            room -= len(row.text)
            if number < max(self.next, self.rows - TAIL) or room < 0:
                break
            tail.appendleft((number, row))
        found: list[Row] = []
        expected = 0
        for number, row in (*self.first, *self.last, *tail):
            if number != expected:
                found.append(Row(found[-1].number + 1 if found else 1, 0, ""))
            found.append(row)
            expected = number + 1
        return found


class _Recent:
    """The last rows of what was read, as many as may still be asked for."""

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque()
        self._rows = self._size = 0

    def add(self, block: _Block) -> None:
        self._blocks.append(block)
        self._rows += block.count
        self._size += len(block.text)
        while len(self._blocks) > 1:
            oldest = self._blocks[0]
            # What is before the first row of the newest block must be at hand too.
            rows = self._rows - oldest.count - block.count
            size = self._size - len(oldest.text) - len(block.text)
            if rows < TAIL and size < 2 * _ROOM_TAIL:
                return
            self._blocks.popleft()
            self._rows -= oldest.count
            self._size -= len(oldest.text)

    def between(self, start: int, end: int) -> Iterator[tuple[int, Row]]:
        for block in self._blocks:
            low, high = max(start, block.first), min(end, block.first + block.count)
            if low < high:
                yield from enumerate(block.rows()[low - block.first : high - block.first], start=low)

    def back(self, place: int) -> Iterator[tuple[int, Row]]:
        """Rows before a place, the nearest first."""
        for block in reversed(self._blocks):
            for number in range(min(place, block.first + block.count) - 1, block.first - 1, -1):
                yield number, block.rows()[number - block.first]


def _view(text: str) -> bytes:
    """`text` as literals are looked for in it: folded, on one line, without escapes."""
    view = text.encode("utf-8", "surrogatepass")
    if b"\x1b" in view:
        view = _escapes().sub(b"", view)
    view = view.translate(_PLAIN, _UNSEEN)
    if not text.isascii():
        for mark, letters in _LETTERS.items():
            if mark in view:
                for letter, plain in letters.items():
                    view = view.replace(letter.encode(), plain.encode())
    while b"  " in view:
        view = view.replace(b"  ", b" ")
    return view.strip(b" ")


@cache
def _escapes() -> re.Pattern[bytes]:
    return re.compile(rb"\x1b(?:\[[0-?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)|[@-Z\\-_])?")


def _undisguised(text: str) -> str:
    """`text` without escapes and entities that were spelled out; only rows with a certain one are looked at."""
    if not any(mark in text for mark in _DISGUISES):
        return text
    from html import unescape

    return _DISGUISE.sub(lambda hit: unescape(hit.group()) if hit.group()[0] == "&" else "", text)


def _blocks(chunks: Iterable[str]) -> Iterator[_Block]:
    """Cut a stream. Lines of up to SEGMENT code points stay whole, longer ones become segments that overlap."""
    rest = ""
    number, column = 1, 0
    for chunk, last in _sliced(chunks):
        rest += chunk
        if len(rest) < _BLOCK and not last:
            continue
        start = at = 0
        while at < len(rest):
            find = rest.find if column else rest.rfind
            end = find("\n", at, at + SEGMENT + 1)
            if end < 0 and len(rest) - at <= SEGMENT:
                if not last:
                    break
                end = len(rest) - 1
            if end >= 0:
                at = end + 1
                if column or at - start >= _BLOCK:
                    block = _Block(number, column, rest[start:at])
                    # Nothing is left of a line that was cut behind its last carriage return.
                    if not (column and block.text == "\n"):
                        yield block
                    number, column, start = number + block.count, 0, at
                continue
            if at > start:
                yield (block := _Block(number, 0, rest[start:at]))
                number += block.count
            cut = rest.rfind("\r", at, at + SEGMENT + 1) + 1 - at
            length, step = (cut, cut) if cut > 0 else (SEGMENT, SEGMENT - OVERLAP)
            yield _Block(number, column, rest[at : at + length])
            column += step
            start = at = at + step
        if last and start < len(rest):
            yield _Block(number, column, rest[start:])
        rest = rest[start:]


def _sliced(chunks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Chunks of bounded length, and whether the stream ends."""
    for chunk in chunks:
        for start in range(0, len(chunk), _BLOCK):
            yield chunk[start : start + _BLOCK], False
    yield "", True
