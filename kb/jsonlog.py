"""What a log line in JSON says: those strings of its object that are sentences."""

from __future__ import annotations

from collections.abc import Iterator

from kb.lazy import pattern

DEPTH = 4
"""Objects within texts of objects that are opened."""
ESCAPE = pattern(r'\\(?:["\\/tbfr]|u[0-9a-fA-F]{4})')
"""An escape within a string of JSON, `\\n` aside, at which strings are divided."""

# Ends at the line's end where no quote closes it, so that no quote is tried twice.
_STRING = pattern(r'"(?P<text>(?:[^"\\]|\\.)*)(?P<closed>"?)(?P<key>\s*:)?')
_NEWLINE = pattern(r"(?<!\\)\\n")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Columns of the lines of every string of more than one word, keys aside; nothing if `text` is no JSON object."""
    if not (text.lstrip().startswith('{"') and text.rstrip().endswith("}")):
        return
    for hit in _STRING.finditer(text):
        if " " not in hit["text"] or not hit["closed"] or hit["key"]:
            continue
        start, end = hit.span("text")
        for stop in [*(newline.start() for newline in _NEWLINE.finditer(text, start, end)), end]:
            if stop > start or stop < end:
                yield start, stop
            start = stop + len("\\n")


def unescaped(escape: str) -> str:
    """What an escape stands for; nothing for characters that cannot be seen."""
    if escape[1] == "u":
        char = chr(int(escape[2:], 16))
        return char if char.isprintable() else ""
    return {"t": "\t", "b": "", "f": "", "r": ""}.get(escape[1], escape[1])
