"""Digests of verification scripts: per file for audit, per arm for staleness.

An arm's digest covers the arm and everything of its module that it reaches, as syntax. Reformatting, comments,
docstrings, the order of definitions and the Python release that computes it keep the digest; a change of what would
run changes it. Where that is hard to tell, too much is covered rather than too little. Standard library only.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_IMPORT = (ast.Import, ast.ImportFrom)
_OMITTED = ("kind", "ctx", "type_comment", "type_ignores")
"""Fields that say nothing about what runs; `kind` is the `u` of a text."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arm_digests(source: str) -> dict[str, str]:
    """Digest of every test function of a script, by its name; a method of a test class is `Class.method`.

    Raises SyntaxError or ValueError if the source does not parse.
    """
    return dict(_arm_digests(source))


@lru_cache(maxsize=512)
def _arm_digests(source: str) -> tuple[tuple[str, str], ...]:
    tree = ast.parse(source)
    _strip_docstrings(tree)
    module = _Module(list(_statements(tree)))
    return tuple((name, module.digest(root)) for name, root in _tests(module.statements))


class _Module:
    """The module's statements and who reaches whom."""

    def __init__(self, statements: list[ast.stmt]) -> None:
        self.statements = statements
        self._place = {id(node): place for place, node in enumerate(statements)}
        self._always = [node for node in statements if _always_counts(node)]
        self._names: dict[str, list[ast.stmt]] = {}
        self._fixtures: dict[str, list[ast.stmt]] = {}
        # Arms share most of what they reach, so each statement is read once.
        self._texts: dict[int, str] = {}
        self._asks: dict[int, tuple[set[str], set[str]]] = {}
        for node in statements:
            for name in set(_bound(node)):
                self._names.setdefault(name, []).append(node)
            for name in _fixture_names(node):
                self._fixtures.setdefault(name, []).append(node)

    def digest(self, root: ast.stmt) -> str:
        reached = self._reach([*self._always, root])
        definitions = sorted(self._text(node) for node in reached if _is_definition(node))
        # Definitions may stand in any order; of other statements the order is part of what they do.
        others = sorted((self._place[id(node)], node) for node in reached if not _is_definition(node))
        texts = definitions + [self._text(node) for _, node in others]
        return hashlib.sha256("\n".join(texts).encode("utf-8", errors="surrogatepass")).hexdigest()

    def _text(self, node: ast.stmt) -> str:
        if id(node) not in self._texts:
            self._texts[id(node)] = _canonical(node)
        return self._texts[id(node)]

    def _asked(self, node: ast.stmt) -> tuple[set[str], set[str]]:
        if id(node) not in self._asks:
            self._asks[id(node)] = _asked(node)
        return self._asks[id(node)]

    def _reach(self, roots: Iterable[ast.stmt]) -> list[ast.stmt]:
        seen: dict[int, ast.stmt] = {}
        waiting = list(roots)
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen[id(node)] = node
            used, requested = self._asked(node)
            for name in used:
                waiting.extend(self._names.get(name, ()))
            for name in requested:
                waiting.extend(self._fixtures.get(name, ()))
        return list(seen.values())


def _strip_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.body and _is_text(node.body[0]):
            # A body of nothing but its docstring does what `pass` does.
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Module-level statements, imports taken apart so that an arm reaches only the names it uses."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (ast.Import(names=[alias]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (ast.ImportFrom(module=node.module, names=[alias], level=node.level) for alias in node.names)
        elif not isinstance(node, ast.Pass) and not _is_text(node) and not _is_main_block(node):
            yield node


def _is_main_block(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`, which pytest never enters."""
    if not isinstance(node, ast.If) or node.orelse or not isinstance(node.test, ast.Compare):
        return False
    return isinstance(node.test.left, ast.Name) and node.test.left.id == "__name__"


def _is_definition(node: ast.stmt) -> bool:
    return isinstance(node, (*_FUNCTION, *_IMPORT, ast.ClassDef))


def _always_counts(node: ast.stmt) -> bool:
    """Whether every arm depends on a statement: it acts on import, marks the module, or is an autouse fixture."""
    if isinstance(node, _FUNCTION):
        return any("autouse" in keywords for keywords in _fixture_decorators(node))
    return "pytestmark" in _bound(node) or _acts(node)


def _acts(node: ast.AST) -> bool:
    """Whether a statement does more than bind names: `torch.manual_seed(0)`, `os.environ["X"] = "1"`."""
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" and node.module != "__future__" for alias in node.names)
    if isinstance(node, (*_FUNCTION, ast.ClassDef, ast.Import, ast.Pass)):
        return False
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [part for target in targets for part in ast.walk(target)]
        return any(isinstance(part, ast.Attribute | ast.Subscript) for part in names)
    if isinstance(node, ast.If | ast.Try):
        return any(_acts(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt | ast.ExceptHandler))
    if isinstance(node, ast.ExceptHandler):
        return any(_acts(part) for part in node.body)
    return True


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a module-level statement binds, those inside `if`, `try`, `with` and loops included."""
    if isinstance(node, (*_FUNCTION, ast.ClassDef)):
        yield node.name
        return
    if isinstance(node, _IMPORT):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        return
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node.id
    if isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    for child in ast.iter_child_nodes(node):
        yield from _bound(child)


def _tests(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for node in statements:
        if isinstance(node, _FUNCTION) and node.name.startswith("test"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            for member in node.body:
                if isinstance(member, _FUNCTION) and member.name.startswith("test"):
                    yield f"{node.name}.{member.name}", _with_only(node, member)


def _with_only(owner: ast.ClassDef, kept: ast.stmt) -> ast.ClassDef:
    """The class as one of its tests sees it: decorators, bases, fixtures and attributes, but no other test."""
    fields = dict(ast.iter_fields(owner))
    fields["body"] = [
        member
        for member in owner.body
        if member is kept or not (isinstance(member, _FUNCTION) and member.name.startswith("test"))
    ]
    return ast.ClassDef(**fields)


def _fixture_names(node: ast.stmt) -> Iterator[str]:
    """Names under which arms ask for a fixture function, which `@fixture(name=...)` may change."""
    if isinstance(node, _FUNCTION):
        for keywords in _fixture_decorators(node):
            given = keywords.get("name")
            yield str(given.value) if isinstance(given, ast.Constant) else node.name


def _fixture_decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[dict[str, ast.expr]]:
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        target = call.func if call else decorator
        name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
        if name == "fixture":
            yield {keyword.arg: keyword.value for keyword in (call.keywords if call else []) if keyword.arg}


def _asked(node: ast.AST) -> tuple[set[str], set[str]]:
    """Names and fixtures that a statement may reach.

    Every name inside, local or not: shadowing may reach too much, never too little. Fixtures are asked for by
    parameters, and by texts, which `usefixtures` and the like take.
    """
    used: set[str] = set()
    requested: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            used.add(part.id)
        elif isinstance(part, ast.arg):
            requested.add(part.arg)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            requested.add(part.value)
    return used, requested


def _canonical(node: object) -> str:
    """A syntax tree as text, the same under every Python release: `ast.dump` is not, its fields and defaults grow."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, ast.AST):
        parts = [
            f"{name}={_canonical(value)}"
            for name, value in sorted(ast.iter_fields(node))
            if name not in _OMITTED and value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(_canonical(item) for item in node)}]"
    return repr(node)
