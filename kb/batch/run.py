"""A run: plan the parts, have done what is not done yet, sum up. Killed at any moment, it goes on where it was."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import kb
from kb.batch import engine, totals
from kb.batch.clusters import Clusters
from kb.batch.dealing import Dealing, Said
from kb.batch.parts import DEFAULT_SIZE, parts
from kb.batch.sources import absolute, find, opened
from kb.batch.store import Store
from kb.batch.work import Job, catalogue
from kb.errors import KbError, UsageError
from kb.opening import open_base
from kb.redact import redact

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """What `kb batch` was asked."""

    source: str
    out: str
    workers: int = 0
    """0 is one for each core."""
    address: str | None = None
    size: int = DEFAULT_SIZE
    """About how many logs a part has."""
    entries: tuple[str, ...] = ()
    engine: engine.Engine = "auto"
    retry: bool = False
    """Whether parts that had faults are done again."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    parts: int
    logs: int
    """Of this run and earlier ones."""


@dataclass(frozen=True)
class Summary:
    """What came of a run: `summary.json`."""

    schema_version: int
    kb_version: str
    source: str
    catalogue: str
    engine: str
    workers: int
    finished: str
    seconds: float
    parts: int
    done_before: int
    """Parts that an earlier run had done."""
    lost: tuple[tuple[str, str], ...]
    """Parts that are not done, and why. Asked again, `kb batch` tries them again."""
    logs: int
    known: int
    """Logs of which an entry knows what began it, or at least what followed."""
    unknown: int
    """Logs whose first failure no entry knows."""
    silent: int
    """Logs in which no failure was seen."""
    rows: int
    kinds: int
    """Kinds of unknown failures."""
    kinds_dropped: int
    """Logs of kinds too rare to be kept."""
    faults: int
    """Files, lines and rows that could not be read, and parts that are not done."""


def run(options: Options, watch: Callable[[Progress], None] = lambda _: None) -> Summary:
    """Match everything. Raises UsageError for an input, output or engine that makes no sense."""
    begun = time.monotonic()
    chosen = engine.chosen(options.engine, options.address)
    workers = options.workers or engine.cores()
    digest = catalogue(open_base([Path(folder) for folder in options.entries]))
    source = absolute(options.source)
    store = Store(absolute(options.out))
    _check_apart(source, store)
    found = list(parts(find(source), opened(source)[0], digest, options.size))
    if not found:
        raise UsageError(f"{options.source}: no files", "a folder with logs; names with . or _ first are left out")
    store.prepare(".")
    with store.alone():
        _claim(store, source)
        store.prepare("logs", "parts")
        store.tidy("logs", "parts")
        keys = [part.key for part in found]
        done = _done(store, keys, retry=options.retry)
        tasks = {part.key: f"{part.key} {part.payload}" for part in found if part.key not in done}
        del found
        for key in tasks:  # what is done again is not done until it is
            store.remove(f"parts/{key}.json")
        job = Job(source, store.location, options.entries, digest)
        deal = partial(engine.deal, chosen, job, address=options.address)
        logs = sum(done.values())
        watch(Progress(len(done), len(keys), logs))
        lost = []
        for number, said in enumerate(Dealing(deal, store, tasks, workers), start=len(done) + 1):
            logs += said.logs
            lost += [said] if said.failed else []
            watch(Progress(number, len(keys), logs))
        figures = _summed_up(store, keys, lost)
        summary = Summary(
            schema_version=1,
            kb_version=kb.__version__,
            source=redact(source),
            catalogue=digest,
            engine=chosen,
            workers=workers,
            finished=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=round(time.monotonic() - begun, 1),
            parts=len(keys),
            done_before=len(done),
            lost=tuple((said.key, said.failed or "") for said in lost),
            **figures,
        )
        store.write("summary.json", json.dumps(asdict(summary), indent=2).encode())
        _clear(store, keys)
        return summary


def _check_apart(source: str, store: Store) -> None:
    system, root = opened(source)
    # An earlier run's answers must not be read as logs.
    if type(system) is type(store.system) and store.root.rstrip("/").startswith(root.rstrip("/") + "/"):
        raise UsageError(f"{store.location}: lies in what is read", "name a folder outside")


def _claim(store: Store, source: str) -> None:
    """Say what the results are of. Raises UsageError if they are of something else."""
    wanted = {"format": 1, "source": redact(source)}  # an address may hold a password
    before = store.read("batch.json")
    if before is None:
        if store.names("logs"):
            raise UsageError(f"{store.location}: holds files that are not of a batch", "name a new folder")
        store.write("batch.json", json.dumps(wanted).encode())
    elif json.loads(before) != wanted:
        held = json.loads(before).get("source")
        raise UsageError(f"{store.location}: holds the results of {held}", "name another folder, or remove this one")


def _done(store: Store, keys: Sequence[str], *, retry: bool) -> dict[str, int]:
    """Parts that need not be done again, and how many logs each has."""
    there, logs = store.names("parts"), store.names("logs")
    found: dict[str, int] = {}
    for key in keys:
        if f"{key}.json" in there and f"{key}.parquet" in logs:
            record = _record(store, key)
            if record is not None and not (retry and record["faults"]):
                found[key] = record["logs"]
    return found


def _record(store: Store, key: str) -> Record | None:
    data = store.read(f"parts/{key}.json")
    try:
        record: Record = json.loads(data or b"")
    except ValueError:
        return None
    return record


def _summed_up(store: Store, keys: Sequence[str], lost: Sequence[Said]) -> dict[str, Any]:
    """Write what all parts say together. Returns the figures of the summary."""
    counts: Counter[tuple[str | None, str | None, str | None, bool]] = Counter()
    clusters = Clusters()
    faults = [["", f"part {said.key}", f"not done: {said.failed}"] for said in lost]
    rows = 0
    given_up = {said.key for said in lost}
    for key in keys:
        if key in given_up:
            continue
        record = _record(store, key)
        if record is None:
            raise KbError(f"{store.path('parts')}: a result has vanished", "all workers must write to the same storage")
        rows += record["rows"]
        clusters.add(record["clusters"])
        faults += record["faults"]
        for *group, number in record["counts"]:
            counts[tuple(group)] += number
    totals.write_counts(store, counts)
    totals.write_unknown(store, clusters.rows())
    totals.write_faults(store, faults)
    unknown = sum(number for (_, _, _, stranger), number in counts.items() if stranger)
    known = sum(number for (_, entry, _, _), number in counts.items() if entry)
    return {
        "logs": sum(counts.values()),
        "known": known,
        "unknown": unknown,
        "silent": sum(counts.values()) - known - unknown,
        "rows": rows,
        "kinds": len(clusters.rows()),
        "kinds_dropped": clusters.dropped,
        "faults": len(faults),
    }


def _clear(store: Store, keys: Iterable[str]) -> None:
    """Remove results of parts that the input, or the entries, no longer have, and what was not finished."""
    store.tidy("logs", "parts")
    kept = set(keys)
    for folder in ("logs", "parts"):
        for name in store.names(folder):
            if name.partition(".")[0] not in kept:
                store.remove(f"{folder}/{name}")
