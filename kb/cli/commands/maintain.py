"""`index`, `import`, `schema`, `check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kb.cli import terminal
from kb.errors import UsageError
from kb.render.page import safe

_MARK = b'"verify_sha256"'
_HEAD = 4096
"""Bytes of a file in which an evidence file shows what it is."""


def index(*, path_only: bool, output: Path | None, entries: Sequence[Path]) -> None:
    """Build the index, print its path, or copy it. A copy takes its name when it is whole."""
    from kb.opening import open_base

    base = open_base(entries, rebuild=not path_only)
    terminal.warn(base.warnings)
    if base.file is None:
        raise UsageError(
            "the index is kept in memory only", "make the cache folder writable, or set KB_CACHE to one that is"
        )
    if output is not None:
        import shutil

        partial = output.with_name(output.name + ".partial")
        shutil.copyfile(base.file, partial)
        partial.replace(output)
    if path_only:
        terminal.write(f"{base.file}\n")
    else:
        print(f"{len(base.index.list())} entries in {output or base.file}", file=sys.stderr)


def import_records(source: Path, *, to: Path, into: str | None) -> int:
    """Import records, or bring evidence home, and say what was written; 1 if evidence was refused."""
    if into is None and _holds_evidence(source):
        return _bring_evidence(source, to)
    from kb.foreign import take_in

    for done in take_in(source, to, into=into):
        terminal.write(f"{done.entry_id}\t{done.file}\n")
    return 0


def _holds_evidence(source: Path) -> bool:
    """Evidence names the script it is of; a foreign record does not."""
    files = sorted(source.rglob("*.json"))[:50] if source.is_dir() else [source]
    return any(_MARK in file.read_bytes()[:_HEAD] for file in files if file.is_file())


def _bring_evidence(source: Path, to: Path) -> int:
    from kb.verify.bundle import collect

    done = collect(source, to)
    for path in done.imported:
        terminal.write(f"{path}\n")
    first = {problem.file: problem for problem in reversed(done.refused)}  # one line a file, however much is wrong
    for problem in reversed(first.values()):
        print(f"refused: {safe(str(problem))}", file=sys.stderr)
    print(f"{len(done.imported)} new, {len(done.present)} known, {len(first)} refused", file=sys.stderr)
    return 1 if done.refused else 0


def schema(name: str | None, *, write: Path | None) -> None:
    """Print one schema, list their names, or write all."""
    from kb import schema as schemas

    if write is not None:
        for file in schemas.write(write):
            terminal.write(f"{file}\n")
        return
    texts = schemas.schemas()
    if name is None:
        terminal.write("".join(f"{file.removesuffix('.schema.json')}\n" for file in texts))
    elif f"{name}.schema.json" in texts:
        terminal.write(texts[f"{name}.schema.json"])
    else:
        raise UsageError(
            f"no schema is called `{safe(name)}`",
            "one of " + ", ".join(file.removesuffix(".schema.json") for file in texts),
        )


def check(
    ids: Sequence[str], *, root: Path | None, clean: Path | None, base: str | None, fix: bool, format: str
) -> int:
    """Check a catalogue; 1 if there is any finding."""
    from kb.catalog import load, packaged_root
    from kb.lint import check as run_checks
    from kb.lint.history import write_once
    from kb.render import findings as shown

    if format not in shown.FORMATS:
        raise UsageError(f"--format {format}: unknown", f"one of {', '.join(shown.FORMATS)}")
    folder = (root or packaged_root()).resolve()
    catalog = load([folder])
    only = [_as_id(item, folder) for item in ids]
    if missing := [
        item for item in only if item not in catalog.entries and not any(item in p.file for p in catalog.problems)
    ]:
        raise UsageError(f"no such entry: {', '.join(map(safe, missing))}", f"ids below {folder}")
    if fix:
        _repair([catalog.entries[item].folder for item in only or catalog.entries if item in catalog.entries])
        catalog = load([folder])
    pastes = sorted(clean.glob("*.txt")) if clean else []
    findings = run_checks(catalog, clean=pastes, only=only)
    if base is not None:
        findings += write_once(folder, base)
    terminal.write(shown.render(findings, format))
    if format == "text":
        print(f"{len(only) or len(catalog.entries)} entries, {len(findings)} findings", file=sys.stderr)
    return 1 if findings else 0


def _repair(folders: Sequence[Path]) -> None:
    from kb.lint.text import fix

    for folder in folders:
        for file in fix(folder):
            print(f"repaired: {file}", file=sys.stderr)


def _as_id(item: str, folder: Path) -> str:
    path = Path(item).resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) and path != folder else item
