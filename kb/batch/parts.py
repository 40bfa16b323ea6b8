"""Parts: what a worker does in one go. The same input is always cut in the same way, so that a run can be resumed."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kb.batch.sources import Unit, compression

FORMAT = 1
"""Part of every key: raised when what is written for a part changes."""
DEFAULT_SIZE = 4_096
_LOG = 4_096
"""Bytes that a log is reckoned at where logs are not counted before they are read."""
_PACKED_LOG = 1_024
"""The same in a compressed file."""


class Part(NamedTuple):
    """Units that are matched together."""

    key: str
    """Names the results. It changes with the units, the state of their files, and the entries."""
    payload: str
    """The units, small enough that those of millions of files are kept in memory."""


def parts(units: Iterable[Unit], system: Any, catalogue: str, size: int = DEFAULT_SIZE) -> Iterator[Part]:
    """Cut the input into parts of about `size` logs. `catalogue` is the digest of the entries that will answer."""
    group: list[Unit] = []
    weight = 0.0
    for unit in units:
        for stretch in _stretches(unit, system, size):
            group.append(stretch)
            weight += _weight(stretch)
            if weight >= size:
                yield _part(group, catalogue)
                group, weight = [], 0.0
    if group:
        yield _part(group, catalogue)


def units_of(payload: str) -> list[Unit]:
    """The units of a part."""
    return [Unit(*fields) for fields in json.loads(zlib.decompress(base64.b64decode(payload)))]


def _part(group: list[Unit], catalogue: str) -> Part:
    text = json.dumps(group, ensure_ascii=False)
    named = json.dumps([FORMAT, catalogue, [unit[1:] for unit in group]], ensure_ascii=False)
    key = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return Part(key, base64.b64encode(zlib.compress(text.encode("utf-8", "surrogatepass"))).decode("ascii"))


def _weight(unit: Unit) -> float:
    """About how many logs it takes the time of."""
    packed = unit.kind == "rows" or compression(unit.path)
    return max(1.0, unit.size / (_PACKED_LOG if packed else _LOG))


def _stretches(unit: Unit, system: Any, size: int) -> Iterator[Unit]:
    if _weight(unit) <= size or unit.kind == "text" or compression(unit.path):
        yield unit
    elif unit.kind == "lines":
        step = size * _LOG
        for start in range(0, unit.size, step):
            end = min(start + step, unit.size)
            yield unit._replace(start=start, end=end, size=end - start)
    else:
        yield from _row_groups(unit, system, size)


def _row_groups(unit: Unit, system: Any, size: int) -> Iterator[Unit]:
    import pyarrow.parquet as pq

    try:
        with system.open(unit.path, "rb") as stream:
            metadata = pq.ParquetFile(stream).metadata
            rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    except Exception:  # whatever is wrong with the file, the worker that reads it will say so
        yield unit
        return
    start = counted = 0
    for number, count in enumerate(rows, start=1):
        counted += count
        if counted >= size or number == len(rows):
            share = unit.size * counted // max(1, sum(rows))
            yield unit._replace(start=start, end=number, size=share)
            start, counted = number, 0
