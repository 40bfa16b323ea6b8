"""The index, read side: one SQLite file with everything a look-up needs.

Only the standard library is imported, since every command starts here. The file is never changed in place (a new one
takes its name), so it is opened read-only and without locks. `kb.index_build` documents the tables.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kb import lazy
from kb.errors import IndexUnavailableError, UnknownEntryError
from kb.layers import INDEX_SCHEMA
from kb.prefilter import Automaton, grams

if TYPE_CHECKING:
    from kb.excerpt import Scanner

_REBUILD = "run `kb index` to build it anew"
_RELATED_TERMS = 8
# Asking for the grams of a text costs about 0.2 µs for each code point, building the automaton 10 µs for each literal.
_ASKED_AT_LEAST = 65_536
_ASKED_FOR_EACH = 50
_AT_ONCE = 10_000
_MOST_RECORDS = 4_096
_MOST_WORDS = 32
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = lazy.pattern(f"[{_CJK}]+|(?:(?![{_CJK}])\\w)+")
_URI_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/:")

# Columns of entries_fts in order: id, aliases, signatures, tags, root_cause, causes, actions, zh.
_WEIGHTS = "8.0, 8.0, 5.0, 4.0, 2.0, 1.5, 2.0, 2.0"


@dataclass(frozen=True, slots=True)
class Signature:
    """One wording of an entry, with all that matching needs to know of it."""

    entry_id: str
    ordinal: int
    """0 is the entry's own wording, its variants follow, an imported pattern comes last."""
    signature: str
    regex: str
    literals: tuple[str, ...]
    """Of which one must stand in the case-folded subject; empty if nothing can be required."""
    engine: Literal["re2", "regex"]
    """`regex` only for an imported pattern that RE2 refuses; it needs a timeout."""
    frames: tuple[str, ...]
    exceptions: tuple[str, ...]
    kind: Literal["error", "wrapper", "warning"]
    supersedes: tuple[str, ...]
    legacy: bool
    """True for an imported pattern, which keeps no policy."""


class Hit(NamedTuple):
    """One entry found by words."""

    entry_id: str
    signature: str
    domain: str
    tier: str
    root_cause: str
    terms: tuple[str, ...] = ()
    """Which of the asked terms it shares; only `related` says."""


class Run(NamedTuple):
    """One evidence file."""

    file: str
    started_at: str
    device: str
    gpu: str | None
    torch: str | None
    python: str
    trials: int
    fresh_trials: int
    contributed_by: str | None


class Tally(NamedTuple):
    """Trials of an entry on one kind of machine."""

    held: int
    """Those that bore their claim out."""
    trials: int


class Problem(NamedTuple):
    """A catalogue file that was left out when the index was built."""

    file: str
    field: str
    message: str
    remedy: str


def _by_id(signature: Signature) -> tuple[str, int]:
    return signature.entry_id, signature.ordinal


# `Index.list` would hide the type of the same name inside the class.
_Hits = list[Hit]
_Rows = list[tuple[Any, ...]]
_Words = list[str]
_Signatures = list[Signature]
_Numbers = list[int]


