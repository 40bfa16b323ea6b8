"""Matching as a function from one Arrow table to another: what any engine that knows Arrow can run.

import ray; from kb.batch.table import match_table
ray.data.read_parquet("s3://logs").map_batches(match_table, batch_format="pyarrow").write_parquet("s3://answers")
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kb import roles
from kb.batch.fingerprint import Fingerprint, fingerprint
from kb.excerpt import Row
from kb.models.result import Incident, Match, Result

if TYPE_CHECKING:
    import pyarrow as pa

    from kb.knowledge import KnowledgeBase

TEXTS = ("exception", "pattern", "message", "example")
"""Columns that quote a log, redacted; answers are kept without them."""


def logs_schema() -> pa.Schema:
    """Columns of a table of logs. Only `id` and `text` need be there.

    `rows` holds, instead of `text`, what `KnowledgeBase.excerpt` gave of a large log.
    """
    import pyarrow as pa

    row = pa.struct([("number", pa.int64()), ("column", pa.int64()), ("text", pa.large_string())])
    return pa.schema(
        [
            ("id", pa.large_string()),
            ("text", pa.large_string()),
            ("time", pa.timestamp("us", "UTC")),
            ("source", pa.large_string()),
            ("rows", pa.large_list(row)),
        ]
    )


def answers_schema(*, texts: bool = True) -> pa.Schema:
    """Columns of a table of answers: a row for each entry seen in a log, and for each failure that no entry knows.

    A log has one row at least. `rank` counts its rows from 1, what began it first. `entry` is null where no entry
    knows what happened, and `fingerprint` too where nothing happened: no failure was seen in the log.
    """
    import pyarrow as pa

    string = pa.string()
    columns = [
        ("log", string), ("source", string), ("time", pa.timestamp("us", "UTC")), ("rank", pa.int32()),
        ("entry", string), ("level", string), ("role", string), ("line", pa.int64()), ("fix", string),
        ("fingerprint", string), *((name, string) for name in TEXTS if texts),
    ]  # fmt: skip
    return pa.schema(columns)


def match_table(logs: pa.Table, base: KnowledgeBase | None = None) -> pa.Table:
    """Answers for a table of logs, the same as `kb match` gives on each. `base` is by default the packaged entries."""
    import pyarrow as pa

    from kb import api

    known = base or api.default()
    names = [name for name in logs_schema().names if name in logs.column_names]
    rows = [row for log in logs.select(names).to_pylist() for row in _answers(log, known)]
    return pa.Table.from_pylist(rows, schema=answers_schema())


def _answers(log: dict[str, Any], base: KnowledgeBase) -> Iterator[dict[str, Any]]:
    rows = log.get("rows")
    result = base.match(log["text"] or "" if rows is None else [Row(**row) for row in rows])
    head = {"log": log["id"], "source": log.get("source"), "time": log.get("time")}
    stranger = _stranger(result)
    found = [_unknown(stranger)] if stranger else []
    found += [_known(match) for match in result.matches]
    for rank, row in enumerate(found or [{}], start=1):
        yield {**head, "rank": rank, **row}


def _known(match: Match) -> dict[str, Any]:
    fix = match.fixes[0].id if match.fixes else None
    return {"entry": match.entry_id, "level": match.level, "role": match.role, "line": match.line, "fix": fix}


def _unknown(incident: Incident) -> dict[str, Any]:
    seen: Fingerprint = fingerprint(incident)
    return {"role": "root", "line": incident.line, "fingerprint": seen.key, **{n: getattr(seen, n) for n in TEXTS}}


def _stranger(result: Result) -> Incident | None:
    """The failure that began it and that no entry knows."""
    incidents = result.query.incidents
    if result.unknown_root is not None:
        return incidents[result.unknown_root]
    if result.matches:
        return None
    exceptions = [index for index, one in enumerate(incidents) if one.kind == "exception"]
    origin = roles.unknown_origin(incidents, ())
    chosen = origin if origin is not None else exceptions[-1] if exceptions else None
    return None if chosen is None else incidents[chosen]
