"""What a person reads: the answer first, states that look different, nothing hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kb.build import in_memory
from kb.catalog import load
from kb.knowledge import KnowledgeBase
from kb.render import markdown, structured, text
from kb.render.words import STATES, TIERS
from tests.conftest import entry

PASTE = "[rank2]: RuntimeError: the frobnicator of pytorch/some-error jammed at step 7\n"


@pytest.fixture
def base(catalogue: Callable[..., Path]) -> KnowledgeBase:
    wrapper = entry(
        "distributed/wrapper",
        kind="wrapper",
        regex="the launcher gave up on it",
        signature="the launcher gave up on it",
        exceptions=[],
    )
    return in_memory(load([catalogue(entry(), wrapper)]))


def shown(base: KnowledgeBase, paste: str, **more: Any) -> str:
    return text.result(base.match(paste), width=80, color=False, **more)


def test_the_answer_comes_first(base: KnowledgeBase) -> None:
    lines = shown(base, PASTE).splitlines()
    assert lines[0].startswith("pytorch/some-error")
    assert "rank2" in "".join(lines[:4])
    order = [
        next(n for n, line in enumerate(lines) if line.startswith(label))
        for label in ("Why", "Do first", "Recover", "More")
    ]
    assert order == sorted(order)


def test_a_state_without_a_rate_says_which_and_why(base: KnowledgeBase) -> None:
    assert "not written yet" in shown(base, PASTE)
    assert " of " not in shown(base, PASTE).split("Do first")[1].split("Recover")[0]


def test_states_and_tiers_look_different_without_colour() -> None:
    assert len({mark + name for mark, name, _ in TIERS.values()}) == len(TIERS)
    marks = {state: mark for state, (mark, _) in STATES.items()}
    assert len({marks[state] for state in ("measured", "unmeasured", "stale", "refuted", "unverifiable")}) == 5


def test_a_wrapper_alone_names_the_failure_behind_it(base: KnowledgeBase) -> None:
    answer = base.match("KeyError: 'rows'\n\nthe launcher gave up on it\n")
    page = text.result(answer, width=80, color=False)
    assert page.startswith("distributed/wrapper")
    assert "KeyError: 'rows'" in page
    assert "KeyError: 'rows'" in markdown.result(answer)
    assert answer.unknown_root == 0


def test_a_consequence_is_shown_after_the_root(base: KnowledgeBase) -> None:
    page = shown(base, PASTE + "\nthe launcher gave up on it\n")
    assert page.index("pytorch/some-error") < page.index("distributed/wrapper")
    assert "reports that something else failed" in page


def test_markdown_has_the_same_answer(base: KnowledgeBase) -> None:
    page = markdown.result(base.match(PASTE))
    assert page.startswith("### pytorch/some")
    assert "Oil it\\." in page or "Oil it." in page
    assert markdown.escape("<b>@x</b> #1 | a\nb") == "\\<b\\>\\@x\\</b\\> \\#1 \\| a b"
    assert markdown.code("a `b` c") == "``a `b` c``"


def test_json_escapes_what_a_terminal_would_act_on(base: KnowledgeBase) -> None:
    answer = base.match("ValueError: \x9b31m \u202e 中文\n")
    out = structured.dumps(answer)
    assert not {"\x9b", "\u202e"} & set(out)
    assert "中文" in out
    assert structured.dumps(["\ud800"]) == '[\n  "\\ud800"\n]\n'
    assert dataclasses.is_dataclass(answer)


def test_where_a_message_stands_is_said_in_releases_looked_at() -> None:
    found = {
        "package": "torch",
        "literal": "same dtype ",
        "stands": ["2.1.0", "2.8.0"],
        "lacks": ["2.0.1"],
        "unknown": [],
    }
    nowhere = {"package": "peft", "literal": "nobody says this", "stands": [], "lacks": ["0.1", "0.2"], "unknown": []}
    assert text.provenance_lines([found, nowhere, {**nowhere, "package": "trl"}]) == [
        "torch: “same dtype” stands in 2 of 3 releases looked at, 2.1.0 to 2.8.0",
        "“nobody says this” stands in none of 4 releases of peft, trl",
    ]
