"""What a worker does: read a part, match it, write the answers, then the record that says the part is done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kb
from kb.batch.clusters import Clusters
from kb.batch.parts import units_of
from kb.batch.reading import Fault, Log, read
from kb.batch.sources import Unit, opened
from kb.batch.store import Store
from kb.batch.table import TEXTS, answers_schema, logs_schema, match_table
from kb.errors import KbError
from kb.knowledge import KnowledgeBase
from kb.opening import open_base

if TYPE_CHECKING:
    import pyarrow as pa

_LOGS = 256
_CODE_POINTS = 4_000_000
"""Logs and text that are held at once."""


@dataclass(frozen=True)
class Job:
    """What all workers of a run must know. Called with a part, as `key payload`, it does the part."""

    source: str
    out: str
    entries: tuple[str, ...]
    catalogue: str
    """Digest that the worker's own entries must have."""

    def __call__(self, task: str) -> str:
        """Do a part and say how it went, as JSON: `key`, `logs`, `faults`, and `failed` with the reason if it did."""
        key, payload = task.split(" ")
        try:
            record = self._done(key, units_of(payload))
            return json.dumps({"key": key, "logs": record["logs"], "faults": len(record["faults"]), "failed": None})
        except Exception as error:  # one bad part must not end the others
            reason = error.message if isinstance(error, KbError) else f"{type(error).__name__}: {error}"
            return json.dumps({"key": key, "logs": 0, "faults": 0, "failed": reason[:500]})

    def _done(self, key: str, units: list[Unit]) -> dict[str, Any]:
        store = Store(self.out)
        store.write(f"parts/{key}.begun", b"")
        base = _base(self.entries, self.catalogue)
        system, _ = opened(self.source)
        with store.writing(f"logs/{key}.parquet") as path:
            record = _matched(units, system, base, path)
        store.write(f"parts/{key}.json", json.dumps(record).encode())
        store.remove(f"parts/{key}.begun")
        return record


def catalogue(base: KnowledgeBase) -> str:
    """A digest of everything an answer depends on: the published records and this version."""
    digest = sha256(kb.__version__.encode())
    for record in base.index.records():
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _base(entries: tuple[str, ...], wanted: str) -> KnowledgeBase:
    """Opened once for all parts that a process does. Raises KbError if its entries are others than those asked for."""
    import pyarrow as pa

    pa.set_cpu_count(1)  # workers are as many as there are cores
    base = open_base([Path(folder) for folder in entries])
    if catalogue(base) != wanted:
        raise KbError(
            "a worker has other entries than the run began with", "install the same version, change no entries"
        )
    base.warm()
    return base


def _matched(units: Iterable[Unit], system: Any, base: KnowledgeBase, path: Path) -> dict[str, Any]:
    """Write the answers to `path`. Returns the part's record."""
    import pyarrow.parquet as pq

    faults: list[Fault] = []
    counts: Counter[tuple[str | None, str | None, str | None, bool]] = Counter()
    clusters = Clusters()
    logs = rows = 0
    with pq.ParquetWriter(path, answers_schema(texts=False), compression="zstd") as writer:
        for table in _tables((item for unit in units for item in read(unit, system, base.excerpt)), faults):
            answers = match_table(table, base)
            logs += table.num_rows
            rows += answers.num_rows
            first = [row for row in answers.to_pylist() if row["rank"] == 1]
            counts.update((_hour(row["time"]), row["entry"], row["role"], bool(row["fingerprint"])) for row in first)
            clusters.add(_cluster(row) for row in first if row["fingerprint"])
            writer.write_table(answers.drop_columns(list(TEXTS)))
    return {
        "logs": logs,
        "rows": rows,
        "counts": [[*key, number] for key, number in sorted(counts.items(), key=str)],
        "clusters": clusters.rows(),
        "faults": [list(fault) for fault in faults],
    }


def _tables(items: Iterable[Log | Fault], faults: list[Fault]) -> Iterator[pa.Table]:
    """Logs in tables of bounded size; faults are put aside."""
    import pyarrow as pa

    held: list[dict[str, Any]] = []
    size = 0
    for item in items:
        if isinstance(item, Fault):
            faults.append(item)
            continue
        held.append(_row(item))
        size += len(item.text) if isinstance(item.text, str) else sum(len(row.text) for row in item.text)
        if len(held) >= _LOGS or size >= _CODE_POINTS:
            yield pa.Table.from_pylist(held, schema=logs_schema())
            held, size = [], 0
    if held:
        yield pa.Table.from_pylist(held, schema=logs_schema())


def _row(log: Log) -> dict[str, Any]:
    from kb.literals import encodable

    row: dict[str, Any] = {"id": encodable(log.id), "time": log.time, "source": encodable(log.source)}
    if isinstance(log.text, str):
        return {**row, "text": encodable(log.text)}
    return {**row, "rows": [{**line._asdict(), "text": encodable(line.text)} for line in log.text]}


def _hour(time: datetime | None) -> str | None:
    return None if time is None else time.strftime("%Y-%m-%dT%H:00:00+00:00")


def _cluster(row: dict[str, Any]) -> dict[str, Any]:
    time = None if row["time"] is None else row["time"].isoformat()
    return {
        "fingerprint": row["fingerprint"],
        "logs": 1,
        **{name: row[name] for name in TEXTS},
        "log": row["log"],
        "source": row["source"],
        "first": time,
        "last": time,
    }
