"""Strip what launchers, loggers, terminals, notebooks and chat programs add around an error, line by line.

Every line keeps a map back to its raw columns, so that the line shown and highlighted is the user's own. Removal
runs to a fixed point: denoising twice changes nothing, and the order in which noise was stacked does not matter.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from kb import jsonlog
from kb.lazy import pattern
from kb.models.result import Line

SEGMENT = 65_536
"""Longer lines are read in segments of this many code points, so that no pattern ever sees an endless line."""
_NARROWEST, _WIDEST = 40, 300
"""Widths, in code points, at which terminals and pages cut lines."""
OVERLAP = 2_048
"""Code points that neighbouring segments share, so that nothing is lost at a seam."""

# --- removed wherever it stands -------------------------------------------------------------------------------

_ESCAPES = pattern(
    r"(?:\x1b|\^\[|\\x1b|\\u001b|\\033|#033)(?:\[[0-?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|[@-Z\\-_])"
    r"|\x1b|#015(?=[ \t│┃║]*$)"  # syslog daemons write control characters as # and three octal digits
    r"|\[\d{1,3}(?:;\d{1,3}){0,8}m(?!\])"  # the escape byte itself was lost in a copy
)
_ESCAPE_MARKS = ("\x1b", "[", "\\x1b", "\\u001b", "\\033", "#0")
"""One of these stands in every line that `_ESCAPES` can match; most lines are spared the search."""
# Invisible: control characters, zero-width and direction marks. A direction override could disguise text.
_INVISIBLE = pattern(
    r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
# Colab copies the place of a frame as a link to the notebook's own machine.
_COLAB_LINK = pattern(r"\[(?=[^\[\]\n]{1,1000}\]\(https?://localhost:\d{1,5}/#?\))|\]\(https?://localhost:\d{1,5}/#?\)")
# ComfyUI stamps every piece that is written, and a line is often written in pieces.
_STAMPED_PIECES = pattern(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6} - .*\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6} - ")
_PIECE_STAMP = pattern(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6} - ")
_ENTITY = pattern(r"&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,7}|#x[0-9a-fA-F]{1,6});")
_LOOKALIKES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " ", "\u3000": " "})

# --- removed at the start of a line ---------------------------------------------------------------------------

_DATE = r"(?:\d{4}[-/.]\d{2}[-/.]\d{2}|\d{2}[-/]\d{2}(?:[-/]\d{2,4})?|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d)"
_CLOCK = r"\d{1,2}:\d{2}:\d{2}(?:[.,-]\d{1,9})?"
_ZONE = r"(?: ?(?:Z|UTC|[+-]\d{2}:?\d{2}))?"
_MOMENT = rf"(?:{_DATE}[T _]{{1,2}}{_CLOCK}{_ZONE})"
_LEVEL = r"(?P<level>TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|ERR|CRITICAL|FATAL)"


_DIGITS = "0123456789"
_DATES = _DIGITS + "JFMASOND"


class Prefix(NamedTuple):
    """One kind of prefix. Named groups `rank`, `worker` and `level` are kept, the rest is thrown away."""

    name: str
    starts: str
    """Characters of which one is the line's first visible one; empty if that can be any."""
    needs: str
    """Text that stands in every line with this prefix."""
    pattern: re.Pattern[str]


def _prefix(name: str, starts: str, needs: str, source: str) -> Prefix:
    return Prefix(name, starts, needs, pattern(source))


