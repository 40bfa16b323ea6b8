"""The tier of an entry: how much of what it says was read somewhere, raised, and repaired, and on what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kb.evidence import LoadedEvidence
from kb.models.entry import AuthoredEntry, Cause, DeadEnd, Source, Unverifiable, Workaround
from kb.models.evidence import Trial
from kb.models.published import Rate, Tier
from kb.rates import Device, Measured, headline
from kb.states import run_words, skip_state

Judged = tuple[Tier, str]
_DEVICES: tuple[tuple[Device, Tier], ...] = (("cuda", "verified_cuda"), ("cpu", "verified_cpu"))


def tier(entry: AuthoredEntry, measured: Measured, files: Sequence[LoadedEvidence]) -> Judged:
    """Tier and reason. Contributed runs move it no more than they move a rate."""
    own = [loaded for loaded in files if not loaded.contributed]
    return (
        _from_refutation(measured, own)
        or _from_fixes(measured)
        or _from_reproduction(measured)
        or _from_age(own)
        or _from_skips(own)
        or _unproven(entry, measured)
    )


def refutation(measured: Measured, files: Sequence[LoadedEvidence]) -> str | None:
    """Why the claim that this error exists counts as refuted, None if it does not.

    Every fresh refuting trial must have finished with the right result, and nothing may have raised the error.
    """
    outcomes = [trial.outcome for trial, fresh in _controls(files, "refute") if fresh and trial.outcome != "skipped"]
    raised = any(rate.k for rate in measured.reproduction.values())
    if raised or not outcomes or any(outcome != "not_reproduced" for outcome in outcomes):
        return None
    runs = [run_words(rate) for rate in measured.refutation.values()]
    return f"the error was raised in {', and in '.join(runs)}"


def _from_refutation(measured: Measured, own: Sequence[LoadedEvidence]) -> Judged | None:
    reason = refutation(measured, own)
    return ("refuted", reason) if reason else None


def _from_fixes(measured: Measured) -> Judged | None:
    for device, name in _DEVICES:
        working = [(claim, rates[device]) for claim, rates in measured.workarounds.items() if device in rates]
        working = [(claim, rate) for claim, rate in working if rate.k]
        if working:
            claim, rate = max(working, key=lambda pair: (pair[1].low, pair[0]))
            raised = measured.reproduction.get(device)
            before = f"the error was raised in {run_words(raised)}, and " if raised else ""
            return name, f"{before}the fix `{claim}` worked in {run_words(rate)}"
    return None


def _from_reproduction(measured: Measured) -> Judged | None:
    rate = headline({device: rate for device, rate in measured.reproduction.items() if rate.k})
    if rate is None:
        return None
    return "reproduced", f"the error was raised in {run_words(rate)}; no fix was shown to work yet"


def _from_age(own: Sequence[LoadedEvidence]) -> Judged | None:
    trials = [pair for loaded in own for pair in loaded.trials()]
    if not trials:
        return None
    last_run = max(loaded.day for loaded in own).isoformat()
    if not any(fresh for _, fresh in trials):
        return "stale", f"the script changed since the last run, {last_run}"
    controls = list(_controls(own, "reproduce", "refute"))
    if controls and not any(fresh for _, fresh in controls):
        return "stale", f"the reproduction changed since the last run, {last_run}"
    return None


def _from_skips(own: Sequence[LoadedEvidence]) -> Judged | None:
    fresh = [trial for trial, is_fresh in _controls(own, "reproduce", "refute") if is_fresh]
    if not fresh or any(trial.outcome != "skipped" for trial in fresh):
        return None
    found = skip_state([trial.reason or "" for trial in fresh])
    return ("unverifiable", found.reason) if found.state == "unverifiable" else None


def _unproven(entry: AuthoredEntry, measured: Measured) -> Judged:
    tried = _attempt(measured)
    sources = len({source.url for source in _sources(entry)})
    if not sources:
        origin = f"imported from {entry.reported.origin}" if entry.reported else "no source is named"
        return "ai_generated", f"{origin}, {tried or 'nothing was checked'}"
    reasons = [
        claim.verification.unverifiable for claim in entry.workarounds if isinstance(claim.verification, Unverifiable)
    ]
    # Hardware that is missing makes a claim unverifiable; an arm that nobody wrote yet only leaves it unproven.
    needs = [reason for reason in reasons if reason.startswith("needs ")]
    if needs and len(needs) == len(entry.workarounds) and not tried:
        return "unverifiable", "; ".join(dict.fromkeys(reasons))
    return "sourced", f"read in {sources} source{'s' if sources != 1 else ''}, {tried or 'not run yet'}"


def _attempt(measured: Measured) -> str:
    """What became of runs that proved nothing."""
    failed: list[Rate] = [*measured.reproduction.values()]
    if failed:
        return f"but the error was raised in {', and in '.join(map(run_words, failed))}"
    if measured.refutation:
        raised = ", and in ".join(map(run_words, measured.refutation.values()))
        return f"and a refutation did not hold: the error was raised in {raised}"
    return ""


def _controls(files: Sequence[LoadedEvidence], *arms: str) -> Iterator[tuple[Trial, bool]]:
    for loaded in files:
        for trial, fresh in loaded.trials():
            if trial.arm in arms:
                yield trial, fresh


def _sources(entry: AuthoredEntry) -> Iterator[Source]:
    yield from entry.sources
    groups: tuple[tuple[Cause | Workaround | DeadEnd, ...], ...] = (entry.causes, entry.workarounds, entry.dead_ends)
    for group in groups:
        for part in group:
            yield from part.sources
