"""Scores count what they say they count."""

from __future__ import annotations

import json
from pathlib import Path

from kb.build import in_memory
from kb.catalog import load
from kb.evaluate import Case, evaluate, read_corpus, score


def case(expected: str | None, *ranked: str, **more: object) -> Case:
    plain: dict[str, object] = {"id": "x", "noise": (), "covered": True, "doubt": False, "also": ()}
    return Case(expected=expected, ranked=ranked, **{**plain, **more})  # type: ignore[arg-type]


def test_positives_are_scored_by_the_place_of_the_right_entry() -> None:
    report = score([case("a/x", "a/x"), case("a/x", "b/y", "a/x"), case("a/x"), case("c/z", "b/y", covered=False)])
    assert (report.coverage.k, report.coverage.n) == (3, 4)
    assert (report.top1.k, report.top3.k, report.top1.n) == (1, 2, 3)
    assert report.mrr == 0.5
    assert report.confusions == (("a/x", "b/y", 1),)
    assert (report.uncovered_wrong.k, report.uncovered_wrong.n) == (1, 1)


def test_a_consequence_shown_for_an_entry_the_catalogue_lacks_is_not_wrong() -> None:
    assert score([case("c/z", "b/y", covered=False, also=("b/y",))]).uncovered_wrong.k == 0


def test_negatives_with_doubt_are_counted_apart() -> None:
    report = score([case(None, "a/x"), case(None), case(None, "a/x", doubt=True)])
    assert (report.false_answers.k, report.false_answers.n) == (1, 2)
    assert (report.false_answers_with_doubt.k, report.false_answers_with_doubt.n) == (1, 1)


def test_an_empty_corpus_scores_nothing() -> None:
    assert score([]).top1.n == 0


def judged(expected: str | None, *shown: tuple[str, str], **more: object) -> Case:
    ids = [item for item, _ in shown]
    return case(expected, *ids, **{"shown": shown, "roles": {}, **more})


def test_a_case_with_roles_is_right_if_the_root_is_and_no_labelled_id_has_another_role() -> None:
    right = judged("a/x", ("a/x", "root"), ("b/y", "consequence"), roles={"b/y": "consequence", "c/z": "wrapper"})
    swapped = judged("a/x", ("b/y", "root"), ("a/x", "consequence"))
    wrapped = judged("a/x", ("a/x", "root"), ("b/y", "consequence"), roles={"b/y": "wrapper"})
    report = score([right, swapped, wrapped, case("a/x", "a/x")])
    assert (report.roles.k, report.roles.n) == (1, 3)
    assert (report.others_shown.k, report.others_shown.n) == (2, 3)
    assert report.misjudged == (("x", "root b/y, not a/x"), ("x", "b/y is consequence, not wrapper"))


def test_where_no_entry_knows_the_root_only_labelled_ids_may_be_shown() -> None:
    wrapper = {"w/w": "wrapper"}
    right = judged(None, ("w/w", "wrapper"), roles=wrapper, incident="ShardError", incidents=("my.ShardError",))
    unread = judged(None, ("w/w", "wrapper"), roles=wrapper, incident="ShardError")
    extra = judged(None, ("a/x", "consequence"), roles=wrapper)
    report = score([right, unread, extra])
    assert (report.roles.k, report.false_answers.k, report.false_answers.n) == (1, 1, 3)
    assert report.misjudged[0] == ("x", "ShardError was not understood")


def test_a_wrapper_that_is_the_labelled_answer_is_right_where_nothing_is_the_root() -> None:
    wrapped = judged("w/w", ("w/w", "wrapper"), ("v/v", "wrapper"), also=("v/v",))
    beside = judged("w/w", ("a/x", "root"), ("w/w", "wrapper"))
    assert score([wrapped, beside]).misjudged == (("x", "root a/x, not w/w"),)


def test_an_also_id_must_not_be_the_root() -> None:
    assert score([judged("a/x", ("a/x", "root"), ("b/y", "consequence"), also=("b/y",))]).roles.k == 1


def test_a_row_reads_roles_only_where_it_says_something_of_them(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    row = {"text": 'Traceback (most recent call last):\n  File "a.py", line 1, in f\nmy.ShardError: bad', "entry": None}
    rows = [{**row, "roles": {}, "incident": "ShardError"}, row]
    corpus.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    report = evaluate(read_corpus(corpus), in_memory(load([])))
    assert (report.roles.k, report.roles.n, report.false_answers.n) == (1, 1, 2)
