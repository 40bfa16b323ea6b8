"""Signatures, texts and logs made up for measuring. Everything is the same in every run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from kb.index import Index
from kb.index_tables import SQL
from kb.layers import INDEX_SCHEMA
from kb.literals import required_literals
from kb.prefilter import rarest_grams

SAMPLES = Path(__file__).parent.parent / "entries"
_SYLLABLES = re.findall("..", "bacodifugahekilomunepaquirasetovuwaxiyozestclprgnck")
LINE = "2026-11-22 13:26:21,114 - INFO - trainer.py:112 - step {step}/100000 loss=2.3456 lr=1.00e-04 gpu_mem=61.2GiB\n"


def patterns(count: int) -> list[str]:
    """Patterns as the policy asks for: two rare words, a bounded gap, volatile parts generalised."""
    random = Random(7)
    words = ["".join(random.choices(_SYLLABLES, k=random.randint(3, 5))) for _ in range(max(200, count // 3))]
    found = []
    for number in range(count):
        first, second, third = random.choices(words, k=3)
        found.append(rf"{first} {second}_{number:x} expected .{{0,80}}but got \d{{1,9}} in {third}")
    return found


def index(regexes: Sequence[str]) -> Index:
    """An index of patterns, in memory. It has no records: it finds, and does not answer."""
    import sqlite3

    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(SQL)
    connection.execute("insert into meta values ('schema_version', ?)", (str(INDEX_SCHEMA),))
    wanted = [(number, regex, required_literals(regex)) for number, regex in enumerate(regexes, start=1)]
    connection.executemany(
        "insert into signatures values (?, ?, 0, ?, ?, '[\"x\"]', 're2', '[]', '[]', 'error', '[]', 0)",
        [(number, f"made-up/{number:06}", regex, regex) for number, regex, _ in wanted],
    )
    gram = rarest_grams(text for _, _, texts in wanted for text in texts)
    connection.executemany(
        "insert into literals values (?, ?, ?)",
        [(gram[text], text, number) for number, _, texts in wanted for text in texts],
    )
    connection.execute("analyze")
    return Index(connection)


def pastes(shortest: int = 1_800, longest: int = 4_500) -> list[str]:
    """Samples of the catalogue of about 3 KB."""
    texts = (file.read_text("utf-8") for file in sorted(SAMPLES.glob("*/*/samples/*.txt")))
    return [text for text in texts if shortest < len(text) < longest]


def log(megabytes: float, failure: str = "") -> Iterator[str]:
    """A healthy training log in pieces of 2,000 lines, with one failure in its middle."""
    written, step = 0, 0
    while written < megabytes * 1e6:
        piece = "".join(LINE.format(step=number) for number in range(step, step + 2_000))
        if failure and written + len(piece) > megabytes * 5e5:
            piece, failure = piece + failure + "\n", ""
        step += 2_000
        written += len(piece)
        yield piece
