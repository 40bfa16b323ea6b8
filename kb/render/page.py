"""A page of text for a terminal: wrapping by cell width, styles that vanish when piped, and safe characters.

Kept apart from a full terminal library because a single look-up must start within a few interpreter start-ups.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from kb import lazy

LABEL = 11
"""Cells of the left column that holds headings."""
MAX_WIDTH = 110
"""Longer lines are hard to read, however wide the terminal."""

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
_WORD = lazy.pattern(
    r"[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6]|[^\s\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6]+|\s+"
)
_ASCII_WORD = lazy.pattern(r"\S+|\s+")
_UNSAFE = lazy.pattern(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def safe(text: str) -> str:
    """Nothing that could move a cursor, hide text or reverse it; each such character becomes U+FFFD."""
    if text.isascii() and text.isprintable():
        return text  # nearly every line; the pattern takes longer to compile than a page to write
    return _UNSAFE.sub("\ufffd", text).expandtabs(4)


def spans(text: str) -> list[str]:
    """Prose in pieces, every second one of which stood between backticks. A lone backtick stays one."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces[-2:] = ["`".join(pieces[-2:])]
    return pieces


def cells(text: str) -> int:
    """Terminal cells that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as a table without rules."""
    widths = [max(cells(safe(line[column])) for line in lines) for column in range(len(lines[0]))]
    padded = ("  ".join(_padded(safe(cell), width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(line.rstrip() + "\n" for line in padded)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, broken at spaces and between East Asian characters."""
    lines: list[str] = []
    line = ""
    used = 0
    for word in _words(" ".join(text.split()), width):
        size = cells(word)
        if used + size > width and line.strip():
            lines.append(line.rstrip())
            line, used = "", 0
        if word.isspace() and not line:
            continue
        line += word
        used += size
    if line.strip():
        lines.append(line.rstrip())
    return lines or [""]


def _words(text: str, width: int) -> Iterator[str]:
    for word in (_ASCII_WORD if text.isascii() else _WORD).findall(text):
        if cells(word) <= width:
            yield word
            continue
        part = ""
        for char in word:  # a path or an address longer than the line
            if cells(part) + cells(char) > width:
                yield part
                part = ""
            part += char
        yield part


class Page:
    """Collects lines. `color` decides whether styles are written."""

    def __init__(self, width: int, *, color: bool) -> None:
        self.width = max(40, min(width, MAX_WIDTH))
        self.color = color
        self.lines: list[str] = []

    def style(self, text: str, *names: str) -> str:
        """`text` in the given styles."""
        if not self.color or not names or not text:
            return text
        return f"\x1b[{';'.join(_CODES[name] for name in names)}m{text}\x1b[0m"

    def blank(self) -> None:
        """An empty line, never two in a row."""
        if self.lines and self.lines[-1]:
            self.lines.append("")

    def title(self, text: str, note: str = "", *names: str) -> None:
        """A heading at the left edge, with a note behind it where it fits and below it where it does not."""
        text, note = safe(text), safe(note)
        head = self.style(text, "bold", *names)
        if note and cells(text) + 3 + cells(note) <= self.width:
            self.lines.append(f"{head}   {note}")
            return
        self.lines.append(head)
        if note:
            self.lines.extend("  " + part for part in wrap(note, self.width - 2))

    def field(self, label: str, text: str, *names: str, indent: int = 0) -> None:
        """A labelled paragraph; an empty label continues the one above."""
        margin = LABEL + indent
        for number, part in enumerate(wrap(safe(text), self.width - margin)):
            head = safe(label) if number == 0 else ""
            pad = " " * max(0, LABEL - cells(head))
            self.lines.append((self.style(head, "bold") + pad + " " * indent + self.style(part, *names)).rstrip())

    def code(self, text: str, indent: int = 0) -> None:
        """Lines of code, kept as they are."""
        self.verbatim(text, "cyan", indent=indent)

    def verbatim(self, text: str, *names: str, indent: int = 0) -> None:
        """Lines kept as they are; those too long run on, for copying matters more than the margin."""
        for line in safe(text).rstrip().split("\n"):
            self.lines.append((" " * (LABEL + indent) + self.style(line, *names)).rstrip())

    def text(self) -> str:
        """The page with a newline at its end."""
        return "\n".join(self.lines).rstrip("\n") + "\n"
