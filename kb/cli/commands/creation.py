"""`new`: a folder for an entry that is not there yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kb.catalog import packaged_root
from kb.cli import terminal
from kb.errors import UsageError
from kb.intake import read_file, read_stdin
from kb.opening import open_base
from kb.render import structured
from kb.render.page import Page, safe
from kb.scaffold import Draft, draft, write


def new(
    file: str, *, entry_id: str | None, root: Path, anyway: bool, yes: bool, as_json: bool, entries: Sequence[Path]
) -> int:
    """Draft an entry, show it, write it; 1 if an entry answers this paste already."""
    text = read_stdin() if file == "-" else read_file(Path(file))
    paste = text if isinstance(text, str) else "".join(text)
    base = open_base([*entries, *([root] if root.is_dir() else [])])
    made = draft(paste, base, entry_id=entry_id)
    if made.known and not anyway:
        _known(made, as_json=as_json)
        return 1
    if not as_json:
        _show(made)
        if not yes and file != "-" and sys.stdin.isatty() and not _agreed(made):
            raise UsageError("nothing was written", "--id and --root choose another place")
    folder = write(made, root)
    if as_json:
        terminal.write(structured.dumps(_plain(made) | {"folder": str(folder)}))
        return 0
    terminal.write("".join(f"{folder / name}\n" for name in made.files))
    print(
        f"next: replace every TODO, first in {folder}/entry.json, then in verify.py (docs/verify.md), add"
        f" samples/not-*.txt (a near miss) and a second sample, then\n  kb check {made.id} --root {root} --fix\n"
        f"  kb verify {made.id} --evidence {root} --save-sample --yes"
        + ("" if root.resolve() == packaged_root().resolve() else f" --entries {root}"),
        file=sys.stderr,
    )
    return 0


def _known(made: Draft, *, as_json: bool) -> None:
    if as_json:
        terminal.write(structured.dumps(_plain(made) | {"folder": None}))
        return
    print(safe(f"{', '.join(made.known)} answers this paste already: kb show {made.known[0]}"), file=sys.stderr)
    print("  remedy: add a variant or a cause there; --anyway makes a new entry all the same", file=sys.stderr)


def _plain(made: Draft) -> dict[str, object]:
    return {
        "id": made.id,
        "signature": made.entry["signature"],
        "regex": made.entry["regex"],
        "generalized": [change._asdict() for change in made.changes],
        "known": list(made.known),
        "similar": list(made.similar),
        "files": list(made.files),
    }


def _show(made: Draft) -> None:
    page = Page(terminal.width(), color=False)
    page.field("Entry", made.id)
    page.field("Signature", made.entry["signature"])
    page.field("Pattern", made.entry["regex"])
    for number, change in enumerate(made.changes):
        page.field("Varies" if number == 0 else "", f"{change.what}: {change.found} → {change.pattern}")
    if made.similar:
        page.field("Is it one?", ", ".join(made.similar))
    print(page.text(), file=sys.stderr)


def _agreed(made: Draft) -> bool:
    print(f"Write {made.id}? [Y/n] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")
