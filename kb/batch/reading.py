"""Logs out of files. What cannot be read becomes a fault with its place, and the rest is read on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from kb.batch.sources import Unit, compression
from kb.errors import KbError
from kb.intake import LARGE, read_on
from kb.redact import redact

if TYPE_CHECKING:
    from kb.excerpt import Row

LONGEST_LINE = 64 * 2**20
"""Bytes of a line of JSON that is still read."""
MOST_FAULTS = 100
"""Faults of one file that are told one by one."""
_AT_ONCE = 256
_MILLISECONDS = 1e11
"""Numbers from here on are milliseconds since 1970, smaller ones seconds."""

Excerpt = Callable[[Iterable[str]], "list[Row]"]


class Log(NamedTuple):
    """One job's log."""

    source: str
    """Name of the file it stands in."""
    id: str
    time: datetime | None
    text: str | list[Row]
    """Of a large file what matters of it."""


class Fault(NamedTuple):
    """Something that could not be read."""

    source: str
    place: str
    """`byte 812` or `row 17`; empty for a file as a whole."""
    reason: str


def read(unit: Unit, system: Any, excerpt: Excerpt) -> Iterator[Log | Fault]:
    """Everything in a unit. Never raises: what was read before a fault that ends the file is kept."""
    reader = {"text": _text, "lines": _lines, "rows": _rows}[unit.kind]
    told = untold = 0
    try:
        for item in reader(unit, system, excerpt):
            if isinstance(item, Log):
                yield item
            elif told < MOST_FAULTS:
                told += 1
                yield item
            else:
                untold += 1
    except Exception as error:  # codecs, object stores and Parquet raise what they like
        yield _fault(unit, "", _reason(error))
    if untold:
        yield _fault(unit, "", f"and {untold} more faults in this file")


def _fault(unit: Unit, place: str, reason: str) -> Fault:
    return Fault(unit.name, place, redact(" ".join(reason.split()))[:300])


def _reason(error: Exception) -> str:
    if isinstance(error, KbError):
        return error.message
    return str(error) or type(error).__name__


def _stream(unit: Unit, system: Any, closing: ExitStack) -> BinaryIO:
    """The file's bytes, unpacked."""
    from fsspec.compression import compr

    stream: BinaryIO = closing.enter_context(system.open(unit.path, "rb"))
    if (name := compression(unit.path)) is None:
        return stream
    if name not in compr:
        raise KbError(f"{unit.name}: nothing here unpacks {name}")
    unpacked: BinaryIO = closing.enter_context(compr[name](stream, mode="rb"))
    return unpacked


def _text(unit: Unit, system: Any, excerpt: Excerpt) -> Iterator[Log]:
    time = None if unit.modified is None else _moment(unit.modified)
    with ExitStack() as closing:
        stream = _stream(unit, system, closing)
        head = stream.read(LARGE)
        # A job that said nothing is no fault.
        text = read_on(head, stream, unit.name) if head.strip() or len(head) == LARGE else ""
        yield Log(unit.name, unit.name, time, text if isinstance(text, str) else excerpt(text))


def _lines(unit: Unit, system: Any, _: Excerpt) -> Iterator[Log | Fault]:
    """A JSON object in each line that begins inside the stretch."""
    with ExitStack() as closing:
        stream = _stream(unit, system, closing)
        place = unit.start
        if place:  # the line that runs into the stretch belongs to the one before
            stream.seek(place - 1)
            place += len(stream.readline()) - 1
        while unit.end is None or place < unit.end:
            line = stream.readline(LONGEST_LINE)
            if not line:
                return
            begun, place = place, place + len(line)
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    place += len(rest)
                place += len(rest)
                yield _fault(unit, f"byte {begun}", f"a line of more than {LONGEST_LINE} bytes")
            elif line.strip():
                yield _of_line(unit, begun, line)


def _of_line(unit: Unit, place: int, line: bytes) -> Log | Fault:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _fault(unit, f"byte {place}", f"is not JSON: {getattr(error, 'msg', None) or type(error).__name__}")
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        return _fault(unit, f"byte {place}", "is no object with a `text` that is text")
    return Log(unit.name, _named(data.get("id"), unit, place), _moment(data.get("time")), data["text"])


def _rows(unit: Unit, system: Any, _: Excerpt) -> Iterator[Log | Fault]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as closing:
        file = pq.ParquetFile(closing.enter_context(system.open(unit.path, "rb")))
        names = [name for name in ("id", "text", "time") if name in file.schema_arrow.names]
        if "text" not in names:
            yield _fault(unit, "", "has no column `text`")
            return
        groups = range(file.num_row_groups)[unit.start : unit.end]
        row = sum(file.metadata.row_group(number).num_rows for number in range(unit.start))
        for batch in file.iter_batches(batch_size=_AT_ONCE, row_groups=list(groups), columns=names, use_threads=False):
            texts = batch.column("text").cast(pa.large_string()).to_pylist()
            empty = [None] * len(texts)
            ids = batch.column("id").to_pylist() if "id" in names else empty
            times = batch.column("time").to_pylist() if "time" in names else empty
            for name, text, time in zip(ids, texts, times, strict=True):
                if text is None:
                    yield _fault(unit, f"row {row}", "has no text")
                else:
                    yield Log(unit.name, _named(name, unit, row), _moment(time), text)
                row += 1


def _named(given: Any, unit: Unit, place: int) -> str:
    return f"{unit.name}:{place}" if given is None or given == "" else str(given)


def _moment(value: Any) -> datetime | None:
    """A time with its zone, UTC where none is given; None for what is none."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            value = datetime.fromtimestamp(value / 1000 if value >= _MILLISECONDS else value, UTC)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None
