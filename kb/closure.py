"""Which modules of this package others need, read from their source: what a bundle and the browser take along."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path


def closure(package: Path, starts: Iterable[str]) -> set[Path]:
    """Files of the named modules of `package`, of all they import of it, and of the packages these are in.

    What is imported for type checkers only is left out.
    """
    waiting, seen = list(starts), set[str]()
    files: set[Path] = set()
    while waiting:
        name = waiting.pop()
        file = _file_of(name, package)
        if name in seen or file is None:
            continue
        seen.add(name)
        files.add(file)
        waiting.append(name.rpartition(".")[0])
        waiting.extend(_imported(file))
    return files


def _file_of(name: str, package: Path) -> Path | None:
    if name.partition(".")[0] != package.name:
        return None
    path = package.parent.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _imported(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_bytes())
    tree.body = [node for node in tree.body if not _is_for_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_for_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
