"""Every stage's result is told as it was, and a missing answer has a first reason."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kb.build import in_memory
from kb.catalog import load
from kb.cli.app import app
from kb.errors import UnknownEntryError
from kb.explain import Explanation, Searched
from kb.knowledge import KnowledgeBase
from kb.render import explain as render
from tests.compose import composed, examples
from tests.conftest import PROJECT, entry

GENERAL = entry(
    "pytorch/dtype", signature="RuntimeError: the dtypes of a and b differ", regex="dtypes of a and b differ"
)
SPECIFIC = entry(
    "nemo/lora", signature=GENERAL["signature"], regex=GENERAL["regex"], frames=["nemo/.{0,40}lora"],
    supersedes=["pytorch/dtype"],
)  # fmt: skip
TIMEOUT = entry(
    "distributed/timeout", signature="collective timeout 12 on rank", regex=r"collective timeout \d{1,9} on rank",
    exceptions=[],
)  # fmt: skip

PLAIN = """\
[rank3]: Traceback (most recent call last):
[rank3]:   File "/home/ml/train.py", line 3, in step
[rank3]:     forward(x)
[rank3]: RuntimeError: the dtypes of a and b differ: float and half
[rank0]:[E612 07:55:40.118004231 ProcessGroupNCCL.cpp:632] collective timeout 600000 on rank 0
[rank1]:[E612 07:55:41.118004231 ProcessGroupNCCL.cpp:632] collective timeout 600000 on rank 1
torch==2.6.0
"""
LORA = PLAIN.replace("/home/ml/train.py", "/opt/lib/nemo/lora.py")


@pytest.fixture
def base(catalogue: Callable[..., Path]) -> KnowledgeBase:
    return in_memory(load([catalogue(GENERAL, SPECIFIC, TIMEOUT)]))


@pytest.fixture(scope="module")
def shipped() -> KnowledgeBase:
    return in_memory(load([PROJECT / "entries"]))


def at(item: Explanation, line: int) -> Searched:
    return next(searched for searched in item.searched if searched.line == line)


def outcomes(searched: Searched) -> dict[str, str]:
    return {tried.entry_id: tried.outcome for tried in searched.tried}


def test_what_was_taken_off_is_told_once_with_the_number_of_lines(base: KnowledgeBase) -> None:
    noise = base.explain(PLAIN).noise
    assert [(item.taken, item.line, item.lines) for item in noise] == [
        ("[rank3]: ", 1, 4),
        ("[rank0]:[E612 07:55:40.118004231 ProcessGroupNCCL.cpp:632] ", 5, 2),
    ]


def test_streams_and_incidents_are_those_of_the_answer(base: KnowledgeBase) -> None:
    item = base.explain(PLAIN)
    assert [(stream.name, stream.lines) for stream in item.streams] == [
        ("rank3", 4),
        ("rank0", 1),
        ("rank1", 1),
        (None, 2),
    ]
    assert item.incidents == base.match(PLAIN).query.incidents
    assert item.environment.packages == {"torch": "2.6.0"}


def test_a_candidate_says_whether_it_won_and_why_it_lost(base: KnowledgeBase) -> None:
    assert outcomes(at(base.explain(PLAIN), 4)) == {"pytorch/dtype": "won", "nemo/lora": "frames"}
    tried = {t.entry_id: t for t in at(base.explain(LORA), 4).tried}
    assert tried["nemo/lora"].outcome == "won"
    assert (tried["pytorch/dtype"].outcome, tried["pytorch/dtype"].why) == ("lost", "nemo/lora supersedes it")
    assert LORA.split("\n")[3][slice(*(tried["nemo/lora"].span or ()))] == "dtypes of a and b differ"


def test_log_lines_with_the_same_outcome_are_counted(base: KnowledgeBase) -> None:
    place = at(base.explain(PLAIN), 5)
    assert (place.copies, outcomes(place)) == (2, {"distributed/timeout": "won"})


def test_roles_come_with_their_reasons(base: KnowledgeBase) -> None:
    roles = {answer.entry_id: (answer.role, answer.role_why) for answer in base.explain(PLAIN).answers}
    assert roles["pytorch/dtype"] == ("root", "")
    assert roles["distributed/timeout"][0] == "consequence"


def test_nothing_is_explained_of_nothing(base: KnowledgeBase) -> None:
    item = base.explain("")
    assert (item.noise, item.incidents, item.searched, item.answers) == ((), (), (), ())
    assert base.why_not("", "nemo/lora").condition == "empty"


@pytest.mark.parametrize(
    ("paste", "entry_id", "condition"),
    [
        (PLAIN, "pytorch/dtype", "answered"),
        (PLAIN, "nemo/lora", "frames"),
        (LORA, "pytorch/dtype", "lost"),
        ("collective timeout soon on rank 3", "distributed/timeout", "pattern"),
        ("RuntimeError: the dtypes differ", "pytorch/dtype", "literal"),
    ],
)
def test_the_first_condition_that_failed(base: KnowledgeBase, paste: str, entry_id: str, condition: str) -> None:
    assert base.why_not(paste, entry_id).condition == condition


def test_a_pattern_that_fails_behind_its_literal(catalogue: Callable[..., Path]) -> None:
    jammed = in_memory(load([catalogue(entry("pytorch/jam", regex=r"pytorch/jam jammed at step \d{1,9}"))]))
    reason = jammed.why_not("RuntimeError: the frobnicator of pytorch/jam jammed at step twelve", "pytorch/jam")
    assert (reason.condition, reason.line, reason.needs) == ("pattern", 1, (r"pytorch/jam jammed at step \d{1,9}",))


def test_who_won_instead_is_named(base: KnowledgeBase) -> None:
    reason = base.why_not(LORA, "pytorch/dtype")
    assert (reason.winner, reason.why) == ("nemo/lora", "nemo/lora supersedes it")


def test_another_exception_class_only_demotes(base: KnowledgeBase) -> None:
    reason = base.why_not("KeyError: the dtypes of a and b differ", "pytorch/dtype")
    assert reason.condition == "answered"
    assert "only lowers the level" in reason.note


def test_a_literal_in_source_code_is_pointed_out(base: KnowledgeBase) -> None:
    paste = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    raise E("dtypes of a and b differ")\nKeyError: 1'
    reason = base.why_not(paste, "pytorch/dtype")
    assert (reason.condition, reason.line) == ("literal", 3)
    assert "not searched" in reason.note


def test_an_alias_is_understood_and_a_stranger_is_refused(base: KnowledgeBase) -> None:
    with pytest.raises(UnknownEntryError):
        base.why_not(PLAIN, "no/such")


def test_an_explanation_never_disagrees_with_the_answer(shipped: KnowledgeBase) -> None:
    samples = sorted((PROJECT / "entries").glob("*/*/samples/*.txt"))[::19]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in samples]
    texts += [log.text for log in [*examples(), *list(composed())[::16]] if len(log.text) < 20_000]
    for text in texts:
        answer, item = shipped.match(text), shipped.explain(text)
        assert [(m.entry_id, m.role, m.level, m.line) for m in answer.matches] == [
            (a.entry_id, a.role, a.level, a.line) for a in item.answers
        ]
        assert item.incidents == answer.query.incidents
        won = {tried.entry_id for place in item.searched for tried in place.tried if tried.outcome == "won"}
        assert {match.entry_id for match in answer.matches} <= won


@given(st.lists(st.sampled_from([*PLAIN.split("\n"), "\r[rank1]: x", "&lt;b", "\x1b[31m", "E   "]), max_size=12))
def test_any_text_is_explained(lines: list[str]) -> None:
    empty = in_memory(load([]))
    render.explanation(empty.explain("\n".join(lines)), width=80, color=False)


def test_the_worked_paste_of_the_documentation_is_what_the_command_prints(shipped: KnowledgeBase) -> None:
    """KB_UPDATE_DOCS=1 writes the page anew."""
    page = PROJECT / "docs" / "matching.md"
    text = page.read_text(encoding="utf-8")
    head, paste, between, shown, tail = re.split(r"(?<=```text\n)(.*?)(?=```\n)", text, flags=re.DOTALL)
    told = render.explanation(shipped.explain(paste), width=100, color=False)
    if os.environ.get("KB_UPDATE_DOCS"):
        page.write_text(head + paste + between + told + tail, encoding="utf-8")
        shown = told
    assert shown == told


def run(*arguments: Any, stdin: str = PLAIN) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["match", *map(str, arguments)], input=stdin)
    return result.exit_code, result.stdout


def test_the_command_shows_every_stage_and_why_not(catalogue: Callable[..., Path]) -> None:
    root = catalogue(GENERAL, SPECIFIC, TIMEOUT)
    code, shown = run("--explain", "--entries", root)
    assert code == 0
    assert [word for word in ("Denoise", "Parse", "Match", "Roles", "Environment") if word not in shown] == []
    assert "torch 2.6.0" in shown
    code, shown = run("--why-not", "nemo/lora", "--entries", root)
    assert code == 1
    assert "no frame of the paste fits" in shown
    assert "nemo/.{0,40}lora" in shown


def test_both_come_as_json(catalogue: Callable[..., Path]) -> None:
    root = catalogue(GENERAL, SPECIFIC, TIMEOUT)
    stages = json.loads(run("--explain", "--entries", root, "--format", "json")[1])
    assert [answer["role"] for answer in stages["answers"]] == ["root", "consequence"]
    reason = json.loads(run("--why-not", "pytorch/dtype", "--entries", root, "-f", "jsonl", stdin=LORA)[1])
    assert (reason["condition"], reason["winner"]) == ("lost", "nemo/lora")


def test_nothing_recognised_is_exit_code_1() -> None:
    code, shown = run("--explain", stdin="my.ShardError: bad shard")
    assert code == 1
    assert "nothing was recognised" in shown
    assert "ShardError: bad shard" in shown