class Index:
    """An open index. Reading may be shared between threads; close it, or use it as a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None = None) -> None:
        self._connection = connection
        self.path = path
        """None if it is kept in memory."""
        self._automaton: Automaton | None = None
        self._scanner: Scanner | None = None
        self._asked = 0
        self._patience: int | None = None
        self._always: _Numbers | None = None
        self._signatures: dict[int, Signature] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._edges: dict[str, frozenset[str]] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, stamp: str | None) -> Index:
        """Open an index read-only. `stamp` is what it must have been built from; None takes any.

        Raises IndexUnavailableError if it is missing, truncated, corrupt, of another schema version, or stale.
        """
        file = Path(path).absolute()
        _check_size(file)
        try:
            connection = sqlite3.connect(
                f"file:{_quoted(file)}?mode=ro&immutable=1", uri=True, check_same_thread=False, isolation_level=None
            )
        except sqlite3.Error as error:
            raise IndexUnavailableError(f"cannot open the index {file}: {error}", _REBUILD) from None
        index = cls(connection, file)
        try:
            index._check_meta(stamp)
        except IndexUnavailableError:
            connection.close()
            raise
        return index

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def signatures(self) -> _Signatures:
        """Every wording of every entry that is not withdrawn, in the order of ids and ordinals."""
        return self._signatures_of([number for (number,) in self._rows("select number from signatures")])

    def candidates(self, folded: str) -> _Signatures:
        """Signatures that can match in a case-folded text, in the order of ids and ordinals.

        The first texts are looked up by their grams; once enough was asked to pay for it, the automaton is built.
        """
        if self._automaton is None:
            self._asked += len(folded)
            if self._asked <= _ASKED_AT_LEAST:
                return self._by_grams(folded)
            if self._patience is None:
                ((literals,),) = self._rows("select count(*) from literals")
                self._patience = _ASKED_AT_LEAST + _ASKED_FOR_EACH * literals
            if self._asked <= self._patience:
                return self._by_grams(folded)
        return self._signatures_of([*self.automaton().numbers(folded), *self._without_literals()])

    def automaton(self) -> Automaton:
        """All literals as one automaton over numbers of signatures; built when first asked for, then kept."""
        if self._automaton is None:
            literals: dict[str, list[int]] = {}
            for literal, number in self._rows("select literal, signature from literals"):
                literals.setdefault(literal, []).append(number)
            self._automaton = Automaton(literals)
        return self._automaton

    def scanner(self) -> Scanner:
        """Finds the literals in raw text of large logs; built when first asked for, then kept."""
        if self._scanner is None:
            from kb.excerpt import Scanner

            self._scanner = Scanner(literal for (literal,) in self._rows("select distinct literal from literals"))
        return self._scanner

    def _by_grams(self, folded: str) -> _Signatures:
        # `cross join` keeps the order: each gram of the text is looked up, which takes half the time of `in`.
        rows = self._rows(
            "select literal, signature from json_each(?) cross join literals on gram = value",
            (json.dumps(["", *grams(folded)]),),
        )
        numbers = {number for literal, number in rows if literal in folded}
        return self._signatures_of([*numbers, *self._without_literals()])

    def _without_literals(self) -> _Numbers:
        if self._always is None:
            self._always = [number for (number,) in self._rows("select number from signatures where literals = '[]'")]
        return self._always

    def _signatures_of(self, numbers: Sequence[int]) -> _Signatures:
        known = self._signatures
        missing = [number for number in numbers if number not in known]
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            for number, *row in self._rows(
                "select number, entry_id, ordinal, signature, regex, literals, engine, frames, exceptions, kind,"
                f" supersedes, legacy from signatures where number in ({','.join(map(str, some))})"
            ):
                known[number] = _signature(*row)
        return sorted((known[number] for number in numbers), key=_by_id)

    def record(self, entry_id: str) -> dict[str, Any]:
        """The published record of an id or an alias. It is kept and given again: leave it as it is.

        Raises UnknownEntryError, which names up to three ids that look alike.
        """
        if (kept := self._records.get(entry_id)) is not None:
            return kept
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        self._records[entry_id] = record = self._read_record(entry_id)
        return record

    def _read_record(self, entry_id: str) -> dict[str, Any]:
        for query in (
            "select record from entries where id = ?",
            "select record from entries join aliases on entries.id = aliases.entry_id where alias = ? order by id",
        ):
            for (text,) in self._rows(query, (entry_id,)):
                return self._parsed(text)
        raise UnknownEntryError(f"no entry has the id {entry_id!r}", self._closest(entry_id))

    def folder(self, entry_id: str) -> Path | None:
        """Where an entry of this id was read from; None if it is unknown or came from no folder."""
        rows = self._rows("select folder from entries where id = ?", (entry_id,))
        return Path(rows[0][0]) if rows and rows[0][0] else None

    def evidence(self, entry_id: str) -> Sequence[Run]:
        """Runs of an entry's script, newest first."""
        rows = self._rows(
            "select file, started_at, device, gpu, torch, python, trials, fresh_trials, contributed_by from evidence"
            " where entry_id = ? order by started_at desc, file",
            (entry_id,),
        )
        return [Run(*row) for row in rows]

    def tally(self) -> dict[tuple[str, str], Tally]:
        """Fresh trials by entry and machine, such as `NVIDIA H100, torch 2.11`; what was skipped does not count."""
        rows = self._rows(
            "select trials.entry_id, coalesce(gpu, 'CPU') || coalesce(', torch ' || torch, ''),"
            " sum(outcome in ('reproduced', 'fixed', 'still_fails', 'fails_differently')), count(*)"
            " from trials join evidence using (file) where fresh and outcome <> 'skipped' and contributed_by is null"
            " group by 1, 2"
        )
        return {(entry_id, machine): Tally(held, trials) for entry_id, machine, held, trials in rows}

    def records(self) -> Iterable[dict[str, Any]]:
        """Every published record, withdrawn ones included, in the order of ids."""
        for (text,) in self._rows("select record from entries order by id"):
            yield self._parsed(text)

    def edges(self) -> dict[str, frozenset[str]]:
        """For each entry the ids of what it leads to, authored and measured."""
        if self._edges is None:
            self._edges = self._read_edges()
        return self._edges

    def _read_edges(self) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for source, target in self._rows(
            "select entry_id, other_id from transitions where relation = 'leads_to'"
            " union select other_id, entry_id from transitions where relation = 'preceded_by'"
        ):
            found.setdefault(source, set()).add(target)
        return {source: frozenset(targets) for source, targets in found.items()}

    def problems(self) -> Sequence[Problem]:
        """What was left out of the catalogue when the index was built."""
        rows = self._rows("select file, field, message, remedy from problems order by file, field, message")
        return [Problem(*row) for row in rows]

    def search(self, words: str, limit: int = 20, domain: str | None = None) -> _Hits:
        """Entries about these words, best first. Any text may be asked; text without words finds nothing.

        Entries with all the words come first; where there are none, beginnings of words count, then any of the words.
        """
        phrases = [_phrase(token) for token in _tokens(words)[:_MOST_WORDS]]
        if not phrases:
            return []
        for query in (" ".join(phrases), " ".join(phrase + "*" for phrase in phrases), " OR ".join(phrases)):
            hits = self._found(query, limit, domain)
            if hits:
                return hits
        return []

    def related(self, terms: Sequence[str], limit: int = 3) -> _Hits:
        """Entries that share rare words with an error line; a single shared word among several does not count."""
        rare = self._rarest(dict.fromkeys(token for term in terms for token in _tokens(term)))
        if not rare:
            return []
        hits = self._found(" OR ".join(map(_phrase, rare)), 4 * limit, None)
        shared: dict[str, _Words] = {}
        for term in rare:
            for (entry_id,) in self._rows("select id from entries_fts where entries_fts match ?", (_phrase(term),)):
                shared.setdefault(entry_id, []).append(term)
        enough = min(2, len(rare))
        close = [hit for hit in hits if len(shared.get(hit.entry_id, ())) >= enough]
        return [
            Hit(hit.entry_id, hit.signature, hit.domain, hit.tier, hit.root_cause, tuple(shared[hit.entry_id]))
            for hit in close[:limit]
        ]

    def list(self, domain: str | None = None, tier: str | None = None, tag: str | None = None) -> _Hits:
        """Entries that are not withdrawn, by id; each filter given must hold."""
        rows = self._rows(
            "select id, signature, domain, verification_tier, root_cause from entries where withdrawn is null"
            " and (? is null or domain = ?) and (? is null or verification_tier = ?)"
            " and (? is null or exists (select 1 from tags where entry_id = entries.id and tag = ?)) order by id",
            (domain, domain, tier, tier, tag, tag),
        )
        return [Hit(*row) for row in rows]

    def _found(self, query: str, limit: int, domain: str | None) -> _Hits:
        rows = self._rows(
            "select entries.id, signature, domain, verification_tier, entries.root_cause from entries_fts"
            " join entries on entries.id = entries_fts.id"
            " where entries_fts match ? and withdrawn is null and (? is null or domain = ?)"
            f" order by bm25(entries_fts, {_WEIGHTS}), entries.id limit ?",
            (query, domain, domain, max(limit, 0)),
        )
        return [Hit(*row) for row in rows]

    def _rarest(self, terms: Iterable[str]) -> _Words:
        ((entries,),) = self._rows("select count(*) from entries_fts")
        counted = []
        for term in terms:
            query = "select count(*) from entries_fts where entries_fts match ?"
            ((count,),) = self._rows(query, (_phrase(term),))
            # What stands in most entries says nothing about any of them.
            if 0 < count <= max(2, entries // 2):
                counted.append((count, -len(term), term))
        return [term for _, _, term in sorted(counted)[:_RELATED_TERMS]]

    def _closest(self, entry_id: str) -> str:
        from difflib import get_close_matches

        known: dict[str, str] = dict(self._rows("select alias, entry_id from aliases"))
        known.update({owner: owner for (owner,) in self._rows("select id from entries")})
        slugs = {name.rpartition("/")[2]: owner for name, owner in known.items()}
        names = get_close_matches(entry_id.lower(), known, n=3, cutoff=0.6)
        names += get_close_matches(entry_id.lower().rpartition("/")[2], slugs, n=3, cutoff=0.6)
        ids = list(dict.fromkeys((known | slugs)[name] for name in names))[:3]
        return f"did you mean {' or '.join(ids)}?" if ids else "`kb list` and `kb search WORDS` show what there is"

    def _check_meta(self, stamp: str | None) -> None:
        meta: dict[str, str] = dict(self._rows("select key, value from meta"))
        if meta.get("schema_version") != str(INDEX_SCHEMA):
            found = meta.get("schema_version")
            raise IndexUnavailableError(f"the index {self.path} has schema {found}, not {INDEX_SCHEMA}", _REBUILD)
        if stamp is not None and meta.get("stamp") != stamp:
            raise IndexUnavailableError(f"the index {self.path} is older than its entries", _REBUILD)

    def _rows(self, query: str, values: Sequence[Any] = ()) -> _Rows:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise IndexUnavailableError(f"the index {self.path or 'in memory'} is damaged: {error}", _REBUILD) from None

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise IndexUnavailableError(f"the index {self.path} is damaged: {error}", _REBUILD) from None
        return record


def spaced(text: str) -> str:
    """`text` with every Chinese, Japanese or Korean character a word of its own, as the full-text table holds it."""
    return re.sub(f"([{_CJK}])", r" \1 ", text)


def _signature(
    entry_id: str,
    ordinal: int,
    signature: str,
    regex: str,
    literals: str,
    engine: Literal["re2", "regex"],
    frames: str,
    exceptions: str,
    kind: Literal["error", "wrapper", "warning"],
    supersedes: str,
    legacy: int,
) -> Signature:
    return Signature(
        entry_id,
        ordinal,
        signature,
        regex,
        _texts(literals),
        engine,
        _texts(frames),
        _texts(exceptions),
        kind,
        _texts(supersedes),
        bool(legacy),
    )


def _tokens(text: str) -> list[str]:
    return list(dict.fromkeys(_TOKEN.findall(text.replace("\0", " "))))


def _phrase(token: str) -> str:
    return '"' + spaced(token).strip().replace('"', '""') + '"'


def _texts(array: str) -> tuple[str, ...]:
    return () if array == "[]" else tuple(json.loads(array))


def _quoted(file: Path) -> str:
    path = file.as_posix()
    path = path if path.startswith("/") else "/" + path
    return "".join(chr(byte) if byte in _URI_SAFE else f"%{byte:02X}" for byte in os.fsencode(path))


def _check_size(file: Path) -> None:
    """Compare the file's size with what its own header says, which SQLite does not do when opening."""
    try:
        with file.open("rb") as stream:
            header = stream.read(100)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        reason = error.strerror or str(error)
        raise IndexUnavailableError(f"cannot read the index {file}: {reason}", _REBUILD) from None
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise IndexUnavailableError(f"the index {file} is no SQLite file", _REBUILD)
    page_size, pages = struct.unpack(">16xH10xI", header[:32])
    if size != pages * (65536 if page_size == 1 else page_size):
        raise IndexUnavailableError(f"the index {file} is truncated", _REBUILD)
