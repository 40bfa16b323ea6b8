"""The strings of a Python source as the program has them: adjacent literals joined, inserted values left open."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence

from kb.models.provenance import Form

MARK = "\uffff"
"""Stands where a value is inserted. No character, so no source needs it."""

_FIELD = re.compile(r"%\([^)]*\)[-+ #0]*\d*(?:\.\d+)?[a-zA-Z]|%[-+ #0]*\d*(?:\.\d+)?[srdifgxe]|\{[^{}]*\}")
_HOLDS_FIELD = re.compile(f"[{MARK}%{{]")
_STRETCH = 10
_LARGEST = 8 * 2**20
"""Bytes of a source beyond which it is not parsed."""


def find(source: bytes, literals: Sequence[str]) -> dict[str, tuple[int, Form]]:
    """Line and form of the first string in which each literal stands. What cannot be parsed holds none."""
    wanted = [literal for literal in literals if _may_hold(source, literal)]
    found: dict[str, tuple[int, Form]] = {}
    if not wanted or len(source) > _LARGEST:
        return found
    for line, text in templates(source):
        for literal in wanted:
            form = None if literal in found else stands(literal, text)
            if form:
                found[literal] = (line, form)
    return found


def templates(source: bytes) -> Iterator[tuple[int, str]]:
    """Line and text of every string expression, with MARK where a value is inserted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            text = _text(node)
            if text.strip(MARK):
                yield node.lineno, text


def stands(literal: str, template: str) -> Form | None:
    """How a literal stands in a string: whole, with inserted values between its parts, or not at all."""
    if literal in template:
        return "joined"
    parts = _FIELD.sub(MARK, template).split(MARK) if _HOLDS_FIELD.search(template) else []
    if len(parts) > 1 and any(3 * _covered(literal, parts, n) >= 2 * len(literal) for n in range(len(parts))):
        return "placeholders"
    return None


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else MARK
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else MARK for part in node.values)
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):  # sums lean left, however long
        terms.append(node.right)
        node = node.left
    terms.append(node)
    return "".join(_text(term) if isinstance(term, ast.Constant | ast.JoinedStr) else MARK for term in reversed(terms))


def _may_hold(source: bytes, literal: str) -> bool:
    # Parsing is dear, and nearly all sources have nothing in common with the literal. One that holds it broken in two,
    # or with values inserted, still has some stretch of it whole.
    text = literal.encode()
    stretches = {text[at : at + _STRETCH] for at in range(0, len(text) - _STRETCH, _STRETCH)} | {text[-_STRETCH:]}
    return 5 * sum(stretch in source for stretch in stretches) >= len(stretches)


def _covered(literal: str, parts: Sequence[str], first: int) -> int:
    """Characters of the literal that constant parts give if it begins in `parts[first]`; 0 if it does not fit."""
    head = next(
        (n for n in range(min(len(parts[first]), len(literal)), 0, -1) if parts[first].endswith(literal[:n])), 0
    )
    if not head:
        return 0
    covered, rest = head, literal[head:]
    for part in parts[first + 1 :]:
        at = rest.find(part)
        if at < 0:
            return covered + next((n for n in range(len(part), 0, -1) if rest.endswith(part[:n])), 0)
        covered += len(part)
        rest = rest[at + len(part) :]
        if not rest:
            return covered
    return covered if not parts[-1] else 0
