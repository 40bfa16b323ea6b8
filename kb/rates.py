"""Rates: k of n distinct cells, computed from evidence by pure functions. Nobody types one in.

A cell is a configuration on a GPU model (or CPU) with a torch minor version. Repeats of a cell never add to n, and it
succeeds only if every fresh trial in it did. CPU and CUDA are never pooled. Trials that were skipped, whose arm or
control changed since, or that somebody else contributed, count nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from math import sqrt
from statistics import median
from typing import Literal

from kb.evidence import LoadedEvidence
from kb.models.evidence import RunEnvironment, Trial
from kb.models.published import Rate

Device = Literal["cpu", "cuda"]
Wins = Callable[[str], bool]
"""Whether a traceback that a reproduction raised ranks this entry first."""
ByDevice = Mapping[Device, Rate]

Z_95 = 1.959963984540054

_SUCCESS = {"workaround": {"fixed"}, "dead_end": {"still_fails", "fails_differently"}}
_CLAIMS = tuple(_SUCCESS)


@dataclass(frozen=True)
class Measured:
    """Every rate of one entry. An empty mapping: nothing countable was run."""

    reproduction: ByDevice = field(default_factory=dict)
    """Cells in which the error came as described."""
    refutation: ByDevice = field(default_factory=dict)
    """Of the cells that are claimed to fail, those in which the error was raised."""
    workarounds: Mapping[str, ByDevice] = field(default_factory=dict)
    dead_ends: Mapping[str, ByDevice] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """One fresh trial of our own, with what decides where it counts."""

    trial: Trial
    device: Device
    environment: str
    """For example `CPU, torch 2.13`."""
    day: date
    held: bool
    """Whether the trial bears the claim out."""

    @property
    def cell(self) -> tuple[str, str]:
        """Configuration and environment."""
        return self.trial.config, self.environment


def wilson(k: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of k successes in n, 95 % by default. Raises ValueError unless 0 <= k <= n and n > 0."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is no rate")
    share = k / n
    centre = share + z * z / (2 * n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if k == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if k == n else min(1.0, (centre + spread) / scale)
    return low, high


def measure(files: Iterable[LoadedEvidence], wins: Wins | None = None) -> Measured:
    """All rates of one entry from its evidence.

    `wins` says of a traceback that a reproduction raised whether today's matcher gives this entry for it; where it
    does not, the error was not reproduced as described. By default that is not asked.
    """
    seen = observations(files, wins)
    claims: dict[str, dict[str, list[Observation]]] = {arm: {} for arm in _CLAIMS}
    for one in seen:
        if one.trial.arm in claims and one.trial.id is not None:
            claims[one.trial.arm].setdefault(one.trial.id, []).append(one)
    return Measured(
        reproduction=_by_device([one for one in seen if one.trial.arm == "reproduce"]),
        refutation=_by_device([one for one in seen if one.trial.arm == "refute"], any_holds=True),
        workarounds={claim: _by_device(trials) for claim, trials in sorted(claims["workaround"].items())},
        dead_ends={claim: _by_device(trials) for claim, trials in sorted(claims["dead_end"].items())},
    )


def observations(files: Iterable[LoadedEvidence], wins: Wins | None = None) -> list[Observation]:
    """The trials that count, oldest run first."""
    found: list[Observation] = []
    for loaded in files:
        if loaded.contributed:
            continue
        judge = _Judge(loaded, wins)
        environment = environment_label(loaded.evidence.environment)
        for trial, fresh in loaded.trials():
            if fresh and judge.counts(trial):
                device = loaded.evidence.environment.device
                found.append(Observation(trial, device, environment, loaded.day, judge.holds(trial)))
    return found


def by_environment(files: Iterable[LoadedEvidence], wins: Wins | None = None) -> list[tuple[str, str | None, Rate]]:
    """Arm, claim and rate for each environment apart; reproduction first, claims by id."""
    groups: dict[tuple[int, str, str, str], list[Observation]] = {}
    places = {"reproduce": 0, "refute": 0, "workaround": 1, "dead_end": 2}
    for one in observations(files, wins):
        key = (places[one.trial.arm], one.trial.arm, one.trial.id or "", one.environment)
        groups.setdefault(key, []).append(one)
    return [
        (arm, claim or None, _rate(seen, seen[0].device, any_holds=arm == "refute"))
        for (_, arm, claim, _), seen in sorted(groups.items(), key=lambda item: item[0])
    ]


def headline(rates: ByDevice) -> Rate | None:
    """CUDA if there is any, else CPU."""
    return rates.get("cuda") or rates.get("cpu")


def environment_label(environment: RunEnvironment) -> str:
    """`NVIDIA H100 80GB HBM3, torch 2.11`; `CPU` for no GPU."""
    torch = environment.torch
    version = ".".join(torch.split("+")[0].split(".")[:2]) if torch else None
    return f"{environment.gpu or 'CPU'}, " + (f"torch {version}" if version else "without torch")


class _Judge:
    """What the controls of one run say about its trials."""

    def __init__(self, loaded: LoadedEvidence, wins: Wins | None) -> None:
        self._wins = wins
        self._controls: dict[str, list[bool]] = {}
        for trial, fresh in loaded.trials():
            if trial.arm == "reproduce" and trial.outcome != "skipped":
                self._controls.setdefault(trial.config, []).append(fresh and self._reproduced(trial))

    def counts(self, trial: Trial) -> bool:
        """Whether a fresh trial enters n."""
        if trial.outcome == "skipped":
            return False
        if trial.arm == "reproduce":
            return True
        if trial.arm == "refute":
            # What crashed or hung neither raised the error nor ran well.
            return trial.outcome not in ("crashed", "timed_out")
        controls = self._controls.get(trial.config, [])
        return trial.control == "reproduced" and bool(controls) and all(controls)

    def holds(self, trial: Trial) -> bool:
        """Whether a counted trial is a success: of a `refute` arm, whether the error was raised after all."""
        if trial.arm == "reproduce":
            return self._reproduced(trial)
        if trial.arm == "refute":
            return trial.outcome == "reproduced"
        return trial.outcome in _SUCCESS[trial.arm]

    def _reproduced(self, trial: Trial) -> bool:
        if trial.outcome != "reproduced":
            return False
        return self._wins is None or trial.traceback is None or self._wins(trial.traceback)


def _by_device(seen: Sequence[Observation], *, any_holds: bool = False) -> dict[Device, Rate]:
    devices: tuple[Device, ...] = ("cuda", "cpu")
    split = {device: [one for one in seen if one.device == device] for device in devices}
    return {device: _rate(ours, device, any_holds) for device, ours in split.items() if ours}


def _rate(seen: Sequence[Observation], device: Device, any_holds: bool) -> Rate:
    cells: dict[tuple[str, str], list[bool]] = {}
    for one in seen:
        cells.setdefault(one.cell, []).append(one.held)
    decide = any if any_holds else all
    k, n = sum(decide(held) for held in cells.values()), len(cells)
    low, high = wilson(k, n)
    seconds = [one.trial.step_seconds for one in seen if one.held and one.trial.step_seconds is not None]
    peaks = [one.trial.peak_bytes for one in seen if one.held and one.trial.peak_bytes is not None]
    return Rate(
        k=k,
        n=n,
        low=low,
        high=high,
        device=device,
        environments=tuple(sorted({one.environment for one in seen})),
        last_run=max(one.day for one in seen).isoformat(),
        step_seconds=median(seconds) if seconds else None,
        peak_bytes=round(median(peaks)) if peaks else None,
    )
