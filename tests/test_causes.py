"""A fix of another cause does not help: every answer says which causes a fix is for, and how to tell them apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kb.build import in_memory
from kb.catalog import load
from kb.knowledge import KnowledgeBase
from kb.models.result import Result
from kb.render import brief, compact, markdown, text
from kb.web.pages import Pages
from tests.conftest import entry

PASTE = "RuntimeError: the frobnicator of pytorch/some-error jammed at step 7\n"
CAUSES = [
    {"id": "rust", "summary": "It rusted. Rust comes from rain.", "detection": "`inspect()` says red", "sources": []},
    {"id": "dust", "summary": "Dust got in.", "detection": "", "sources": []},
]
RENDERED: dict[str, Callable[[KnowledgeBase, Result], str]] = {
    "text": lambda _, answer: text.result(answer, width=100, color=False),
    "markdown": lambda _, answer: markdown.result(answer),
    "brief": lambda _, answer: brief.block(answer, width=100, color=False),
    "compact text": lambda _, answer: compact.text(compact.answer(answer)),
    "compact": lambda _, answer: json.dumps(compact.answer(answer)),
    "page": lambda base, answer: Pages(base).answer(answer),
}


def answered(catalogue: Callable[..., Path], **fix: Any) -> tuple[KnowledgeBase, Result]:
    sound = entry()
    sound |= {"causes": CAUSES, "workarounds": [sound["workarounds"][0] | fix]}
    base = in_memory(load([catalogue(sound)]))
    return base, base.match(PASTE)


@pytest.mark.parametrize("name", RENDERED)
def test_an_answer_says_which_cause_a_fix_is_for(catalogue: Callable[..., Path], name: str) -> None:
    shown = RENDERED[name](*answered(catalogue, addresses=["rust"]))
    if name == "brief":
        assert "for: It rusted." in shown
        return
    assert "rust" in shown
    assert "says red" in shown
    assert "dust" not in shown or name in ("text", "markdown", "page")


@pytest.mark.parametrize("name", sorted(RENDERED.keys() - {"page"}))
def test_what_helps_with_every_cause_needs_no_choice(catalogue: Callable[..., Path], name: str) -> None:
    assert "rust" not in RENDERED[name](*answered(catalogue, addresses=["dust", "rust"])).lower()


def test_a_condition_stands_beside_its_fix(catalogue: Callable[..., Path]) -> None:
    base, answer = answered(catalogue, condition="Only while it is `cold`.")
    for name, render in RENDERED.items():
        shown = render(base, answer)
        assert "Only while it is" in shown, name


def test_code_in_an_entry_is_code_in_markdown_and_the_rest_is_text() -> None:
    assert markdown.prose("call `x_y()` on *all* <b>") == r"call `x_y()` on \*all\* \<b\>"
    assert markdown.prose("a `lone_one") == r"a \`lone\_one"
    assert markdown.prose("``") == ""
