"""Every query that the documentation shows runs, and the metadata names what is there."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kb import api
from tests.conftest import PROJECT

PAGE = (PROJECT / "docs" / "sql.md").read_text(encoding="utf-8")
QUERIES = dict(re.findall(r"^## (.+?)\n(?:[^#]*?)```sql\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
MAY_BE_EMPTY = {"Which fixes are proven on sm_90?", "What was refuted?"}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    file = api.open().file
    assert file is not None
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    yield connection
    connection.close()


@pytest.mark.parametrize("heading", QUERIES)
def test_a_query_of_the_documentation_runs(connection: sqlite3.Connection, heading: str) -> None:
    rows = connection.execute(QUERIES[heading]).fetchall()
    assert rows or heading in MAY_BE_EMPTY


def test_there_are_ten_at_least() -> None:
    assert len(QUERIES) >= 10


def test_the_metadata_names_tables_and_columns_that_are_there(connection: sqlite3.Connection) -> None:
    tables = {name for (name,) in connection.execute("select name from sqlite_master where type in ('table', 'view')")}
    (database,) = json.loads((PROJECT / "metadata.json").read_text(encoding="utf-8"))["databases"].values()
    for table, described in database["tables"].items():
        assert table in tables
        columns = {row[1] for row in connection.execute(f"pragma table_info({table})")}
        named = {*described.get("columns", {}), *described.get("facets", []), described.get("sort", "")} - {""}
        assert named <= columns, table
    for query in database["queries"].values():
        connection.execute(query["sql"], {"gpu": "", "words": '"x"', "release": ""}).fetchall()


def test_a_copy_of_the_index_is_a_database_of_its_own(tmp_path: Path) -> None:
    copy = tmp_path / "provenfix.db"
    copy.write_text("an older one", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "kb", "index", "--output", str(copy)], check=True, capture_output=True)
    with sqlite3.connect(copy) as connection:
        ((entries,),) = connection.execute("select count(*) from entries")
    connection.close()
    assert entries >= 200
    assert [path.name for path in tmp_path.iterdir()] == ["provenfix.db"]
