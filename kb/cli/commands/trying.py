"""`match --try`: an entry that is being written, on pastes and on the samples of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kb.catalog import load
from kb.cli import terminal
from kb.cli.match import Options
from kb.errors import UsageError
from kb.intake import read_file, read_stdin
from kb.layers import layers
from kb.opening import overlays
from kb.render import structured
from kb.render.page import safe
from kb.tryout import Outcome, tryout


def run(options: Options, entry: Path, names: Sequence[str]) -> int:
    """0 if the entry matches every paste given and takes no sample of another, else 1."""
    if options.format not in ("text", "json"):
        raise UsageError(f"--format {options.format}: not with --try", "text or json")
    file = entry / "entry.json" if entry.is_dir() else entry
    pastes = [(name, _text(name)) for name in names]
    done = tryout(file, pastes, load(layers(overlays([Path(folder) for folder in options.entries]))))
    if options.format == "json":
        terminal.write(structured.dumps(asdict(done)))
    else:
        terminal.write("".join(safe(line) + "\n" for line in _lines(done.entry_id, done.given, done.stolen)))
    return 0 if all(one.matched for one in done.given) and not done.stolen else 1


def _text(name: str) -> str:
    text = read_stdin() if name == "-" else read_file(Path(name))
    return text if isinstance(text, str) else "".join(text)


def _lines(entry_id: str, given: Sequence[Outcome], stolen: Sequence[Outcome]) -> list[str]:
    lines = []
    for one in given:
        if one.matched:
            place = "comes first" if one.after == entry_id else f"comes after {one.after}"
            lines.append(
                f"{one.file}: matched in line {one.line}, {place}" + (f"; {one.before} loses it" if one.taken else "")
            )
        else:
            lines.append(f"{one.file}: not matched" + (f" ({one.after} is)" if one.after else ""))
    lines += [f"takes {one.file} from {one.before}" for one in stolen]
    return [*lines, f"{entry_id}: takes {len(stolen)} samples of other entries"]
