"""Verification scripts as text to be read: the broken and the fixed code that an answer shows is the code that ran."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

from kb.knowledge import KnowledgeBase

NAME = "verify.py"
_LARGEST = 1_000_000


def verification_script(base: KnowledgeBase, entry_id: str) -> str | None:
    """Source of an entry's script, None if it has none."""
    folder = base.index.folder(entry_id)
    return None if folder is None else read_script(folder)


def arm_source(script: str, reference: str) -> str | None:
    """Source of the arm that `verify.py::test_name` names, without its markers; None if it is not there."""
    test = reference.partition("::")[2]
    for node in _functions(script):
        if node.name == test:
            lines = script.splitlines()[node.lineno - 1 : node.end_lineno]
            return "\n".join(lines)
    return None


def read_script(folder: Path) -> str | None:
    """The script in an entry's folder, None if there is none that can be read."""
    file = folder / NAME
    try:
        if file.stat().st_size > _LARGEST:
            return None
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


@lru_cache(maxsize=256)
def _functions(script: str) -> tuple[ast.FunctionDef, ...]:
    try:
        tree = ast.parse(script)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    return tuple(node for node in tree.body if isinstance(node, ast.FunctionDef))
