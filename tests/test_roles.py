"""The failure that began it comes first."""

from __future__ import annotations

from kb.match import Found
from kb.models.result import Incident
from kb.roles import assign


def found(entry_id: str, line: int, incident: int, kind: str = "error") -> Found:
    return Found(entry_id, kind, "exact", incident, line, (0, 1), "", "", 0, framed=False)


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