PREFIXES: tuple[Prefix, ...] = (
    _prefix("markdown quote", ">", "", r"[ \t]{0,3}>(?:[ \t]?>){0,8}[ \t]"),
    _prefix("box edge", "│┃║", "", r"[ \t]*[│┃║][ \t]?"),
    _prefix("exception group margin", "|+", "", r"[ \t]*\|(?:[ \t]|$)|[ \t]*\+-?(?=\+?-{5,})"),
    _prefix("rank", "[", "", r"[ \t]*\[(?:rank|default|RANK|Rank )(?P<rank>\d{1,6})\] ?:? ?"),
    _prefix("rank word", "Rr", "", r"[ \t]*[Rr]ank ?(?P<rank>\d{1,6}) ?[:|] (?! )"),
    _prefix(
        "mpirun",
        "[",
        "",
        r"[ \t]*\[\d{1,4},(?:mpirank:)?(?P<rank>\d{1,6})(?:,algo-\d+)?\](?:<std(?:out|err)>:?| ?:)? ?",
    ),
    _prefix(
        "stream",
        "[sS",
        "",
        r"[ \t]*(?:\[?(?:stderr|stdout|STDERR|STDOUT)\]?(?: [PF])?: ?|(?:stderr|stdout) [PF](?: |$))",
    ),
    _prefix(
        "worker",
        "(",
        " pid=",
        r"[ \t]*\((?P<worker>[A-Za-z_][\w.:<>-]{0,60}(?: [\w-]{1,12}){0,2}(?: ?\w+=[\w.:-]{1,64},?){0,4} pid=\d+(?:, ip=[\d.a-fA-F:]+)?)\) ?",
    ),
    _prefix("raylet", "(", "", r"[ \t]*\((?:raylet|autoscaler|dashboard|gcs_server)[^)\n]{0,60}\) "),
    _prefix("kubernetes", "[", "[pod/", r"\[pod/[\w./-]{1,120}\] ?"),
    _prefix("compose service", "", " |", r"[A-Za-z][\w.-]{0,60}-\d{1,3} +\| ?"),
    _prefix("compose", "", " |", r"[\w.-]{1,40}-?\d{0,3} +\| "),
    _prefix(
        "nccl host",
        "",
        "] ",
        r"[ \t]*[\w.-]{1,80}:\d{1,8}:\d{1,8} \[(?P<rank>\d{1,4})\] (?=NCCL |[\w./-]+:\d+ NCCL |misc/|transport)",
    ),
    _prefix("dmesg", "[", "", r"\[ {0,8}\d{1,9}\.\d{6}\] "),
    _prefix("syslog", _DATES, "", rf"{_DATE} {_CLOCK} [\w.-]{{1,64}} [\w./-]{{1,48}}(?:\[\d+\])?: "),
    _prefix(
        "glog",
        "IWEF",
        "",
        r"[ \t]*(?P<level>[IWEF])\d{4} \d{2}:\d{2}:\d{2}(?:\.\d{1,9})? +(?:\d+ )?(?:[\w./-]{1,120}:\d+\]|\[?[\w./-]{1,120}:\d+\]?) ?",
    ),
    _prefix(
        "c10d glog",
        "[",
        "",
        r"[ \t]*\[(?P<level>[IWEF])(?:\d{3,4} \d{2}:\d{2}:\d{2}(?:\.\d{1,9})?)? ?(?:[\w./-]{1,120}:\d+)?\] ?",
    ),
    _prefix("cuda log", "[", "[CUDA]", rf"[ \t]*\[{_CLOCK}\]\[\d+\](?=\[CUDA\])"),
    _prefix("bracketed moment", "[", "", rf"[ \t]*\[{_MOMENT}\](?: ?\[\d{{1,8}}\])? ?(?:- )?"),
    _prefix("bracketed clock", "[", "", rf"[ \t]*\[{_CLOCK}\] "),
    _prefix("moment", _DATES, "", rf"[ \t]*{_MOMENT}(?: *\| *| - |: |,? )"),
    _prefix("moment at the end", _DATES, "", rf"[ \t]*{_MOMENT}$"),
    _prefix("clock", _DIGITS, "", rf"{_CLOCK} (?=\S)"),
    _prefix("location", "[", "", r"\[[\w.-]{1,80}\.(?:py|cc|cpp|cu|h):\d{1,6}(?::\w+)?\] ?"),
    _prefix("transformers log", "[", ">>", rf"\[{_LEVEL}\|[\w.-]{{1,80}}(?::\d+)?\](?: {_MOMENT})? *>> ?"),
    _prefix("bracketed level", "[", "", rf"[ \t]*\[ ?{_LEVEL} ?\][ :]{{0,2}}"),
    _prefix("level", "TDINWECF", "", rf"[ \t]*{_LEVEL}(?: *\| *| - |: +|:(?=\S)| {{1,10}})(?=\S)"),
    _prefix(
        "logger between bars", "", " ", r"[\w.-]{1,80}(?::[\w<>-]{1,60}(?::\d+)?)? (?:\||-) (?=\S)(?=[^|]{0,400}$)"
    ),
    _prefix("logger before level", "", ": [", rf"[\w.-]{{1,80}}: \[{_LEVEL}\] (?=\S)"),
    _prefix("pytest", "E", "", r"E {2,}|E\t"),
    _prefix(
        "progress bar", "", "%|", r"[^|\n]{0,60}\d{1,3}%\|[^|\n]{0,200}\| [^\[\n]{0,60}\[[^\]\n]{0,80}\](?! *$)[ \t]*"
    ),
    _prefix("shell trace", "+", "", r"\++ (?=[A-Z_]+=)"),
)
"""Tried in this order until none fits any more."""

_LOOSE = frozenset({"logger between bars", "logger before level", "compose"})
"""Prefixes that look like ordinary text: taken only behind another prefix that was certain."""

