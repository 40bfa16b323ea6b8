"""A fix's `how` in parts: prose, and code that is shown as code."""

from __future__ import annotations

import re
from typing import NamedTuple

_SHELL = re.compile(
    r"^\s*(?:\$ |(?:pip|python|conda|apt|apt-get|export|torchrun|accelerate|kb|sudo|grep|ldd|dmesg|dcgmi|ninja|ulimit"
    r"|find|docker|nvcc|ls|df|mount|git|make|unset) |nvidia-smi|[A-Z_]{4,}=)"
)
_CODE = re.compile(
    r"[=(){}\[\]]|^\s*(?:@\w|(?:for|if|with|def|class|while) .*:$)|^\s*(?:import|from|with|for|if|def|return|class)\b"
)
_PROSE = re.compile(r"[A-Za-z]{2,} [a-z]{2,} [a-z]{2,} [a-z]{2,}|[.:] [A-Z][a-z]+ |^\(|[.]$")


class Part(NamedTuple):
    """A run of lines of one kind."""

    kind: str
    """`prose`, `python` or `shell`."""
    text: str


def parts(how: str) -> list[Part]:
    """Fenced and indented lines are code, and so are lines that read like it."""
    lines = how.strip("\n").split("\n")
    fenced = False
    found: list[Part] = []
    for line in lines:
        if line.strip().startswith("```"):
            fenced = not fenced
            continue
        code = fenced or line.startswith("    ") or _looks_like_code(line)
        kind = ("shell" if _SHELL.match(line) else "python") if code else "prose"
        if not line.strip():
            kind = found[-1].kind if found else "prose"
        if found and (found[-1].kind == kind or (code and found[-1].kind != "prose")):
            found[-1] = Part(found[-1].kind, f"{found[-1].text}\n{line}")
        else:
            found.append(Part(kind, line))
    return [Part(part.kind, _dedented(part.text)) for part in found if part.text.strip()]


def _looks_like_code(line: str) -> bool:
    if _SHELL.match(line):
        return True
    return bool(_CODE.search(line)) and "`" not in line and not _PROSE.search(line.partition("#")[0])


def _dedented(text: str) -> str:
    from textwrap import dedent

    return dedent(text).strip("\n")
