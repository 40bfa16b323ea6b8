"""The prefilter never changes an answer, and is found in either of its two ways."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb.denoise import denoise
from kb.index import Index
from kb.index_build import build_memory
from kb.literals import fold_case
from kb.matcher import find
from kb.opening import open_base
from kb.parse import parse
from kb.prefilter import GRAM, Automaton, grams, rarest_grams

SAMPLES = sorted((Path(__file__).parent.parent / "entries").glob("*/*/samples/*.txt"))


@cache
def fragments() -> tuple[str, ...]:
    """Lines of the samples, and pieces of them."""
    random = Random(3)
    lines = [line for file in SAMPLES for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    pieces = [line[random.randrange(len(line)) :] for line in random.sample(lines, min(300, len(lines)))]
    return tuple(dict.fromkeys([*lines, *pieces]))


@pytest.fixture(scope="module")
def index() -> Index:
    return open_base().index


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_with_and_without_prefilter_the_answer_is_the_same(index: Index, random: Random, count: int) -> None:
    text = random.choice(["\n", "\n", " "]).join(random.choices(fragments(), k=count))
    parsed = parse(denoise(text))
    every = index.signatures()
    assert find(parsed, index.candidates) == find(parsed, lambda _: every)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_grams_and_automaton_give_the_same_candidates(index: Index, random: Random, count: int) -> None:
    folded = fold_case(" ".join("\n".join(random.choices(fragments(), k=count)).split()))
    expected = [one for one in index.signatures() if any(literal in folded for literal in one.literals)]
    by_automaton = index.automaton().numbers(folded)
    assert index._by_grams(folded) == expected
    assert index._signatures_of(list(by_automaton)) == expected


def test_a_process_that_asks_much_ends_up_with_the_automaton_and_the_same_candidates(index: Index) -> None:
    folded = fold_case(" ".join(SAMPLES[0].read_text("utf-8").split()))
    first = index.candidates(folded)
    index.candidates("x" * 10_000_000)
    assert index.candidates(folded) == first
    assert first


@given(st.lists(st.text(min_size=1, max_size=8), max_size=20), st.text(max_size=60))
def test_the_automaton_finds_every_literal_that_stands_in_the_text(literals: list[str], text: str) -> None:
    known = {fold_case(literal): [number] for number, literal in enumerate(literals)}
    folded = fold_case(text + "".join(literals[::2]))
    found = Automaton(known).numbers(folded)
    assert found == {numbers[0] for literal, numbers in known.items() if literal in folded}


@given(st.lists(st.text(max_size=12), max_size=20))
def test_every_literal_is_looked_up_by_a_gram_of_its_own(literals: list[str]) -> None:
    for literal, gram in rarest_grams(literals).items():
        assert gram in grams(literal) if len(literal) >= GRAM else gram == ""


def test_an_empty_catalogue_has_no_candidates() -> None:
    with build_memory([]) as empty:
        assert empty.candidates("anything") == []
        assert empty.automaton().numbers("anything") == set()


@pytest.mark.parametrize(
    "text",
    [
        "\0" * 50_000,
        "\udcff" * 1_000 + "RuntimeError: \ud800 CUDA out of memory. Tried to allocate 2.00 GiB",
        "[" * 20_000 + "^" * 20_000,
        "\x1b[" * 20_000,
        "\n".join("E " * 500 for _ in range(20)),
        "ValueError: x\n\nDuring handling of the above exception, another exception occurred:\n\n" * 10_000,
        "Traceback (most recent call last):\n" * 10_000,
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB " + "y" * 1_500_000,
        "y" * 1_500_000 + "\nRuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
    ids=["NULs", "surrogates", "brackets", "escapes", "words", "chains", "headers", "long line", "behind a long line"],
)
def test_hostile_text_is_answered(text: str) -> None:
    answer = open_base().match(text)
    assert answer.abstained != ("out of memory" in text)
