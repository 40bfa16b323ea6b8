"""Verification on a machine without network: a folder that goes there, and its results that come home.

The only module of this package that needs more than the standard library and pytest, and only to bring results home.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import kb
from kb.closure import closure
from kb.errors import EntryError, EvidenceError, UsageError
from kb.verify import record

_START = "kb.verify.node"
# Modules that are started by name or brought in by pytest, and not by an import that could be followed.
_NAMED = ("kb.verify.parent", "kb.verify.plugin")
_LARGEST = 32 * 1024 * 1024
_RUN = '''"""Runs the verification scripts of this bundle: `python run.py`.

Needs Python 3.11 or newer, pytest, and the libraries that the scripts are about; scripts whose libraries are missing
are skipped.

Evidence files are left in `results/`; bring that folder home with `kb import`. `python run.py --help` lists options.
"""

import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME))

from kb.verify.node import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main(HOME, sys.argv[1:]))
'''


@dataclass(frozen=True)
class Collected:
    """What came home."""

    imported: list[Path] = field(default_factory=list)
    """Files that are new below `entries/`."""
    present: list[Path] = field(default_factory=list)
    """Files that were there already, with the same content."""
    refused: list[EntryError] = field(default_factory=list)
    """Why others were not taken."""


def bundle(destination: Path, entries: Sequence[Path]) -> Path:
    """Write a folder that runs the scripts of these entry folders with Python, pytest and their libraries alone.

    Returns its `run.py`. Raises UsageError if the destination is not empty or an entry has no script.
    """
    for entry in entries:
        if not (entry / "verify.py").is_file():
            raise UsageError(f"{entry}: no verify.py", "bundle entries that have a script")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError(f"{destination} is not an empty folder", "choose a new one")
    commits = {}
    for entry in (Path(entry).resolve() for entry in entries):
        name = "/".join(entry.parts[-2:])
        commits[name] = record.commit(entry)
        for file in ("entry.json", "verify.py"):
            _copy(entry / file, destination / "entries" / name / file)
    package = Path(kb.__file__).resolve().parent
    for module in sorted(closure(package, [_START, *_NAMED])):
        _copy(module, destination / "kb" / module.relative_to(package))
    made_from = {"kb_version": kb.__version__, "commits": commits}
    (destination / record.BUNDLE).write_text(json.dumps(made_from, indent=2) + "\n", encoding="utf-8")
    run = destination / "run.py"
    run.write_text(_RUN, encoding="utf-8")
    return run


def collect(directory: Path, root: Path) -> Collected:
    """Copy evidence files from anywhere below `directory` to their entries below `root`.

    Every file is judged first; one that is not acceptable, whose entry is unknown, or whose name is taken by other
    content is refused and hinders no other. Raises UsageError if there is no such folder or nothing in it.
    """
    files = sorted(path for path in directory.rglob("*.json") if path.is_file()) if directory.is_dir() else []
    if not files:
        raise UsageError(f"{directory}: no evidence files", "name the results folder of a bundle")
    collected = Collected()
    for file in files:
        try:
            target = root / _entry_of(file) / "evidence" / file.name
            (collected.imported if _bring(file, target) else collected.present).append(target)
        except EntryError as problem:
            collected.refused.append(problem)
        except ExceptionGroup as several:
            collected.refused.extend(problem for problem in several.exceptions if isinstance(problem, EntryError))
    return collected


def _entry_of(file: Path) -> str:
    """The id of the entry that an acceptable evidence file is of. Raises EvidenceError, or a group of them."""
    from kb.evidence import read

    if file.stat().st_size > _LARGEST:
        raise EvidenceError(str(file), "", f"is larger than {_LARGEST >> 20} MiB", "evidence is never that large")
    try:
        claimed = json.loads(file.read_bytes())["entry"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        claimed = ""
    return read(file, str(claimed)).entry


def _bring(file: Path, target: Path) -> bool:
    """Whether the file was new. Raises EvidenceError if it cannot be placed."""
    if not (target.parents[1] / "entry.json").is_file():
        raise EvidenceError(str(file), "entry", "there is no such entry here", "take it to the catalogue it is from")
    data = file.read_bytes()
    try:
        record.put(data, target)
    except FileExistsError:
        if target.read_bytes() == data:
            return False
        message = f"{target} has other content"
        raise EvidenceError(str(file), "", message, "evidence is written once: keep what is there") from None
    return True


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
