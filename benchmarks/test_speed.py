"""`make bench`: the stages of a look-up, measured by pytest-benchmark. No limits are asserted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import synthetic
from kb.denoise import denoise
from kb.environment import from_paste
from kb.excerpt import excerpt
from kb.knowledge import KnowledgeBase
from kb.matcher import find
from kb.opening import open_base
from kb.parse import parse


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    opened = open_base()
    opened.warm()
    return opened


@pytest.fixture(scope="module")
def paste() -> str:
    return min(synthetic.pastes(), key=lambda text: abs(len(text) - 3_000))


def test_whole_match(benchmark: Any, base: KnowledgeBase, paste: str) -> None:
    assert benchmark(base.match, paste).matches


def test_denoise(benchmark: Any, paste: str) -> None:
    benchmark(denoise, paste)


def test_parse(benchmark: Any, paste: str) -> None:
    benchmark(parse, denoise(paste))


def test_find(benchmark: Any, base: KnowledgeBase, paste: str) -> None:
    benchmark(find, parse(denoise(paste)), base.index.candidates)


def test_environment(benchmark: Any, paste: str) -> None:
    lines = denoise(paste)
    benchmark(from_paste, lines, parse(lines).frames)


@pytest.mark.parametrize("count", [100, 1_000, 10_000])
def test_candidates_of_many(benchmark: Any, paste: str, count: int) -> None:
    made = synthetic.index(synthetic.patterns(count))
    made.automaton()
    benchmark(made.candidates, paste.lower())


def test_scan_of_ten_megabytes(benchmark: Any, base: KnowledgeBase) -> None:
    pieces = list(synthetic.log(10))
    benchmark.pedantic(excerpt, (pieces, base.index.scanner()), rounds=3)
