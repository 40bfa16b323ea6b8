"""Of a large log what matters is kept, with its true place, however the stream was cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb import denoise as denoising
from kb import excerpt as module
from kb.denoise import denoise
from kb.excerpt import AFTER, BEFORE, HEAD, TAIL, Row, Scanner, excerpt, lines
from kb.knowledge import LARGE
from kb.literals import encodable
from kb.opening import open_base

SAMPLES = sorted((Path(__file__).parent.parent / "entries").glob("*/*/samples/[!n]*.txt"))
SCANNER = Scanner(["cuda out of memory", "watchdog caught collective", "显存不足"])
ERROR = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
HEALTHY = "2026-11-22 13:26:21,114 - INFO - trainer.py:112 - step {} loss=2.3456 lr=1.00e-04"

FRAGMENTS = st.sampled_from(
    ["\n", "\n\n", "\r\n", "\r", " ", "x", "€", "\x1b[31m", "&lt;", "[0m", ERROR, "CUDA out", "of  memory", "\udcff", "\0",
     "Traceback (most recent call last):\n", "\n" + HEALTHY, "显存", "不足", "y" * 150, "a\r" * 80, "z\n" * 40]
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS, max_size=40).map("".join)


def healthy(count: int) -> str:
    return "".join(HEALTHY.format(step) + "\n" for step in range(count))


def cut(text: str, random: Random, most: int) -> list[str]:
    chunks = []
    while text:
        size = random.randint(1, most)
        chunks.append(text[:size])
        text = text[size:]
    return chunks


@contextmanager
def small(**sizes: object) -> Iterator[None]:
    """Segments of a hundred code points, so that short texts have all that long ones have."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"SEGMENT": 100, "OVERLAP": 30}.items():
            patch.setattr(module, name, size)
            patch.setattr(denoising, name, size)
        for name, given_size in sizes.items():
            patch.setattr(module, name, given_size)
        yield


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False), st.sampled_from([1, 40, 300]))
def test_how_the_stream_is_cut_changes_nothing(text: str, random: Random, most: int) -> None:
    few = {"HEAD": 2, "TAIL": 4, "BEFORE": 3, "AFTER": 2, "WIDE": 2, "MOST": 4, "NEAR": (1, 1), "_ROOM_BEFORE": 250}
    with small(_BLOCK=random.choice([1, 100, 1_000]), **few):
        in_small_blocks = excerpt(cut(text, random, most), SCANNER)
    with small(**few):
        assert in_small_blocks == excerpt([text], SCANNER)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from([50, 100_000]))
def test_of_a_log_that_is_kept_whole_every_line_is_as_without(text: str, block: int) -> None:
    with small(_BLOCK=block, HEAD=1_000_000):
        found = [line for line in lines(excerpt([text], SCANNER)) if line.text]
        assert found == [line for line in denoise(encodable(text)) if line.text]


@pytest.mark.parametrize(
    "disguised",
    [
        ERROR,
        "[rank3]:\x1b[31mRuntimeError\x1b[0m: CUDA\x1b[1m out\x1b[0m of memory",
        "^[[31mRuntimeError: CUDA^[[0m out of memory",
        "[31mRuntimeError: CUDA[0m out of memory",
        "cuda  OUT\tof memory",
        "CUDA\nout of memory",
        "█ CUDA\u3000out of memory",
        "CUDA\0 out of memory",
        "显存不足",
    ],
)
def test_a_literal_in_the_middle_is_found_in_any_dress(disguised: str) -> None:
    log = healthy(20_000) + disguised + "\n" + healthy(20_000)
    rows = excerpt([log], SCANNER)
    last = disguised.split("\n")[-1]
    assert Row(20_001 + disguised.count("\n"), 0, last) in rows
    assert len(rows) <= HEAD + BEFORE + 1 + AFTER + TAIL + 3


def test_head_tail_and_surroundings_are_kept_and_gaps_are_empty_lines() -> None:
    log = healthy(10_000) + ERROR + "\n" + healthy(10_000)
    rows = excerpt([log], SCANNER)
    kept = [row.number for row in rows if row.text]
    expected = [
        *range(1, HEAD + 1),
        *range(10_001 - BEFORE, 10_001 + AFTER + 1),
        *range(20_002 - TAIL, 20_002),
    ]
    assert kept == expected
    assert [row.number for row in rows if not row.text] == [HEAD + 1, 10_001 + AFTER + 1]
    assert [row.number for row in rows] == sorted(row.number for row in rows)


def test_an_error_that_repeats_for_ever_keeps_its_first_places_and_the_tail() -> None:
    log = healthy(5_000) + (ERROR + "\n" + HEALTHY + "\n") * 60_000 + "ValueError: the last\n"
    rows = excerpt([log], SCANNER)
    assert sum(len(row.text) for row in rows) < 3_000_000
    assert Row(5_001, 0, ERROR) in rows
    assert rows[-1] == Row(125_001, 0, "ValueError: the last")


def test_other_errors_are_still_found_behind_one_that_repeats() -> None:
    log = healthy(5_000) + (ERROR + "\n") * 60_000 + healthy(5_000) + "Watchdog caught collective\n" + healthy(5_000)
    assert any(row.text == "Watchdog caught collective" for row in excerpt([log], SCANNER))


def test_one_endless_line_is_read_in_segments_with_their_columns() -> None:
    log = "x " * 2_000_000 + ERROR + " y" * 2_000_000
    found = [line for line in lines(excerpt(cut(log, Random(1), 500_000), SCANNER)) if ERROR in line.text]
    assert found
    for line in found:
        column = line.text.index(ERROR)
        assert line.number == 1
        assert log[line.raw_column(column) :].startswith(ERROR)
    assert sum(len(line.text) for line in lines(excerpt([log], SCANNER))) < 3_000_000


@pytest.mark.parametrize("seed", range(12))
def test_a_composed_log_gets_the_answer_it_gets_unabridged(seed: int) -> None:
    random = Random(seed)
    base = open_base()
    chosen = random.sample(SAMPLES, random.randint(1, 3))
    pastes = [file.read_text("utf-8") for file in chosen]
    log = healthy(2_500) + "".join(f"{paste}\n\n{healthy(random.randint(2_100, 2_200))}" for paste in pastes)
    shortened = base.match(base.excerpt(cut(log, random, 400_000)))
    unabridged = base.match(log)
    assert len(log) < LARGE, "or it would be shortened twice"
    assert shortened.matches == unabridged.matches
    assert shortened.query.incidents == unabridged.query.incidents


@pytest.mark.parametrize("through_a_pipe", [False, True])
def test_the_command_reads_a_large_log_and_names_the_true_line(tmp_path: Path, through_a_pipe: bool) -> None:
    file = tmp_path / "train.log"
    file.write_text(healthy(20_000) + ERROR + "\n" + healthy(20_000), encoding="utf-8")
    command = [sys.executable, "-m", "kb", "match", "--format", "json", "-" if through_a_pipe else str(file)]
    with file.open("rb") as stream:
        done = subprocess.run(command, stdin=stream, capture_output=True, check=True)
    first = json.loads(done.stdout)["matches"][0]
    assert (first["entry_id"], first["line"]) == ("cuda/out-of-memory", 20_001)
