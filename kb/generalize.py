"""A message to a pattern: what varies from run to run becomes a class, everything else stays as it is."""

from __future__ import annotations

import re
from typing import NamedTuple

from kb.patterns import fold

LONGEST = 240
"""Code points of a message that a pattern is made of."""


class Change(NamedTuple):
    """One thing that was generalised."""

    found: str
    pattern: str
    what: str


class Pattern(NamedTuple):
    """A pattern for RE2, and what was generalised to get it."""

    regex: str
    changes: tuple[Change, ...]
    constants: tuple[str, ...]
    """What stays, in order."""


# In this order: what is longer and more telling is looked for first.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"\[redacted\]", r"[^ ]{1,300}", "secret"),
    (r"0x[0-9a-fA-F]{4,16}\b", "0x[0-9a-fA-F]{1,16}", "address"),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "[0-9a-f-]{36}", "identifier"),
    (r"https?://[^\s'\"<>)]+", r"https?://[^ '\"<>)]{1,300}", "address of a page"),
    (r"(?:[A-Za-z]:\\|~?/)(?:[^\s'\"`:,;()<>\[\]]+[/\\])+[^\s'\"`:,;()<>\[\]]*", r"[^ '\"`]{1,300}", "path"),
    (r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b", r"[0-9.:]{7,21}", "network address"),
    (r"\b\d{1,40}(?:\.\d{1,18})? ?(?:[KMGT]i?B|bytes)\b", r"[0-9.]{1,60} ?(?:[KMGT]i?B|bytes)", "size"),
    (r"(?:torch\.Size\()?\[\d+(?:, ?\d+)*,?\]\)?", r"(?:torch\.Size\()?\[[0-9, ]{0,240}\]\)?", "shape"),
    (r"\(\d+(?:, ?\d+)+,?\)", r"\([0-9, ]{1,240}\)", "shape"),
    (r"\b\d+x\d+(?:x\d+)*\b", r"[0-9x]{3,240}", "shape"),
    (r"\bcuda:\d{1,3}\b", r"cuda:[0-9]{1,3}", "device"),
    (
        r"\b(?:torch\.(?:float\d*|bfloat16|half|double|u?int\d+|bool)|(?:struct )?c10::(?:BFloat16|Half)"
        r"|torch\.(?:cuda\.)?(?:Float|Half|BFloat16|Double|Long|Int|Byte|Bool)Tensor)\b",
        r"(?:struct )?[A-Za-z0-9_.:]{3,40}",
        "dtype",
    ),
    (r"\b\d+(?:\.\d+)+(?:[a-z]+\d*)?(?:\+\w+)?\b", r"[0-9][0-9A-Za-z.+_]{0,240}", "version or decimal number"),
    (r"(?<![A-Za-z_])-?\d{1,20}(?![A-Za-z_]*\()\b", r"-?[0-9]{1,20}", "number"),
)
_ANY = re.compile("|".join(f"(?P<k{number}>{kind[0]})" for number, kind in enumerate(_KINDS)), re.ASCII)
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def generalize(message: str) -> Pattern:
    """A pattern for the first line of `message`, white space folded. Linear in the length that is looked at."""
    text = _cut(fold(message.strip().split("\n", 1)[0]))
    parts: list[str] = []
    changes: list[Change] = []
    constants: list[str] = []
    end = 0
    for hit in _ANY.finditer(text):
        _, pattern, what = _KINDS[int((hit.lastgroup or "k0")[1:])]
        constants.append(text[end : hit.start()])
        parts += [escape(constants[-1]), pattern]
        changes.append(Change(hit.group(), pattern, what))
        end = hit.end()
    constants.append(text[end:])
    parts.append(escape(constants[-1]))
    return Pattern("".join(parts), tuple(dict.fromkeys(changes)), tuple(filter(None, constants)))


def escape(text: str) -> str:
    """`text` as a pattern for itself, as RE2 and Python read it."""
    return _SPECIAL.sub(lambda hit: "\\" + hit.group(), text)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return text[:LONGEST].rpartition(" ")[0] or text[:LONGEST]
