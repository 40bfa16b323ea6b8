"""The literal gate must never hold back a match, whatever the pattern and whatever the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

import pytest
import regex as regex_module
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kb import literals
from kb.literals import fold_case, required_clauses, required_literals
from kb.patterns import compile_pattern

_LETTERS = "aAbBiIkKsSzZ 0_-éß错\u017f\u212a\u0130\u0131"
_CASES = 50
_CASELESS = {"i": "iI\u0130\u0131", "s": "sS\u017f", "k": "kK\u212a"}

Piece = tuple[str, str]
"""A pattern and a text it is meant to match."""


def _piece(random: Random, ignore_case: bool, depth: int = 3) -> Piece:
    makers = [_literal, _class] if depth == 0 else [_literal, _literal, _class, _empty, _repeated, _either, _row]
    return random.choice(makers)(random, ignore_case, depth - 1)


def _literal(random: Random, ignore_case: bool, _: int) -> Piece:
    text = "".join(random.choices(_LETTERS, k=random.randint(1, 5)))
    return re.escape(text), "".join(_shown(random, character, ignore_case) for character in text)


def _shown(random: Random, character: str, ignore_case: bool) -> str:
    shapes = _CASELESS.get(character.lower(), character + character.swapcase()[:1])
    return random.choice(shapes) if ignore_case else character


def _class(random: Random, ignore_case: bool, _: int) -> Piece:
    members = random.sample(_LETTERS.replace("-", ""), random.randint(1, 12))
    return random.choice(
        [
            (f"[{''.join(members)}]", _shown(random, random.choice(members), ignore_case)),
            (f"[^{''.join(members)}]", "x"),
            ("[a-d]", random.choice("abcd")),
            (".", random.choice("ab-")),
            (r"\w", "b"),
        ]
    )


def _empty(random: Random, *_: object) -> Piece:
    return random.choice([(r"\b", ""), ("(?:)", "")])


def _repeated(random: Random, ignore_case: bool, depth: int) -> Piece:
    counts = [("?", 0, 1), ("{0,3}", 0, 3), ("{1,2}", 1, 2), ("{2}", 2, 2)]
    if depth == 0:
        # Unbounded repetitions inside each other would keep a backtracking engine busy for ever.
        counts += [("*", 0, 3), ("+", 1, 3), ("{2,}", 2, 4)]
    pattern, text = _piece(random, ignore_case, depth)
    count, low, high = random.choice(counts)
    return f"(?:{pattern}){count}{random.choice(['', '?'])}", text * random.randint(low, high)


def _either(random: Random, ignore_case: bool, depth: int) -> Piece:
    branches = [_piece(random, ignore_case, depth) for _ in range(random.randint(2, 3))]
    return f"(?:{'|'.join(pattern for pattern, _ in branches)})", random.choice(branches)[1]


def _row(random: Random, ignore_case: bool, depth: int) -> Piece:
    parts = [_piece(random, ignore_case, depth) for _ in range(random.randint(1, 4))]
    pattern = "".join(pattern for pattern, _ in parts)
    return random.choice([f"({pattern})", f"(?:{pattern})", pattern]), "".join(text for _, text in parts)


def _cases(random: Random) -> Iterator[Piece]:
    for _ in range(_CASES):
        ignore_case = random.random() < 0.5
        pattern, text = _row(random, ignore_case, 3)
        before, after = ("".join(random.choices("ab Xk\u017fI", k=random.randint(0, 3))) for _ in range(2))
        yield ("(?i)" if ignore_case else "") + pattern, before + text + after


def _assert_let_through(pattern: str, text: str) -> None:
    folded = fold_case(text)
    for clause in (*required_clauses(pattern), required_literals(pattern)):
        assert not clause or any(literal in folded for literal in clause), (pattern, text, clause)


_SETTINGS = settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])


@_SETTINGS
@given(st.randoms(use_true_random=True))
def test_no_match_of_any_engine_is_held_back(random: Random) -> None:
    matches = 0
    for pattern, text in _cases(random):
        engines = (compile_pattern(pattern), re.compile(pattern), regex_module.compile(pattern))
        if any(engine.search(text) for engine in engines):
            matches += 1
            _assert_let_through(pattern, text)
    assert matches > _CASES // 2, "the texts must mostly match, or nothing is tested"


def test_the_property_needs_the_special_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the four letters that engines equate with ASCII ones the same property must fail."""
    monkeypatch.setattr(literals, "_SPECIAL_FOLDS", {})
    with pytest.raises(AssertionError):
        test_no_match_of_any_engine_is_held_back()


@given(st.text())
def test_folding_keeps_positions_and_is_stable(text: str) -> None:
    folded = fold_case(text)
    assert len(folded) == len(text)
    assert fold_case(folded) == folded


def test_folding_survives_halves_of_surrogate_pairs() -> None:
    assert fold_case("A\udcffB") == "a\udcffb"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"Attempting to unscale FP16 gradients\.", {"attempting to unscale fp16 gradients."}),
        (r"(?i)CUDA out of memory", {"cuda out of memory"}),
        (r"size (\d+) of tensor", {" of tensor"}),
        (r"(?:Half|BFloat16) expected", {"half expected", "bfloat16 expected"}),
        (r"[Mm]ismatch(?:es)? found", {"mismatch found", "mismatches found"}),
        (r"(?:no kernel image){1,3}", {"no kernel image"}),
        (r"(?:ab){2}c", {"ababc"}),
        (r"foo|.{0,5}", set()),
        (r"\w+", set()),
        (r"(?:foo)?", set()),
        (r"(?i)Größe", {"gr"}),
        (r"x(?:a|b|.)yzzy", {"yzzy"}),
    ],
)
def test_what_is_required(pattern: str, expected: set[str]) -> None:
    assert set(required_literals(pattern)) == expected


def test_the_rarest_clause_is_chosen() -> None:
    pattern = r"RuntimeError: .{0,80}cudnn_frontend.{0,80} the"
    assert required_literals(pattern) == ("cudnn_frontend",)


@pytest.mark.parametrize("pattern", ["(", "[[:alpha:]]+foo", "a{,3}foobar", "(?:foobar){e<=1}", "(" * 5000, "a(?i)b"])
def test_nothing_is_required_where_python_and_the_engine_may_disagree(pattern: str) -> None:
    assert required_literals(pattern) == ()


def test_lookaround_of_imported_patterns_requires_nothing_by_itself() -> None:
    assert required_literals(r"(?<=alpha)(?=beta)gamma(?!delta)") == ("gamma",)


def test_a_long_pattern_stays_quick_to_read() -> None:
    assert required_literals("(?:abcdefgh){900}") == ("abcdefgh",)
    assert required_literals("[ab]" * 400)
