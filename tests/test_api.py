"""`import kb`: the interface that programs use."""

from __future__ import annotations

import asyncio
import doctest
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kb
from kb import api

LINEAR = "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16"


@pytest.mark.parametrize("module", [kb, api], ids=["kb", "kb.api"])
def test_the_examples_are_true(module: object) -> None:
    outcome = doctest.testmod(module, extraglobs={"kb": kb})  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_everything_it_names_is_there_and_typed() -> None:
    for name in kb.__all__:
        assert getattr(kb, name) is not None
    assert set(kb.__all__) <= set(dir(kb))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kb.nothing  # noqa: B018


def test_a_function_stays_a_function_whatever_is_imported_first() -> None:
    code = "import kb.matcher, kb.api, kb.cli.match, kb; assert callable(kb.match) and callable(kb.open)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_exception_is_matched_with_its_chain_on_this_machine() -> None:
    try:
        try:
            raise RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16")
        except RuntimeError as inner:
            raise ValueError("the step failed") from inner
    except ValueError as error:
        answer = kb.match(error)
    assert answer.matches[0].entry_id == "pytorch/linear-dtype-mismatch"
    assert [incident.type for incident in answer.query.incidents] == ["RuntimeError", "ValueError"]
    assert answer.query.environment.python == ".".join(map(str, sys.version_info[:3]))
    assert kb.match(LINEAR).query.environment.python is None


def test_what_is_known_decides_what_applies() -> None:
    known = kb.Environment(packages={"transformers": "4.57.6"})
    assert kb.match(LINEAR, environment=known).query.environment.packages == {"transformers": "4.57.6"}


def test_an_exception_that_cannot_be_printed_is_no_trouble() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert kb.match(OddError()).abstained


def test_a_record_may_be_changed_without_harm() -> None:
    kb.get("pytorch/linear-dtype-mismatch")["workarounds"].clear()
    assert kb.get("pytorch/linear-dtype-mismatch")["workarounds"]


def test_an_unknown_language_or_id_says_what_there_is() -> None:
    with pytest.raises(kb.KbError, match="one of en, zh"):
        kb.match(LINEAR, locale="fr")
    with pytest.raises(kb.KbError, match="did you mean pytorch/linear-dtype-mismatch"):
        kb.get("pytorch/linear-dtype-mismatches")


def test_own_entries_lie_over_the_packaged_ones(tmp_path: Path) -> None:
    entry = json.loads(Path("entries/pytorch/linear-dtype-mismatch/entry.json").read_text(encoding="utf-8"))
    entry |= {"id": "pytorch/ours", "signature": "the widget jammed", "regex": "the widget jammed", "variants": []}
    folder = tmp_path / "pytorch" / "ours"
    folder.mkdir(parents=True)
    (folder / "entry.json").write_text(json.dumps(entry), encoding="utf-8")
    base = kb.open(tmp_path)
    assert kb.match("the widget jammed", base=base).matches[0].entry_id == "pytorch/ours"
    assert kb.match("the widget jammed").abstained


def test_many_threads_get_the_same_answer() -> None:
    base = kb.open()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: base.match(LINEAR).matches[0].entry_id, range(200)))
    assert set(answers) == {"pytorch/linear-dtype-mismatch"}


def test_it_can_be_asked_from_asynchronous_code() -> None:
    answer = asyncio.run(asyncio.to_thread(kb.match, LINEAR))
    assert answer.matches[0].entry_id == "pytorch/linear-dtype-mismatch"