_SRUN = pattern(r"[ \t]{0,3}(?P<rank>\d{1,4}): ?")
_BRACKETED_RANK = pattern(r"[ \t]*\[(?P<rank>\d{1,6})\](?::|(?=[ \t]*\[rank)) ?")
_NUMBERED = ((_SRUN, 0.6), (_BRACKETED_RANK, 0.3))

_BOX_END = pattern(r"[ \t]*[│┃║][ \t]*$")
_FENCE = pattern(r"[ \t]*(?:```|~~~)[\w+-]{0,20}[ \t]*$")

_SEVERITIES = {
    "I": "info", "INFO": "info", "NOTICE": "info", "D": "debug", "DEBUG": "debug", "TRACE": "debug",
    "W": "warning", "WARN": "warning", "WARNING": "warning",
}  # fmt: skip


class _Text:
    """A line under the knife: its text, per kept character run where it came from, and what was read off it."""

    __slots__ = ("cuts", "number", "severity", "source", "text")

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.cuts: list[tuple[int, int]] = [(0, start)]
        self.source: str | None = None
        self.number: str | None = None
        """A bare number in front, a rank only where nothing says `rank` outright."""
        self.severity: str | None = None

    def raw(self, column: int) -> int:
        clean, raw = self.cuts[bisect_right(self.cuts, column, key=itemgetter(0)) - 1]
        return raw + column - clean

    def drop_head(self, length: int) -> None:
        start = self.raw(length)
        self.cuts = [(0, start)] + [(c - length, r) for c, r in self.cuts if c > length]
        self.text = self.text[length:]

    def part(self, start: int, end: int) -> _Text:
        """Columns `start` to `end` as a line of their own."""
        new = _Text(self.text, 0)
        new.cuts, new.source, new.number, new.severity = list(self.cuts), self.source, self.number, self.severity
        new.drop_head(start)
        new.text = new.text[: end - start]
        return new

    def replace(self, noise: re.Pattern[str], by: Callable[[str], str]) -> None:
        """Replace each hit; the character after a hit maps to where it really stood."""
        if not noise.search(self.text):
            return
        pieces: list[str] = []
        cuts: list[tuple[int, int]] = []
        position = written = 0

        def keep(until: int) -> None:
            nonlocal written
            if chunk := self.text[position:until]:
                cuts.append((written, self.raw(position)))
                inner = slice(*(bisect_right(self.cuts, edge, key=itemgetter(0)) for edge in (position, until - 1)))
                cuts.extend((written + c - position, r) for c, r in self.cuts[inner])
                pieces.append(chunk)
                written += len(chunk)

        for hit in noise.finditer(self.text):
            keep(hit.start())
            if new := by(hit.group()):
                cuts.append((written, self.raw(hit.start())))
                pieces.append(new)
                written += len(new)
            position = hit.end()
        keep(len(self.text))
        cuts.append((written, self.raw(len(self.text))))
        self.text = "".join(pieces)
        self.cuts = _merge(cuts)


