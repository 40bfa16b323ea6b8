"""Logs with several failures: the root is the root, and what came of it is shown as that."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kb.build import in_memory
from kb.catalog import load
from kb.evaluate import Report, evaluate
from kb.knowledge import KnowledgeBase
from tests.compose import KINDS, Log, composed, examples, noisy, prefixed, start, torchrun, tracebacks, watchdog
from tests.conftest import PROJECT


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    return in_memory(load([PROJECT / "entries"]))


@pytest.fixture(scope="module")
def report(base: KnowledgeBase) -> Report:
    return evaluate([log.row() for log in composed()], base)


def test_the_same_seed_composes_the_same_logs() -> None:
    first, again = (list(composed()) for _ in range(2))
    assert first == again
    assert len(first) >= 100
    assert Counter(log.id.partition("-")[0] for log in first) == {kind.__name__: count for kind, count in KINDS}
    assert sum(log.text != other.text for log, other in zip(first, composed(1), strict=True)) > 0.9 * len(first)


@pytest.mark.parametrize("log", examples(), ids=lambda log: log.id)
def test_a_captured_log_is_understood(base: KnowledgeBase, log: Log) -> None:
    assert evaluate([log.row()], base).misjudged == ()


def test_the_root_of_a_log_is_found(report: Report) -> None:
    assert report.roles.k >= 0.95 * report.roles.n, report.misjudged
    assert report.top1.k >= 0.95 * report.top1.n, report.missed


def test_consequences_and_wrappers_are_shown_beside_it(report: Report) -> None:
    assert report.others_shown.k >= 0.9 * report.others_shown.n


def test_nothing_is_answered_as_root_where_no_entry_knows_it(report: Report) -> None:
    assert report.false_answers.k <= 0.05 * report.false_answers.n, report.missed


def test_a_hundred_ranks_that_timed_out_answer_the_one_that_ran_out_of_memory(base: KnowledgeBase) -> None:
    rng = random.Random(3)
    others = [line for rank in range(100) if rank != 3 for line in prefixed(watchdog(rank, rng), rank, "rank")]
    lines = [*others, *prefixed(tracebacks("cuda/out-of-memory")[0], 3, "rank"), *torchrun(3, range(8), other_code=-6)]
    result = base.match(noisy(lines, "none", rng))
    root, *rest = result.matches
    assert (root.entry_id, root.role) == ("cuda/out-of-memory", "root")
    assert result.query.incidents[root.incident].ranks == ("rank3",)
    assert ("distributed/nccl-watchdog-timeout", "consequence") in [(match.entry_id, match.role) for match in rest]


def test_an_unknown_failure_behind_lost_peers_is_named(base: KnowledgeBase) -> None:
    rng = random.Random(5)
    begun = start(rng, known=False)
    lines = [line for rank in (0, 1) for line in prefixed(watchdog(rank, rng), rank, "rank")]
    result = base.match("\n".join([*lines, *prefixed(begun.lines, 2, "rank")]))
    (match,) = result.matches
    assert match.role == "consequence"
    assert f"{begun.type} on rank2" in match.why
