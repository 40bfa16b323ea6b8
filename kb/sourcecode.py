"""Source code among log lines: code that can raise an error is no report of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from kb import lazy
from kb.models.result import Line

FLATTENED = lazy.pattern(r" [\w.]{0,100}(?:Error|Exception): ")
"""An exception at the end of a line that holds a whole traceback."""
_SOURCE = lazy.pattern(
    r"^\s*(?:[-+]\s*)?(?:\d{1,5}[:|]?\s+)?(?:raise\s+[\w.]{1,100}\(|throw\s|assert\s|(?:el)?if\s.*:\s*$|return\s+[rfbuRFBU]{0,2}[\"']|with\s+[\w.]{1,60}\(|print\(|match\s?="
    r"|(?:self\.)?_?(?:logger|logging|log|warnings|console)\.\w{1,20}\(|(?:[A-Z]{2,12}_)?(?:CHECK|ERROR|ASSERT)\w{0,12}\("
    r"|[\w.]{1,60}\s=\s\(?[rfbuRFBU]{0,2}[\"'])"
)
"""Source code that holds a text, perhaps from a diff or with line numbers."""
_CALL_BEGINS = lazy.pattern(
    r"^\s*(?:[-+]\s*)?(?:\d{1,5}[:|]?\s+)?(?:raise\s+[\w.]{1,100}|[\w.]{1,60}\s=\s|[\w.]{1,60})\($"
)
_LITERAL_LINE = lazy.pattern(r"^\s*(?:[-+]\s*)?(?:\d{1,5}[:|]?\s+)?[rfbuRFBU]{0,2}[\"'].*[\"'][,)\]]{0,4}\s*$")
_LITERAL = lazy.pattern(r"\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?")


def without_literals(log: Iterable[Line]) -> Iterator[Line]:
    """The lines, with blanks for the texts in source code: code that can raise an error is no report of it."""
    code = False
    for line in log:
        text = line.text
        if ('"' in text or "'" in text) and not FLATTENED.search(text):
            code = bool(_SOURCE.match(text)) or (code and bool(_LITERAL_LINE.match(text)))
            if code:
                line = replace(line, text=_LITERAL.sub(_blanked, text))
        elif text.strip():
            code = bool(_CALL_BEGINS.match(text))
        yield line


def _blanked(hit: re.Match[str]) -> str:
    return hit[0][0] + " " * (len(hit[0]) - 2) + hit[0][-1] if len(hit[0]) > 1 else hit[0]