def _merge(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for clean, raw in cuts:
        if merged and merged[-1][0] == clean:
            merged[-1] = (clean, raw)
        elif not merged or merged[-1][1] - merged[-1][0] != raw - clean:
            merged.append((clean, raw))
    return merged or [(0, 0)]


def denoise(text: str) -> list[Line]:
    """Clean lines of `text` in their order, blank ones included.

    Lines count from 1 at each newline; a carriage return inside a line starts another clean line of the same number.
    """
    pieces = list(_pieces(text))
    width = _cut_width(pieces)
    found = [
        (number, piece, length, line)
        for number, start, piece in pieces
        for length, line in _unpacked(_visible(start, piece))
    ]
    lines = [line for *_, line in found]
    for _ in range(8):  # what stands behind a number may be a prefix again
        numbered = _numbered_prefix(lines)
        if numbered is None:
            break
        for line in lines:
            _strip_number(line, numbered)
    return [
        _finished(number, line, stamped=len(line.text) < length, full=width > 0 and len(piece) == width)
        for number, piece, length, line in found
    ]


def _unpacked(line: _Text, depth: int = 0) -> Iterator[tuple[int, _Text]]:
    """The line without prefixes, or what a line of JSON says in sentences; each with its length before stripping."""
    length = len(line.text)
    _strip_prefixes(line)
    said = list(jsonlog.sentences(line.text)) if depth < jsonlog.DEPTH else []
    if not said:
        yield length, line
    for start, stop in said:
        part = line.part(start, stop)
        part.replace(jsonlog.ESCAPE, jsonlog.unescaped)
        yield from _unpacked(part, depth + 1)


def _pieces(text: str) -> Iterator[tuple[int, int, str]]:
    for number, raw in enumerate(text.split("\n"), start=1):
        start = 0
        for part in raw.split("\r"):
            if part or "\r" not in raw:
                if len(part) <= SEGMENT:
                    yield number, start, part
                else:
                    for offset in range(0, max(1, len(part) - OVERLAP), SEGMENT - OVERLAP):
                        yield number, start + offset, part[offset : offset + SEGMENT]
            start += len(part) + 1


def _cut_width(pieces: list[tuple[int, int, str]]) -> int:
    """The width at which a terminal or a page cut this paste's lines, 0 if none can be told.

    Cut lines all have the same length and none is longer; rules and boxes do not count.
    """
    lengths = [len(piece) for _, _, piece in pieces]
    width = max(lengths, default=0)
    if not _NARROWEST <= width <= _WIDEST:
        return 0
    cut = [
        piece for _, _, piece in pieces if len(piece) == width and len(set(piece)) > 8 and not _BOX_END.search(piece)
    ]
    # Where text is wrapped between words instead, lengths just below the width are as common as the width itself.
    short = sum(1 for length in lengths if width - 8 <= length < width)
    return width if len(cut) >= 2 and len(cut) > short else 0


def _numbered_prefix(lines: list[_Text]) -> re.Pattern[str] | None:
    """`0: ` of srun or `[0]: `: a bare number is a rank only where a good part of the lines carries one."""
    texts = [text for line in lines[:2000] if (text := _tidied(line.text))]
    for prefix, share in _NUMBERED:
        hits = sum(1 for text in texts if prefix.match(text))
        if hits >= 2 and hits >= share * len(texts):
            return prefix
    return None


def _strip_number(line: _Text, numbered: re.Pattern[str]) -> None:
    if hit := numbered.match(line.text):
        line.number = line.number or f"rank{int(hit['rank'])}"
        line.drop_head(hit.end())
        _strip_prefixes(line)


def _visible(start: int, piece: str) -> _Text:
    """The piece without escape codes, invisible characters and entities."""
    line = _Text(piece, start)
    if not piece.isascii():
        line.text = line.text.translate(_LOOKALIKES)
    for _ in range(8):  # each round that changes anything shortens the line; noise is not nested deeper than this
        before = line.text
        if any(mark in before for mark in _ESCAPE_MARKS):
            line.replace(_ESCAPES, lambda _hit: "")
        if not line.text.isprintable():
            line.replace(_INVISIBLE, lambda _hit: "")
        if "&" in line.text:
            line.replace(_ENTITY, _entity)
        if "](http" in line.text:
            line.replace(_COLAB_LINK, lambda _hit: "")
        if line.text[:2] == "20" and _STAMPED_PIECES.match(line.text):
            line.replace(_PIECE_STAMP, lambda _hit: "")
        if line.text == before:
            break
    return line


def _finished(number: int, line: _Text, *, stamped: bool, full: bool) -> Line:
    text = _tidied(line.text)
    full = full and line.text[-1:] == text[-1:]
    return Line(number, text, tuple(line.cuts), line.source or line.number, line.severity, stamped, full)


def _tidied(text: str) -> str:
    """Without a box's right edge and white space at the end; a fence is nothing."""
    while not text.isascii() and (end := _BOX_END.search(text)):
        text = text[: end.start()]
    fence = ("```" in text or "~~~" in text) and _FENCE.match(text)
    return "" if fence else text.rstrip()


def _entity(hit: str) -> str:
    import html

    char = html.unescape(hit).translate(_LOOKALIKES)
    return char if len(char) == 1 and char.isprintable() else " "


def _strip_prefixes(line: _Text) -> None:
    """Take prefixes off until none fits, and keep what they say of stream and severity."""
    certain = False
    for _ in range(32):
        hit = _first_prefix(line.text, certain)
        if hit is None:
            return
        groups = hit.groupdict()
        if (rank := groups.get("rank")) is not None:
            line.source = line.source or f"rank{int(rank)}"
        if (worker := groups.get("worker")) is not None:
            line.source = line.source or worker
        if (level := groups.get("level")) is not None:
            line.severity = _SEVERITIES.get(level, "error")
        certain = True
        line.drop_head(hit.end())


def _first_prefix(text: str, certain: bool) -> re.Match[str] | None:
    for prefix in _candidates(text.lstrip(" \t")[:1], certain):
        if prefix.needs and prefix.needs not in text:
            continue
        hit = prefix.pattern.match(text)
        if hit and hit.end():
            return hit
    return None


@lru_cache(maxsize=512)
def _candidates(first: str, certain: bool) -> tuple[Prefix, ...]:
    """Prefixes that a line with this first visible character can have."""
    possible = (prefix for prefix in PREFIXES if not prefix.starts or (first and first in prefix.starts))
    return tuple(prefix for prefix in possible if certain or prefix.name not in _LOOSE)
