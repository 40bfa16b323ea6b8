"""Rates are k of n distinct cells, whatever the order and number of runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb.evidence import LoadedEvidence
from kb.models.published import Rate
from kb.rates import ByDevice, headline, measure, wilson
from tests.runs import loaded, trial

H100 = "NVIDIA H100 80GB HBM3"
OUTCOMES = ["fixed", "not_fixed", "wrong_result", "timed_out", "crashed", "skipped", "works_without_fix"]


def reproduced(config: str = "a", **changes: Any) -> dict[str, Any]:
    return trial("reproduce", config=config, **changes)


def fix(config: str = "a", outcome: str = "fixed", **changes: Any) -> dict[str, Any]:
    return trial("workaround", config=config, outcome=outcome, **changes)


def pair(config: str = "a", outcome: str = "fixed", **changes: Any) -> list[dict[str, Any]]:
    return [reproduced(config), fix(config, outcome, **changes)]


def fix_rate(*files: LoadedEvidence, device: str = "cpu") -> Rate | None:
    rates: ByDevice = measure(files).workarounds.get("oil-it", {})
    return rates.get(device)  # type: ignore[call-overload, no-any-return]


def counted(*files: LoadedEvidence) -> tuple[int, int]:
    rate = fix_rate(*files)
    return (rate.k, rate.n) if rate else (0, 0)


# --- the interval


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(24, 24, 0.862, 1.0), (0, 12, 0.0, 0.242), (5, 6, 0.436, 0.970), (1, 1, 0.207, 1.0), (50, 100, 0.404, 0.596)],
)
def test_wilson_against_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=0.001)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_within_bounds_and_is_symmetric(case: tuple[int, int]) -> None:
    k, n = case
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    mirrored_low, mirrored_high = wilson(n - k, n)
    assert (low, high) == pytest.approx((1 - mirrored_high, 1 - mirrored_low))


@pytest.mark.parametrize(("k", "n"), [(1, 0), (0, 0), (2, 1), (-1, 3)])
def test_wilson_of_no_rate_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        wilson(k, n)


# --- cells


def test_each_configuration_is_a_cell() -> None:
    assert counted(loaded([*pair("a"), *pair("b"), *pair("c", "not_fixed")])) == (2, 3)


def test_repeating_a_run_adds_nothing() -> None:
    assert counted(*[loaded(pair())] * 5) == (1, 1)


def test_a_cell_fails_if_one_of_its_trials_did() -> None:
    assert counted(loaded(pair()), loaded(pair(outcome="wrong_result")), loaded(pair())) == (0, 1)


def test_two_tests_of_one_fix_share_the_cell() -> None:
    assert counted(loaded([reproduced(), fix(), fix(outcome="not_fixed", test="test_oil_it_twice")])) == (0, 1)


def test_torch_minor_versions_are_cells_and_patch_releases_are_not() -> None:
    versions = ("2.11.0+cu130", "2.11.1", "2.13.0+cpu", None)
    files = [loaded(pair(), torch=version) for version in versions]
    rate = fix_rate(*files)
    assert rate is not None
    assert (rate.k, rate.n) == (3, 3)
    assert rate.environments == ("CPU, torch 2.11", "CPU, torch 2.13", "CPU, without torch")


def test_cpu_and_cuda_are_never_pooled() -> None:
    files = [loaded(pair()), loaded(pair(outcome="not_fixed"), gpu=H100), loaded(pair(), gpu="NVIDIA L4")]
    rates = measure(files).workarounds["oil-it"]
    assert (rates["cpu"].k, rates["cpu"].n) == (1, 1)
    assert (rates["cuda"].k, rates["cuda"].n) == (1, 2)
    assert headline(rates) is rates["cuda"]
    assert headline({"cpu": rates["cpu"]}) is rates["cpu"]
    assert headline({}) is None


@pytest.mark.parametrize("outcome", ["timed_out", "crashed", "wrong_result", "not_fixed"])
def test_every_bad_end_is_a_failure_of_a_fix(outcome: str) -> None:
    assert counted(loaded(pair(outcome=outcome))) == (0, 1)


def test_skipped_trials_count_nowhere() -> None:
    measured = measure([loaded([reproduced(outcome="skipped"), fix(outcome="skipped", control="skipped")])])
    assert measured.reproduction == {}
    assert measured.workarounds == {}


def test_contributed_runs_move_nothing() -> None:
    assert counted(loaded(pair(outcome="not_fixed"), contributed_by="somebody"), loaded(pair("b"))) == (1, 1)


# --- controls


@pytest.mark.parametrize("control", ["not_reproduced", "timed_out", "crashed"])
def test_fixing_what_was_not_broken_proves_nothing(control: str) -> None:
    assert counted(loaded([reproduced(outcome=control), fix(control=control)])) == (0, 0)


def test_a_fix_without_a_control_does_not_count() -> None:
    assert counted(loaded([fix(control=None)])) == (0, 0)


def test_a_control_of_another_configuration_or_run_is_none() -> None:
    assert counted(loaded([reproduced("b"), fix("a")])) == (0, 0)
    assert counted(loaded([reproduced("a")]), loaded([fix("a")])) == (0, 0)


def test_a_stale_trial_does_not_count_and_neither_does_one_with_a_stale_control() -> None:
    assert counted(loaded(pair(), fresh=[True, False])) == (0, 0)
    assert counted(loaded(pair(), fresh=[False, True])) == (0, 0)


def test_a_reproduction_that_names_another_entry_is_none() -> None:
    file = loaded([reproduced(traceback="mine"), fix(), reproduced("b", traceback="other"), fix("b")])
    measured = measure([file], wins=lambda traceback: traceback == "mine")
    assert (measured.reproduction["cpu"].k, measured.reproduction["cpu"].n) == (1, 2)
    assert measured.workarounds["oil-it"]["cpu"].n == 1
    assert measure([file]).reproduction["cpu"].k == 2


# --- other arms


def test_the_rate_of_a_dead_end_counts_failures() -> None:
    outcomes = ["still_fails", "fails_differently", "works", "timed_out", "crashed", "skipped"]
    trials = [
        one
        for config, outcome in enumerate(outcomes)
        for one in (reproduced(str(config)), trial("dead_end", config=str(config), outcome=outcome))
    ]
    rate = measure([loaded(trials)]).dead_ends["hit-it"]["cpu"]
    assert (rate.k, rate.n) == (2, 5)


def test_a_reproduction_that_hangs_or_dies_is_none() -> None:
    outcomes = ["reproduced", "not_reproduced", "timed_out", "crashed"]
    rate = measure([loaded([reproduced(str(n), outcome=one) for n, one in enumerate(outcomes)])]).reproduction["cpu"]
    assert (rate.k, rate.n) == (1, 4)


def test_a_refutation_counts_how_often_the_error_came_after_all() -> None:
    outcomes = ["not_reproduced", "not_reproduced", "reproduced", "fails_differently", "wrong_result", "crashed"]
    trials = [trial("refute", config=str(n), outcome=one) for n, one in enumerate(outcomes)]
    measured = measure([loaded(trials), loaded([trial("refute", config="0", outcome="reproduced")])])
    assert (measured.refutation["cpu"].k, measured.refutation["cpu"].n) == (2, 5)
    assert measured.reproduction == {}


def test_fixes_of_a_refuted_entry_have_no_rate() -> None:
    trials = [trial("refute", outcome="not_reproduced"), fix(outcome="works_without_fix", control="not_reproduced")]
    assert measure([loaded(trials)]).workarounds == {}


def test_cost_is_the_median_of_the_trials_that_worked() -> None:
    trials = [reproduced()]
    trials += [fix(step_seconds=seconds, peak_bytes=size) for seconds, size in ((1.0, 10), (2.0, 20), (9.0, 99))]
    rate = fix_rate(loaded(trials), loaded(pair("b", "not_fixed", step_seconds=500.0)))
    assert rate is not None
    assert (rate.step_seconds, rate.peak_bytes) == (2.0, 20)
    assert fix_rate(loaded(pair())).step_seconds is None  # type: ignore[union-attr]


def test_the_last_run_is_a_day_in_utc() -> None:
    rate = fix_rate(
        loaded(pair(), started_at="2026-11-22T23:30:00-05:00"), loaded(pair(), started_at="2026-11-01T00:00:00Z")
    )
    assert rate is not None
    assert rate.last_run == "2026-11-23"


# --- properties

_RUNS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(OUTCOMES)), min_size=1, max_size=4),
        st.sampled_from([None, H100]),
        st.sampled_from(["2.11.0", "2.13.0"]),
        st.booleans(),
    ),
    max_size=6,
)


def _files(runs: list[Any]) -> list[LoadedEvidence]:
    return [
        loaded([one for config, outcome in fixes for one in pair(config, outcome)], gpu=gpu, torch=torch, fresh=fresh)
        for fixes, gpu, torch, fresh in runs
    ]


def _totals(files: list[LoadedEvidence]) -> dict[str, tuple[int, int]]:
    rates = measure(files).workarounds.get("oil-it", {})
    return {device: (rate.k, rate.n) for device, rate in rates.items()}


@settings(max_examples=60, deadline=None)
@given(_RUNS, st.randoms(use_true_random=False))
def test_neither_order_nor_repeats_change_a_rate(runs: list[Any], random: Any) -> None:
    files = _files(runs)
    shuffled = [*files, *files]
    random.shuffle(shuffled)
    assert measure(files).workarounds == measure(shuffled).workarounds
    assert measure(files).reproduction == measure(shuffled).reproduction


@settings(max_examples=60, deadline=None)
@given(_RUNS)
def test_rates_stay_within_the_number_of_cells(runs: list[Any]) -> None:
    cells = {(config, gpu, torch) for fixes, gpu, torch, _ in runs for config, _ in fixes}
    for device, (k, n) in _totals(_files(runs)).items():
        assert 0 <= k <= n <= len([cell for cell in cells if bool(cell[1]) == (device == "cuda")])


@settings(max_examples=60, deadline=None)
@given(_RUNS, st.sampled_from("abc"), st.sampled_from([None, H100]))
def test_a_failing_trial_never_raises_k(runs: list[Any], config: str, gpu: str | None) -> None:
    files = _files(runs)
    before = _totals(files)
    after = _totals([*files, loaded(pair(config, "not_fixed"), gpu=gpu, torch="2.13.0")])
    for device, (k, n) in before.items():
        assert after[device][0] <= k
        assert after[device][1] >= n


@settings(max_examples=60, deadline=None)
@given(_RUNS)
def test_what_ran_on_one_device_says_nothing_of_the_other(runs: list[Any]) -> None:
    together = _totals(_files(runs))
    alone = _totals(_files([run for run in runs if run[1] is None]))
    assert together.get("cpu") == alone.get("cpu")
