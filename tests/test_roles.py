"""The failure that began it comes first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kb.denoise import denoise
from kb.matcher import Found
from kb.models.result import Incident, Link
from kb.roles import Clues, assign, clues


def found(entry_id: str, line: int, incident: int, kind: str = "error") -> Found:
    return Found(entry_id, kind, "exact", incident, line, (0, 1), "", "", 0)


def incident(line: int, follows: int | None = None) -> Incident:
    return Incident(
        kind="exception",
        type="E",
        message="",
        line=line,
        follows=follows,
        link="cause" if follows is not None else None,
    )


def roles(
    matches: list[Found], incidents: list[Incident], edges: dict[str, frozenset[str]] | None = None
) -> list[tuple[str, str]]:
    return [(part.found.entry_id, part.role) for part in assign(matches, incidents, edges or {})]


def test_the_earliest_failure_is_the_root() -> None:
    assert roles([found("b/x", 9, 1), found("a/x", 3, 0)], [incident(3), incident(9)]) == [
        ("a/x", "root"),
        ("b/x", "consequence"),
    ]


def test_a_known_transition_beats_the_order_of_lines() -> None:
    matches = [found("distributed/timeout", 1, 0), found("cuda/oom", 50, 1)]
    edges = {"cuda/oom": frozenset({"distributed/timeout"})}
    assert roles(matches, [incident(1), incident(50)], edges) == [
        ("cuda/oom", "root"),
        ("distributed/timeout", "consequence"),
    ]


def test_transitions_are_followed_through_entries_that_are_not_in_the_log() -> None:
    matches = [found("c/z", 1, 0), found("a/x", 5, 1)]
    edges = {"a/x": frozenset({"b/y"}), "b/y": frozenset({"c/z"})}
    assert roles(matches, [incident(1), incident(5)], edges)[0] == ("a/x", "root")


def test_a_cycle_of_transitions_falls_back_to_the_order_of_lines() -> None:
    matches = [found("a/x", 1, 0), found("b/y", 5, 1)]
    edges = {"a/x": frozenset({"b/y"}), "b/y": frozenset({"a/x"})}
    assert roles(matches, [incident(1), incident(5)], edges)[0] == ("a/x", "root")


def test_the_exception_another_was_raised_from_is_the_root() -> None:
    matches = [found("late/x", 2, 0), found("early/x", 8, 1)]
    assert roles(matches, [incident(2, follows=1), incident(8)])[0] == ("early/x", "root")


def test_a_wrapper_is_last_even_where_it_stands_first() -> None:
    matches = [found("distributed/child", 1, 0, kind="wrapper"), found("a/x", 9, 1)]
    assert roles(matches, [incident(1), incident(9)]) == [("a/x", "root"), ("distributed/child", "wrapper")]


def test_a_wrapper_alone_is_still_an_answer() -> None:
    assert roles([found("distributed/child", 1, 0, kind="wrapper")], [incident(1)]) == [
        ("distributed/child", "wrapper")
    ]


def failure(said: str, line: int, *ranks: str, follows: int | None = None, link: Link | None = None) -> Incident:
    """An exception as `Type: message`."""
    name, _, message = said.partition(": ")
    return Incident("exception", name, message, line, ranks=ranks, follows=follows, link=link)


def judged(matches: list[Found], incidents: list[Incident], clues: Clues | None = None) -> dict[str, str]:
    return {part.found.entry_id: part.role for part in assign(matches, incidents, {}, clues)}


def told(text: str, incidents: Sequence[Incident] = ()) -> Clues:
    return clues(enumerate(text.split("\n"), start=1), denoise(text), incidents)


TIMED_OUT = "RuntimeError: [Rank 1] Watchdog caught collective operation timeout: WorkNCCL("


def test_a_lost_peer_follows_what_another_rank_says_even_if_it_was_printed_first() -> None:
    incidents = [failure(TIMED_OUT, 1, "rank1"), failure("RuntimeError: mat1 and mat2", 9, "rank0")]
    assert judged([found("d/timeout", 1, 0), found("p/dtype", 9, 1)], incidents) == {
        "p/dtype": "root",
        "d/timeout": "consequence",
    }


def test_a_lost_peer_alone_is_the_root() -> None:
    assert judged([found("d/timeout", 1, 0)], [failure(TIMED_OUT, 1, "rank1")]) == {"d/timeout": "root"}


def test_a_lost_peer_is_no_root_where_another_rank_failed_of_something_unknown() -> None:
    incidents = [failure(TIMED_OUT, 1, "rank1"), failure("my.ShardError: bad shard", 9, "rank0")]
    (part,) = assign([found("d/timeout", 1, 0)], incidents, {})
    assert part.role == "consequence"
    assert "ShardError on rank0 (line 9)" in part.why


def test_messengers_and_interrupts_are_not_the_unknown_failure() -> None:
    for news in ("torch.ChildFailedError: ", "KeyboardInterrupt: ", "RuntimeError: Connection closed by peer [::1]"):
        incidents = [failure(TIMED_OUT, 1, "rank1"), failure(news, 9, "rank0")]
        assert judged([found("d/timeout", 1, 0)], incidents) == {"d/timeout": "root"}


def test_a_device_assertion_comes_before_the_calls_that_learned_of_it() -> None:
    incidents = [
        failure("RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", 1),
        Incident("log", None, "Loss.cu:1: block: [0,0,0], thread: [5,0,0] Assertion `t >= 0` failed.", 30),
    ]
    assert judged([found("c/cublas", 1, 0), found("c/assert", 30, 1)], incidents) == {
        "c/assert": "root",
        "c/cublas": "consequence",
    }


def test_an_assertion_on_another_rank_explains_nothing_here() -> None:
    incidents = [
        failure("RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", 1, "rank0"),
        Incident("log", None, "block: [0,0,0], thread: [5,0,0] Assertion `t >= 0` failed.", 30, ranks=("rank1",)),
    ]
    assert judged([found("c/cublas", 1, 0), found("c/assert", 30, 1)], incidents)["c/cublas"] == "root"


def test_an_import_that_the_program_handled_is_not_the_root() -> None:
    incidents = [
        failure("ImportError: libcuda.so.1: cannot open shared object file", 3),
        failure("RuntimeError: mat1 and mat2", 9, follows=0, link="context"),
    ]
    matches = [found("c/library", 3, 0), found("p/dtype", 9, 1)]
    assert judged(matches, incidents) == {"p/dtype": "root", "c/library": "consequence"}
    caused = [incidents[0], failure("RuntimeError: mat1 and mat2", 9, follows=0, link="cause")]
    assert judged(matches, caused) == {"c/library": "root", "p/dtype": "consequence"}


def test_a_warning_is_not_the_root_of_a_log_that_ends_otherwise() -> None:
    incidents = [Incident("log", None, "hit the recompile limit", 1), failure("ShardError: bad", 9)]
    assert judged([found("c/limit", 1, 0, kind="warning")], incidents) == {"c/limit": "consequence"}
    assert judged([found("c/limit", 1, 0, kind="warning")], incidents[:1]) == {"c/limit": "root"}


def test_the_launcher_says_which_rank_was_first() -> None:
    incidents = [failure("ValueError: a", 1, "rank5"), failure("ValueError: b", 9, "rank3")]
    matches = [found("a/x", 1, 0), found("b/y", 9, 1)]
    assert judged(matches, incidents)["a/x"] == "root"
    assert judged(matches, incidents, Clues(first_ranks=("rank3",)))["b/y"] == "root"


def test_an_unknown_failure_of_the_rank_that_the_launcher_saw_first_leaves_no_root() -> None:
    incidents = [failure("ValueError: a", 1, "rank5"), failure("ShardError: b", 9, "rank3")]
    assert judged([found("a/x", 1, 0)], incidents, Clues(first_ranks=("rank3",))) == {"a/x": "consequence"}


def test_clocks_decide_where_all_tell_the_time_alike() -> None:
    text = "2026-11-22 13:00:41,000 ERROR ValueError: a\n2026-11-22 13:00:07,000 ERROR ValueError: b"
    incidents = [failure("ValueError: a", 1, "rank5"), failure("ValueError: b", 2, "rank3")]
    matches = [found("a/x", 1, 0), found("b/y", 2, 1)]
    assert judged(matches, incidents, told(text, incidents))["b/y"] == "root"
    other = text.replace("2026-11-22 13:00:07,000", "E1122 13:00:07.000000")
    assert judged(matches, incidents, told(other, incidents))["a/x"] == "root"


SUMMARY = """\
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_17:29:{second}
  host      : node{node}
  rank      : {rank} (local_rank: 0)
"""


def test_of_several_summaries_the_earliest_counts() -> None:
    text = SUMMARY.format(second=36, node=0, rank=0) + SUMMARY.format(second=35, node=1, rank=8)
    assert told(text).first_ranks == ("rank8",)
    quoted = "".join(f"2026-11-22T17:29:40.1Z [rank0]: {line}\n" for line in text.split("\n"))
    assert told(quoted).first_ranks == ("rank8",)


def test_the_more_specific_entry_of_one_chain_is_the_root() -> None:
    general = found("a/general", 3, 0)
    specific = dataclasses.replace(found("b/specific", 9, 1), supersedes=frozenset({"a/general"}))
    assert roles([general, specific], [incident(3), incident(9, follows=0)]) == [
        ("b/specific", "root"),
        ("a/general", "consequence"),
    ]
