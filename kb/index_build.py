"""The index, build side: one SQLite file, written beside its place and moved there whole."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import kb
from kb.errors import EntryError, IndexUnavailableError
from kb.index import Index
from kb.index_rows import Rows, add, add_literals
from kb.index_tables import SQL, TABLE_DOCS
from kb.layers import INDEX_SCHEMA
from kb.publish import Publication

LOCK_SECONDS = 120.0
"""How long to wait for another process that builds the same index."""
_ELSEWHERE = "make room, or set KB_CACHE to another folder"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock that everybody who builds the index at `path` takes; it may be taken again inside.

    Raises OSError if the lock cannot be had (the folder cannot be written, or somebody holds it too long), and
    IndexUnavailableError where the file system knows no locks.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=LOCK_SECONDS, is_singleton=True)
    try:
        lock.acquire()
    except NotImplementedError as error:
        raise IndexUnavailableError(
            f"{path.parent} cannot be locked: {error}", "set KB_CACHE to a local folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def build(path: Path, records: Iterable[Publication], problems: Sequence[EntryError], stamp: str) -> None:
    """Write the index to `path`, whole or not at all, under its lock. Folders are created.

    Raises OSError or IndexUnavailableError if it cannot be written; what stood at `path` is then as it was.
    """
    with locked(path):
        try:
            _write(path, records, problems, stamp)
        except sqlite3.Error as error:
            raise IndexUnavailableError(f"the index cannot be written to {path.parent}: {error}", _ELSEWHERE) from None


def build_memory(records: Iterable[Publication], problems: Sequence[EntryError] = (), stamp: str = "") -> Index:
    """The same index without a file."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    _fill(connection, records, problems, stamp)
    return Index(connection)


def _write(path: Path, records: Iterable[Publication], problems: Sequence[EntryError], stamp: str) -> None:
    handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".new", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        connection = sqlite3.connect(temporary)
        try:
            _fill(connection, records, problems, stamp)
        finally:
            connection.close()
        # Readable for others as a file made the usual way would be; mkstemp makes it private.
        temporary.chmod(0o644)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(
    connection: sqlite3.Connection, records: Iterable[Publication], problems: Sequence[EntryError], stamp: str
) -> None:
    from sqlite_utils import Database

    rows: Rows = {table: [] for table in TABLE_DOCS}
    rows["meta"] = [
        {"key": "schema_version", "value": str(INDEX_SCHEMA)},
        {"key": "kb_version", "value": kb.__version__},
        {"key": "stamp", "value": stamp},
    ]
    rows["table_docs"] = [{"name": table, "description": text} for table, text in TABLE_DOCS.items()]
    rows["problems"] = [
        {"file": problem.file, "field": problem.field, "message": problem.detail, "remedy": problem.remedy}
        for problem in problems
    ]
    for publication in records:
        add(rows, publication)
    add_literals(rows)
    database = Database(connection)
    database.executescript(SQL)
    for table, found in rows.items():
        database.table(table).insert_all(found, batch_size=1000)
    connection.execute("insert into entries_fts (entries_fts) values ('optimize')")
    connection.commit()
    connection.execute("analyze")
    connection.commit()
