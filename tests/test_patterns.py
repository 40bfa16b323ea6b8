"""Compiling under RE2, folding, and the regex policy."""

from __future__ import annotations

import pytest

from kb.errors import PatternError
from kb.patterns import compile_pattern, fold, policy_violations


def test_spans_count_code_points() -> None:
    assert compile_pattern("€x").search("aé€x").span() == (2, 4)


def test_a_pattern_without_a_match_gives_none() -> None:
    assert compile_pattern("foo").search("bar") is None


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(", "a*+", "\udc80"])
def test_what_re2_refuses_is_an_error_with_a_remedy(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern(pattern)
    assert caught.value.remedy
    assert caught.value.exit_code == 2
    assert not caught.value.too_large


def test_a_resource_bomb_is_refused_for_its_size() -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern("(?:a{1000}){1000}")
    assert caught.value.too_large


def test_folding_leaves_one_line_with_single_spaces() -> None:
    assert fold(" a\t\n  b\u00a0c ") == "a b c"


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        (r"(?<=foo)bar", "regex-not-re2"),
        (r"(foo)bar\1", "regex-not-re2"),
        (r"(?:a{1000}){1000}", "regex-too-large"),
        (r"out of memory(?:.{0,900}x){1}(?:.{0,900}y){1}(?:.{0,900}z){1}", "regex-too-large"),
        (r"[[:digit:]]+ bytes left", "regex-not-portable"),
        (r"too many{,3} tensors", "regex-not-portable"),
        (r"device mismatch.*found", "regex-unbounded-gap"),
        (r"device mismatch.+?found", "regex-unbounded-gap"),
        (r"device mismatch[^,]*found", "regex-unbounded-gap"),
        (r"device mismatch(?:x|.)*found", "regex-unbounded-gap"),
        (r"device mismatch\D+found", "regex-unbounded-gap"),
        (r"device mismatch[\s\S]*found", "regex-unbounded-gap"),
        (r"\w+ \d+", "regex-no-literal"),
        (r"device|\d", "regex-no-literal"),
        (r"five \d+ four", "regex-no-literal"),
        (r"device  mismatch", "regex-unfolded-space"),
        (r"device\nmismatch", "regex-unfolded-space"),
    ],
)
def test_what_breaks_the_policy(pattern: str, code: str) -> None:
    found = {violation.code: violation for violation in policy_violations(pattern)}
    assert code in found
    assert found[code].message
    assert found[code].remedy


@pytest.mark.parametrize(
    "pattern",
    [
        r"expected (?:m1|mat1) and (?:m2|mat2) to have the same dtype, but got: (?:struct )?(?:c10::)?\w+ != \w+",
        r"CUDA out of memory\. Tried to allocate [\d.]+ [KMG]iB",
        r"device mismatch.{0,200}found",
        r"device mismatch \S+ found",
        r"device mismatch [^\s']+ found",
        r"(?i)watchdog caught collective operation timeout",
        "显存不足",
    ],
)
def test_what_keeps_the_policy(pattern: str) -> None:
    assert policy_violations(pattern) == []
