"""What makes two failures that no entry knows the same one: type and message, without what varies from run to run."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple

from kb.generalize import generalize
from kb.models.result import Incident
from kb.redact import redact

LONGEST_EXAMPLE = 400
"""Code points of an example."""
LONGEST_NAME = 120
_LONGEST_LINE = 300
_FRAMES = 3
_VOLATILE = re.compile(r"\b(?=[a-f]*[0-9])[0-9a-f]{8,}\b|[0-9]+")


class Fingerprint(NamedTuple):
    """A failure as one of its kind. Every text is redacted, home folders included."""

    key: str
    """16 hex digits; the same for all failures of the kind."""
    exception: str
    pattern: str
    """RE2 pattern for the first line of the message: a draft of the entry's."""
    message: str
    """That line as it stood."""
    example: str
    """The failure with its innermost frames, 400 code points at most."""


def fingerprint(incident: Incident) -> Fingerprint:
    """The kind of a failure. Copies that differ in figures, paths, sizes, addresses and identifiers are of one kind."""
    exception = (incident.type or "").rpartition(".")[2][:LONGEST_NAME]
    message = redact(incident.message, paths=True).strip()
    first = message.split("\n", 1)[0]
    pattern = generalize(first)
    constant = "\0".join(_VOLATILE.sub("0", text) for text in pattern.constants)
    key = sha256(f"{exception}\0{constant}".encode("utf-8", "replace")).hexdigest()[:16]
    return Fingerprint(key, exception, pattern.regex, _cut(first, _LONGEST_LINE), _example(incident, message))


def _example(incident: Incident, message: str) -> str:
    said = _cut(f"{incident.type or ''}: {message}".strip(": "), LONGEST_EXAMPLE)
    frames = [
        redact(f"{frame.file}:{frame.line or '?'} {frame.function or ''}".rstrip(), paths=True)
        for frame in incident.frames[-_FRAMES:]
    ]
    while frames and len("\n".join([*frames, said])) > LONGEST_EXAMPLE:
        frames.pop(0)
    return "\n".join([*frames, said])


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
