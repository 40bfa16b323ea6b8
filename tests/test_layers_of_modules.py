"""Imports point one way, and what a cold look-up loads stays small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kb

PACKAGE = Path(kb.__file__).parent
# From the ground up: a module imports only modules of its own layer's left, or of an earlier line.
LAYERS = [
    [
        "errors",
        "lazy",
        "models.result",
        "models.base",
        "models.entry",
        "models.evidence",
        "models.published",
        "models.provenance",
        "digest",
        "closure",
        "redact",
        "redacted",
        "literals",
        "layers",
        "jsonlog",
        "sourcecode",
    ],
    [
        "denoise",
        "parse",
        "patterns",
        "complaints",
        "catalog",
        "environment",
        "localize",
        "intake",
        "prefilter",
        "excerpt",
    ],
    ["index", "evidence", "provenance"],
    ["matcher", "rates", "generalize"],
    ["roles", "explain", "rank", "states", "tiers", "publish", "foreign", "schema", "verify"],
    [
        "index_tables",
        "index_rows",
        "index_build",
        "knowledge",
        "build",
        "tryout",
        "opening",
        "scripts",
        "scaffold",
        "throwaway",
        "proving",
    ],
    ["lint", "render"],
    ["api"],
    ["evaluate", "integrations", "web", "batch"],
    ["cli"],
    ["__main__"],
]
ORDER = {name: (row, column) for row, names in enumerate(LAYERS) for column, name in enumerate(names)}


def layer(module: str) -> tuple[int, int]:
    name = module.removeprefix("kb.")
    return next(
        ORDER[key] for key in (name, *(name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1))) if key in ORDER
    )


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "_entries" not in path.parts:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                f"{node.module}.{alias.name}"
                if (PACKAGE.parent / Path(*node.module.split("."), f"{alias.name}.py")).exists()
                else node.module
                for alias in node.names
            }
    return {name for name in names if name.startswith("kb.")} - {"kb.models"}


@pytest.mark.parametrize(
    ("module", "path"),
    [pair for pair in modules() if pair[0] not in ("kb", "kb.models")],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_imports_point_down(module: str, path: Path) -> None:
    own = layer(module)
    for name in imported(path):
        other = layer(name)
        inside = module.split(".")[1] == name.split(".")[1]
        assert inside or other[0] < own[0] or (other[0] == own[0] and other[1] < own[1]), f"{module} imports {name}"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_matching_path_loads_no_heavy_library() -> None:
    loaded = loaded_by("import kb.cli.__main__, kb.cli.match, kb.render.text, kb.render.structured")
    assert loaded.isdisjoint({"pydantic", "typer", "sqlite_utils", "jsonschema", "rich", "torch", "packaging", "regex"})


def test_importing_the_package_loads_nothing_of_it() -> None:
    assert {name for name in loaded_by("import kb") if name.startswith("kb")} == {"kb"}
