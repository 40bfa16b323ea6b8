"""`provenance`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import InvalidVersion, Version

import kb
from kb.catalog import LoadedEntry, load
from kb.cli import terminal
from kb.errors import KbError, UnknownEntryError, UsageError
from kb.layers import packaged_root
from kb.models.provenance import Look, Provenance, Search
from kb.provenance import Standing, record, summary
from kb.provenance.question import Question, canonical, questions
from kb.provenance.shelf import DEFAULT_PLATFORMS, PLATFORMS, PipShelf, Shelf
from kb.provenance.summary import Edge
from kb.provenance.survey import Choice, survey
from kb.render import structured
from kb.render.page import safe

_REFUTES = re.compile(r"^@pytest\.mark\.refutes\b", re.MULTILINE)


@dataclass(frozen=True)
class Options:
    """The options of `kb provenance`."""

    ids: tuple[str, ...] = ()
    every: bool = False
    count: int = 8
    named: tuple[str, ...] = ()
    """`2.9.1`, or `torch==2.9.1` where several distributions are looked into."""
    packages: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    limit: int | None = None
    """Bytes of a wheel."""
    pinpoint: bool = False
    cache: Path | None = None
    root: Path | None = None
    write: bool = True
    as_json: bool = False


@dataclass
class _Work:
    """One entry on its way: what is asked, and what was found so far."""

    loaded: LoadedEntry
    asked: tuple[Question, ...]
    found: dict[Question, Search] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.found) == len(self.asked)


def run(options: Options, shelf: Shelf | None = None) -> int:
    """Look, print, write. 0 the literals stand as claimed, 1 one of them does not, 2 error, 3 nothing was looked at."""
    works = [work for work in _works(options) if work.asked]
    choices = _choices(options, works)
    shelf = shelf or PipShelf(options.cache or _default_cache())
    done: list[tuple[Provenance, tuple[Standing, ...]]] = []
    failed = False
    for package, choice in choices.items():
        asked = list(dict.fromkeys(one for work in works for one in work.asked if one.package == package))
        try:
            answers = survey(package, asked, shelf, choice, _progress)
        except KbError as failure:
            failed = True
            terminal.warn([safe(line) for line in str(failure).split("\n")])
            continue
        finally:
            _progress("")
        for work in [work for work in works if not work.complete]:
            work.found |= {one: answers[one] for one in work.asked if one in answers}
            if work.complete:  # written at once, so that what is finished outlives an interruption
                done.append(_finish(work, options))
    if options.as_json:
        terminal.write(structured.dumps([_plain(made, found) for made, found in done]))
    return 2 if failed else _code(done, {work.loaded.entry.id for work in works if _is_refuted(work.loaded)})


def _works(options: Options) -> Iterator[_Work]:
    if options.every == bool(options.ids):
        raise UsageError("name entries, or ask for --all", "kb provenance pytorch/linear-dtype-mismatch")
    catalog = load([(options.root or packaged_root()).resolve()])
    for entry_id in options.ids:
        if entry_id not in catalog.entries:
            raise UnknownEntryError(f"no entry has the id {safe(entry_id)}", "kb list has them all")
    for loaded in catalog.entries.values():
        if loaded.entry.id in options.ids or (options.every and not loaded.entry.withdrawn):
            asked = questions(loaded.entry, options.packages)
            if not asked:
                remedy = "`raised_by` names none; --package adds one"
                terminal.warn([f"{loaded.entry.id}: no distribution to look into: {remedy}"])
            yield _Work(loaded, asked)


def _choices(options: Options, works: Sequence[_Work]) -> dict[str, Choice]:
    """What to look at of each distribution. Raises UsageError."""
    for name in options.platforms:
        if name not in PLATFORMS:
            raise UsageError(f"--platform {safe(name)}: unknown", f"one of {', '.join(PLATFORMS)}")
    packages = list(dict.fromkeys(one.package for work in works for one in work.asked))
    plain = Choice(options.count, (), options.platforms or DEFAULT_PLATFORMS, options.limit, options.pinpoint)
    named: dict[str, list[str]] = {}
    for text in options.named:
        name, separator, release = text.rpartition("==")
        if not separator and len(packages) > 1:
            remedy = f"write {packages[0]}=={release}, for one of {', '.join(packages)}"
            raise UsageError(f"--version {safe(text)}: of which distribution?", remedy)
        try:
            release = str(Version(release))
        except InvalidVersion:
            raise UsageError(f"--version {safe(text)}: no version", "2.9.1, or torch==2.9.1") from None
        for package in [canonical(name)] if separator else packages:
            named.setdefault(package, []).append(release)
    return {package: replace(plain, named=tuple(named.get(package, ()))) for package in packages}


def _default_cache() -> Path:
    chosen = os.environ.get("KB_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute() / "wheels"
    from platformdirs import user_cache_path

    return user_cache_path("provenfix") / "wheels"


def _finish(work: _Work, options: Options) -> tuple[Provenance, tuple[Standing, ...]]:
    made = Provenance(
        schema_version=1,
        entry=work.loaded.entry.id,
        made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        kb_version=kb.__version__,
        searches=tuple(work.found[one] for one in work.asked),
    )
    found = summary([made])
    if not options.as_json:
        terminal.write(text(made, found))
    if options.write:
        file = record.write(work.loaded.folder, made)
        if not options.as_json:
            terminal.write(f"  written to {safe(str(file))}\n")
    return made, found


def text(made: Provenance, found: Sequence[Standing]) -> str:
    """A record as a table for people."""
    lines = [made.entry]
    for search, one in zip(made.searches, found, strict=True):
        claim = f" {search.versions}" if search.versions else ""
        lines.append(f"  {search.package}{claim}  {_quoted(search.literal)}")
        if search.origin == "signature":
            lines.append("    (the entry claims no literal; this is the longest constant part of its signature)")
        rows = [(look.version, _word(look), look.platform, _where(look)) for look in search.looks]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("    " + "  ".join([*cells, row[3]]).rstrip())
        lines.append(f"  => {verdict(one)}")
    return "".join(safe(line) + "\n" for line in lines)


def verdict(one: Standing) -> str:
    """One sentence on a literal in one distribution."""
    if not one.looked and not one.unknown:
        return "no release has a wheel"
    if not one.looked:
        return f"NOT LOOKED AT: none of {_releases(len(one.unknown))} could be judged"
    if one.nowhere:
        said = f"stands in none of {_releases(one.looked)} looked at ({one.lacks[0]} to {one.lacks[-1]})"
        return f"0 hits: {said}" if one.origin == "signature" else said.replace("stands in none", "STANDS IN NONE")
    span = one.first if one.first == one.last else f"{one.first} to {one.last}"
    parts = [f"stands in {len(one.stands)} of {_releases(one.looked)} looked at ({span})"]
    parts += [
        part for edge, name in ((one.introduced, "introduced"), (one.removed, "removed")) if (part := _edge(edge, name))
    ]
    if one.unknown:
        parts.append(f"{_releases(len(one.unknown))} not judged")
    said = "; ".join(parts)
    return f"STANDS, though the entry claims no literal: {said}" if one.origin == "signature" else said


def _edge(edge: Edge | None, name: str) -> str:
    if edge is None:
        return ""
    has = "lacks" if name == "introduced" else "has"
    span = (
        f"in {edge.version}, {edge.neighbour} {has} it" if edge.exact else f"after {edge.neighbour}, by {edge.version}"
    )
    unseen = f"; {', '.join(edge.unseen)} not looked at" if edge.unseen else ""
    return f"{name} {span} ({edge.platform}{unseen})"


def _word(look: Look) -> str:
    return "?" if look.stands is None else "yes" if look.stands else "no"


def _where(look: Look) -> str:
    if not look.places:
        return look.reason or ""
    first = look.places[0]
    more = f" and {look.files - 1} more" if look.files > 1 else ""
    return f"{first.file}{f':{first.line}' if first.line else ''}{more}"


def _quoted(literal: str) -> str:
    return "«" + literal.replace("\n", "\\n") + "»"


def _releases(number: int) -> str:
    return f"{number} release{'' if number == 1 else 's'}"


def _plain(made: Provenance, found: Sequence[Standing]) -> Mapping[str, object]:
    return {"record": made.model_dump(mode="json"), "summary": [asdict(one) for one in found]}


def _code(done: Sequence[tuple[Provenance, Sequence[Standing]]], refuted: Collection[str]) -> int:
    if any(one.contradicts(refuted=made.entry in refuted) for made, found in done for one in found):
        return 1
    return 0 if any(one.looked for _, found in done for one in found) else 3


def _is_refuted(loaded: LoadedEntry) -> bool:
    """Whether its script shows that the error is not raised, instead of showing that it is."""
    try:
        return loaded.script is not None and bool(_REFUTES.search(loaded.script.read_text("utf-8")))
    except (OSError, UnicodeDecodeError):
        return False


def _progress(message: str) -> None:
    """One line that overwrites itself, only where somebody watches."""
    if sys.stderr.isatty():
        room = terminal.width() - 1
        print(f"\r\x1b[K{safe(message)[:room]}", end="", file=sys.stderr, flush=True)
