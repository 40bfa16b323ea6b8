"""The small tables beside the answers, written at the end of a run and read by the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from kb.batch.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

Count = tuple[str | None, str | None, str | None, bool]
"""Hour, entry, role, and whether what began it is unknown."""


def write_counts(store: Store, counts: Mapping[Count, int]) -> None:
    """`counts.parquet`: logs by hour and by what began them."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("hour", pa.timestamp("s", "UTC")), ("entry", pa.string()), ("role", pa.string()), ("unknown", pa.bool_()),
            ("logs", pa.int64()),
        ]
    )  # fmt: skip
    ordered = sorted(counts.items(), key=lambda item: tuple(str(part or "") for part in item[0]))
    rows = [
        {"hour": _time(hour), "entry": entry, "role": role, "unknown": unknown, "logs": number}
        for (hour, entry, role, unknown), number in ordered
    ]
    _write(store, "counts.parquet", rows, schema)


def write_unknown(store: Store, clusters: Sequence[Mapping[str, Any]]) -> None:
    """`unknown.parquet`: kinds of failures that no entry knows, the most frequent first."""
    import pyarrow as pa

    string, time = pa.string(), pa.timestamp("us", "UTC")
    schema = pa.schema(
        [
            ("fingerprint", string), ("logs", pa.int64()), ("exception", string), ("pattern", string),
            ("message", string), ("example", string), ("log", string), ("source", string), ("first", time),
            ("last", time),
        ]
    )  # fmt: skip
    rows = [{**row, "first": _time(row["first"]), "last": _time(row["last"])} for row in clusters]
    _write(store, "unknown.parquet", rows, schema)


def write_faults(store: Store, faults: Sequence[Sequence[str]]) -> None:
    """`failures.parquet`: what could not be read, with its place and the reason."""
    import pyarrow as pa

    names = ("source", "place", "reason")
    rows = [dict(zip(names, fault, strict=True)) for fault in faults]
    _write(store, "failures.parquet", rows, pa.schema([(name, pa.string()) for name in names]))


def read(store: Store, name: str) -> list[dict[str, Any]]:
    """Rows of one of these tables; empty if it is not there."""
    import pyarrow.parquet as pq

    data = store.read(name)
    rows: list[dict[str, Any]] = [] if data is None else pq.read_table(BytesIO(data), use_threads=False).to_pylist()
    return rows


def _write(store: Store, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.writing(name) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
