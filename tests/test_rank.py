"""Fixes stand in the order they earned, and say why."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kb.models.result import Environment
from kb.rank import cautions, fixes


def rate(k: int, n: int, low: float, device: str = "cpu", **more: Any) -> dict[str, Any]:
    name = "NVIDIA H100, torch 2.11" if device == "cuda" else "CPU, torch 2.13"
    return {
        "k": k,
        "n": n,
        "low": low,
        "high": 1.0,
        "device": device,
        "environments": [name],
        "last_run": "2026-11-22",
        **more,
    }


def fix(fix_id: str, **more: Any) -> dict[str, Any]:
    plain = {
        "id": fix_id, "action": f"Do {fix_id}", "how": "x", "kind": "root_cause", "state": "unmeasured", "state_reason": "",
        "measured": None, "verification": f"verify.py::test_{fix_id.replace('-', '_')}", "sources": [], "applies_when": None,
    }  # fmt: skip
    return {**plain, **more}


def record(*workarounds: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "pytorch/x", "workarounds": list(workarounds), "dead_ends": [], "reported": None, **more}


def order(*workarounds: dict[str, Any], environment: Environment | None = None) -> list[str]:
    return [item.id for item in fixes(record(*workarounds), environment or Environment())]


def test_measured_success_comes_before_an_unmeasured_claim_and_failure_after_it() -> None:
    worked = fix("worked", state="measured", measured=rate(2, 4, 0.15), kind="symptom")
    failed = fix("failed", state="measured", measured=rate(0, 4, 0.0))
    assert order(failed, fix("claimed"), worked) == ["worked", "claimed", "failed"]


def test_the_lower_bound_decides_not_the_share() -> None:
    few = fix("few", state="measured", measured=rate(1, 1, 0.21))
    many = fix("many", state="measured", measured=rate(23, 24, 0.80))
    assert order(few, many) == ["many", "few"]


def test_equal_rates_put_the_root_cause_first_then_the_cheaper_then_the_id() -> None:
    equal = {"state": "measured"}
    symptom = fix("a-symptom", kind="symptom", measured=rate(4, 4, 0.5), **equal)
    dear = fix("b-dear", measured=rate(4, 4, 0.5, step_seconds=0.2), **equal)
    cheap = fix("c-cheap", measured=rate(4, 4, 0.5, step_seconds=0.1), **equal)
    assert order(symptom, dear, cheap) == ["c-cheap", "b-dear", "a-symptom"]


def test_what_does_not_apply_goes_last_and_says_so() -> None:
    old = fix("old", state="measured", measured=rate(9, 9, 0.7), applies_when={"packages": {"torch": "<2.0"}})
    ranked = fixes(record(old, fix("new")), Environment(packages={"torch": "2.6.0"}))
    assert [(item.id, item.applies) for item in ranked] == [("new", None), ("old", False)]
    assert "torch is 2.6.0, this needs <2.0" in ranked[1].why


def test_an_unknown_environment_neither_helps_nor_hurts() -> None:
    conditional = fix("a", state="measured", measured=rate(9, 9, 0.7), applies_when={"packages": {"torch": "<2.0"}})
    assert order(fix("b"), conditional) == ["a", "b"]


def test_the_reason_names_place_rate_interval_hardware_and_cost() -> None:
    measured = rate(24, 24, 0.86, "cuda", step_seconds=0.0021, peak_bytes=3 * 2**20)
    (ranked,) = fixes(record(fix("a", state="measured", measured=measured)), Environment())
    assert (
        ranked.why
        == "1st: 24 of 24 on NVIDIA H100 (95 %: 0.86–1.00), removes the cause, 2.1 ms a step, 3 MiB at its peak"
    )
    assert ranked.verification == "entries/pytorch/x/verify.py::test_a"


def test_no_rate_says_so_with_its_reason() -> None:
    claim = fix(
        "a", state="unverifiable", state_reason="needs two GPUs", verification={"unverifiable": "needs two GPUs"}
    )
    (ranked,) = fixes(record(claim), Environment())
    assert "unverifiable (needs two GPUs)" in ranked.why
    assert ranked.measured is None
    assert ranked.verification is None


def test_reported_claims_ride_along_by_wording_only() -> None:
    reported = {"origin": "r.json", "record": {"workarounds": [{"action": "Do a", "success_rate": 0.95}]}}
    ranked = {item.id: item.reported for item in fixes(record(fix("a"), fix("b"), reported=reported), Environment())}
    assert ranked == {"a": {"origin": "r.json", "success_rate": 0.95}, "b": None}


def test_dead_ends_say_how_often_they_failed() -> None:
    dead = {
        "id": "d", "action": "Empty the cache", "why_fails": "…", "state": "measured", "state_reason": "", "condition": "",
        "measured": rate(12, 12, 0.76), "verification": "verify.py::test_d", "sources": [],
    }  # fmt: skip
    (caution,) = cautions(record(dead_ends=[dead]))
    assert caution.why == "failed in 12 of 12 on CPU (95 %: 0.76–1.00)"


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_written_never_matters(ids: list[str]) -> None:
    assert order(*(fix(item) for item in ids)) == ["a", "b", "c", "d"]
