"""What the evidence of one claim amounts to: a state, a reason a person believes, and the rates behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kb.evidence import LoadedEvidence
from kb.models.entry import DeadEnd, Unverifiable, Workaround
from kb.models.evidence import Trial
from kb.models.published import ClaimState, Rate
from kb.rates import ByDevice, Measured, headline

_HARDWARE = re.compile(r"needs (?:cuda|\d+ GPUs?|compute capability)\b")
_HELD = {"workaround": ("fixed",), "dead_end": ("still_fails", "fails_differently")}
_VERB = {"workaround": "worked", "dead_end": "failed"}


@dataclass(frozen=True)
class Proof:
    """Everything that was run for one entry."""

    files: Sequence[LoadedEvidence] = ()
    measured: Measured = field(default_factory=Measured)
    tests: frozenset[str] | None = None
    """Test functions of today's `verify.py`, None if there is no script."""
    refutation: str | None = None
    """Why the entry's claim counts as refuted, None if it does not."""


@dataclass(frozen=True)
class Standing:
    """Where one claim stands."""

    state: ClaimState
    reason: str
    rates: ByDevice = field(default_factory=dict)


def standing(claim: Workaround | DeadEnd, proof: Proof) -> Standing:
    """The state of one workaround or dead end."""
    arm: Literal["workaround", "dead_end"] = "workaround" if isinstance(claim, Workaround) else "dead_end"
    if proof.refutation is not None:
        return _of_refuted(arm, claim, proof)
    rates = (proof.measured.workarounds if arm == "workaround" else proof.measured.dead_ends).get(claim.id, {})
    rate = headline(rates)
    if rate is not None:
        return Standing("measured" if rate.k else "refuted", f"{_VERB[arm]} in {run_words(rate)}", rates)
    if isinstance(claim.verification, Unverifiable):
        return Standing("unverifiable", claim.verification.unverifiable)
    return _without_rate(arm, claim, proof)


def run_words(rate: Rate) -> str:
    """`5 of 6 runs on CPU, torch 2.13`."""
    return f"{rate.k} of {rate.n} run{'s' if rate.n != 1 else ''} on {' and '.join(rate.environments)}"


def skip_state(reasons: Sequence[str]) -> Standing:
    """The state of what was skipped each time it was tried."""
    bare = [reason.removeprefix("its control was skipped: ") for reason in reasons]
    for reason in bare:
        if _HARDWARE.search(reason):
            return Standing("unverifiable", reason)
    return Standing("unmeasured", f"skipped so far: {bare[-1]}" if bare else "skipped so far")


def _of_refuted(arm: str, claim: Workaround | DeadEnd, proof: Proof) -> Standing:
    fresh = [trial for trial, _ in _trials(arm, claim.id, proof.files, fresh=True) if trial.outcome != "skipped"]
    if arm == "dead_end" and fresh and all(trial.outcome == "works" for trial in fresh):
        return Standing("refuted", f"ran without an error in {_count(len(fresh), len(fresh))}")
    wrong = [trial for trial in fresh if trial.outcome in ("fails_differently", "wrong_result", "not_fixed")]
    if wrong:
        return Standing(
            "nothing_to_fix", f"goes wrong in another way in {_count(len(wrong), len(fresh))}: {wrong[-1].reason}"
        )
    return Standing("nothing_to_fix", proof.refutation or "")


def _without_rate(arm: str, claim: Workaround | DeadEnd, proof: Proof) -> Standing:
    trials = list(_trials(arm, claim.id, proof.files))
    if not trials:
        return _never_run(arm, claim, proof)
    last_run = max(loaded.day for _, loaded in trials).isoformat()
    fresh = list(_trials(arm, claim.id, proof.files, fresh=True))
    if not fresh:
        return Standing("stale", f"its script changed since the last run, {last_run}")
    ran = [(trial, loaded) for trial, loaded in fresh if trial.outcome != "skipped"]
    if not ran:
        return skip_state([trial.reason or "" for trial, _ in fresh])
    if any(trial.control == "reproduced" for trial, _ in ran):
        return Standing("stale", f"the reproduction changed, or names another entry, since the last run, {last_run}")
    return Standing(
        "unmeasured", f"the error did not come in {_count(len(ran), len(ran))} without it, so nothing is proven"
    )


def _never_run(arm: str, claim: Workaround | DeadEnd, proof: Proof) -> Standing:
    contributed = [trial for trial, _ in _trials(arm, claim.id, proof.files, fresh=True, contributed=True)]
    if contributed:
        held = sum(trial.outcome in _HELD[arm] for trial in contributed)
        words = f"contributed runs only: {_VERB[arm]} in {_count(held, len(contributed))}"
        return Standing("unmeasured", words)
    if proof.tests is None:
        return Standing("unverifiable", "verify.py is not written yet")
    test = str(claim.verification).partition("::")[2]
    if test not in proof.tests:
        return Standing("unverifiable", f"{test} is not written yet")
    return Standing("unmeasured", "not run yet")


def _trials(
    arm: str, claim_id: str, files: Sequence[LoadedEvidence], *, fresh: bool = False, contributed: bool = False
) -> Iterator[tuple[Trial, LoadedEvidence]]:
    for loaded in files:
        for trial, is_fresh in loaded.trials():
            ours = trial.arm == arm and trial.id == claim_id and loaded.contributed == contributed
            if ours and (is_fresh or not fresh):
                yield trial, loaded


def _count(k: int, n: int) -> str:
    return f"{k} of {n} run{'s' if n != 1 else ''}"
