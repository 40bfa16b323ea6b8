"""What varies becomes a class, everything else stays; the pattern is always one that the matcher takes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.generalize import generalize
from kb.patterns import compile_pattern, fold, policy_violations

PAIRS = [
    ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB", "CUDA out of memory. Tried to allocate 512 MiB. GPU 3 has 23.65 GiB"),
    ("tensor of shape [2, 3] on cuda:0 at 0x7f00deadbeef", "tensor of shape [16, 4, 4] on cuda:7 at 0x55aa1234"),
    ("cannot open /data/run7/model.bin: no such file", "cannot open /mnt/x/y/weights-0001.bin: no such file"),
    ("expected torch.float16 but got torch.bfloat16", "expected torch.float32 but got struct c10::BFloat16"),
    ("connect to 10.0.0.7:29500 failed after 1800 s", "connect to 192.168.1.15:1234 failed after 5 s"),
    ("needs torch 2.1.0 or newer, found 1.13.1+cu117", "needs torch 2.6 or newer, found 2.0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "other"), PAIRS)
def test_another_run_with_other_figures_is_matched(seen: str, other: str) -> None:
    pattern = compile_pattern(generalize(seen).regex)
    assert pattern.search(seen)
    assert pattern.search(other)
    assert not policy_violations(generalize(seen).regex)


def test_names_stay_since_they_are_the_error() -> None:
    regex = generalize("__init__() got an unexpected keyword argument 'evaluation_strategy'").regex
    assert not compile_pattern(regex).search("__init__() got an unexpected keyword argument 'tokenizer'")


def test_what_was_generalised_is_told() -> None:
    changes = generalize("rank 3 saw 2.5 GiB").changes
    assert [(change.found, change.what) for change in changes] == [("3", "number"), ("2.5 GiB", "size")]


@given(st.text(max_size=400))
def test_any_message_gives_a_pattern_that_matches_it(message: str) -> None:
    made = generalize(message)
    subject = fold(message.strip().split("\n", 1)[0])
    try:
        subject.encode()
    except UnicodeEncodeError:
        return  # half of a surrogate pair: refused everywhere
    assert compile_pattern(made.regex).search(subject)
    assert re.compile(made.regex, re.ASCII).search(subject)
