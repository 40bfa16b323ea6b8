"""Scores count what they say they count."""

from __future__ import annotations

from kb.evaluate import Case, score


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
