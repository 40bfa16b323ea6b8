"""Job logs made up for measuring: samples of the catalogue among healthy lines, unknown failures, quiet jobs.

Log number n is the same in every run, whatever comes before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

SAMPLES = Path(__file__).parent.parent / "entries"
START = 1_795_000_000
"""Seconds since 1970 of the first log."""
BETWEEN = 8.64
"""Seconds between two logs: ten thousand a day."""
TRACEBACK = 'Traceback (most recent call last):\n  File "/srv/job/main.py", line {line}, in step\n    run()\n'
QUIET, KNOWN = 0.4, 0.5
"""Shares of logs without a failure, and with one that an entry knows; in the others nobody knows it."""
HEALTHY = (
    "2026-11-22 13:{m:02d}:{s:02d},114 - INFO - trainer.py:112 - step {n}/100000 loss=2.{n} lr=1.00e-04 gpu=61.2GiB",
    "{m:3d}%|███▌      | {n}/100000 [00:{s:02d}<1:{m:02d}:07,  4.{s:02d}it/s]",
    "[rank{r}]: I1122 13:{m:02d}:{s:02d}.482110 {n} ProcessGroupNCCL.cpp:1102] heartbeat {n}",
    "saved checkpoint-{n} to /mnt/runs/{n}/checkpoint-{n}",
)
UNKNOWN = (
    "fancytrain.errors.ShardLayoutError: shard {n} of /mnt/data/run-{n}/part.bin has {s} rows, expected {m}",
    "fancytrain.errors.LedgerError: ledger entry 0x{n:012x} was closed at step {n}",
    "RuntimeError: curriculum stage {s} has no weight for domain group {m}",
    "corpuslib.index.StaleIndexError: index {n}-{s}-{m} is older than its {n} documents",
    "AssertionError: bucket {n} overlaps bucket {s}",
)


@dataclass(frozen=True)
class Made:
    """One log and what is right about it."""

    id: str
    text: str
    time: float
    entry: str | None
    """The entry of its sample; None if it has none."""
    kind: int | None
    """Which unknown failure it has."""

    def row(self) -> dict[str, Any]:
        """As a line of JSON, or a row of Parquet."""
        return {"id": self.id, "text": self.text, "time": self.time}


@cache
def samples() -> tuple[tuple[str, str], ...]:
    """Entry and text of every sample that its entry must win."""
    found = sorted(path for path in SAMPLES.glob("*/*/samples/*.txt") if not path.name.startswith("not-"))
    return tuple((f"{path.parts[-4]}/{path.parts[-3]}", path.read_text(encoding="utf-8")) for path in found)


def made(number: int) -> Made:
    """Log number `number`."""
    random = Random(number)
    healthy = [_healthy(random) for _ in range(random.randrange(5, 60))]
    draw = random.random()
    entry = kind = None
    failure = ""
    if draw >= QUIET + KNOWN:
        kind = random.randrange(len(UNKNOWN))
        said = UNKNOWN[kind].format(n=random.randrange(1, 10**6), s=random.randrange(60), m=random.randrange(60))
        line = random.randrange(900)
        failure = (
            f'Traceback (most recent call last):\n  File "/srv/job/main.py", line {line}, in step\n    run()\n{said}'
        )
    elif draw >= QUIET:
        entry, failure = random.choice(samples())
    text = "\n".join([*healthy, failure]) + "\n"
    return Made(f"job-{number:08}", text, START + BETWEEN * number, entry, kind)


def many(count: int, start: int = 0) -> Iterator[Made]:
    """Logs one after the other."""
    return (made(number) for number in range(start, start + count))


def _healthy(random: Random) -> str:
    n, r, m, s = random.randrange(10**5), random.randrange(8), random.randrange(60), random.randrange(60)
    return random.choice(HEALTHY).format(n=n, r=r, m=m, s=s)
