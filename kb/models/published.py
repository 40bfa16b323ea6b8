"""The published record: the authored entry plus everything computed from evidence.

It carries every field of the reference record under the same names and types; a rate nobody measured is null.
"""

from __future__ import annotations

from typing import Literal

from kb.models.base import ArmReference, Date, Sha256, Strict
from kb.models.entry import AuthoredEntry, DeadEnd, Workaround

Tier = Literal[
    "ai_generated", "sourced", "reproduced", "verified_cpu", "verified_cuda", "stale", "refuted", "unverifiable"
]
ClaimState = Literal["measured", "unmeasured", "stale", "refuted", "unverifiable", "nothing_to_fix"]


class Rate(Strict):
    """k successes in n distinct cells (configuration x GPU model or CPU x torch minor version), one device kind."""

    k: int
    n: int
    low: float
    """Wilson 95 % lower bound."""
    high: float
    """Wilson 95 % upper bound."""
    device: Literal["cpu", "cuda"]
    environments: tuple[str, ...]
    """For example `NVIDIA H100 80GB HBM3, torch 2.11`."""
    last_run: Date
    step_seconds: float | None = None
    """Median of the fresh trials, null if not measured."""
    peak_bytes: int | None = None


class Provenance(Strict):
    """In which releases of one distribution a literal of the entry was looked for, and found."""

    package: str
    literal: str
    origin: Literal["raised_by", "signature"]
    """`signature`: the entry claims no literal, so the longest constant part of its message was looked for."""
    stands: tuple[str, ...]
    """Releases that have it."""
    lacks: tuple[str, ...]
    """Releases that do not."""
    unknown: tuple[str, ...]
    """Releases that could not be looked at."""


class PublishedWorkaround(Workaround):
    """A workaround with what was measured of it."""

    success_rate: float | None
    state: ClaimState
    state_reason: str
    measured: Rate | None
    """The headline: CUDA if there is any, else CPU."""
    measured_by_device: tuple[Rate, ...] = ()


class PublishedDeadEnd(DeadEnd):
    """A dead end with what was measured of it; the rate counts failures."""

    fail_rate: float | None
    state: ClaimState
    state_reason: str
    measured: Rate | None
    measured_by_device: tuple[Rate, ...] = ()


class PublishedEntry(AuthoredEntry):
    """What `kb show --format json`, the HTTP interface and the export give."""

    workarounds: tuple[PublishedWorkaround, ...]
    dead_ends: tuple[PublishedDeadEnd, ...] = ()
    verification_tier: Tier
    tier_reason: str
    confidence: float | None
    """Wilson lower bound of the first-ranked fix's rate."""
    fix_success_rate: float | None
    """Rate of the first-ranked fix."""
    evidence_count: int
    """Fresh evidence files."""
    last_confirmed: Date | None
    last_updated: Date | None
    reproduction: Rate | None
    """In how many cells the error came as described; for a refuted claim, in how many it was raised at all."""
    provenance: tuple[Provenance, ...] = ()
    """What released wheels hold of the message."""
    verify_sha256: Sha256 | None = None
    reproduce_arms: tuple[ArmReference, ...] = ()
