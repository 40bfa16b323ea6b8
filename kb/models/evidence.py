"""Evidence: the write-once record of one run of one entry's `verify.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from kb.models.base import EntryId, Line, Sha256, Slug, Strict, Timestamp

Arm = Literal["reproduce", "refute", "workaround", "dead_end"]
Outcome = Literal[
    "reproduced",
    "not_reproduced",
    "fixed",
    "not_fixed",
    "wrong_result",
    "works_without_fix",
    "still_fails",
    "fails_differently",
    "works",
    "skipped",
    "timed_out",
    "crashed",
]


class Run(Strict):
    """When and how the script was run."""

    started_at: Timestamp
    seconds: float
    kb_version: Line
    commit: str | None
    """Commit of the checkout the script came from, null outside a checkout; `+dirty` appended if it had changes."""
    command: str
    contributed_by: str | None = None
    """Who ran it, if not a maintainer. Contributed runs move no rate."""


class RunEnvironment(Strict):
    """What it ran on."""

    device: Literal["cpu", "cuda"]
    gpu: str | None
    """Model as the driver names it, null on CPU."""
    compute_capability: str | None
    """`major.minor`."""
    driver: str | None
    cuda: str | None
    """CUDA version torch was built for."""
    torch: str | None
    packages: dict[str, str]
    """Every distribution named in `requires`, with its installed version."""
    python: Line
    os: Line


class Trial(Strict):
    """One arm in one configuration."""

    arm: Arm
    id: Slug | None
    """Workaround or dead-end id; null for `reproduce` and `refute`."""
    test: Line
    """Test function in `verify.py`."""
    arm_digest: Sha256
    """SHA-256 over the syntax tree of the arm and everything of the module that it reaches."""
    config: str
    """Configuration id, empty if the script has only one."""
    control: Outcome | None
    """Outcome of `reproduce` (or `refute`) in the same configuration and run; null on those arms themselves."""
    outcome: Outcome
    reason: str | None = None
    """Why skipped, timed out, crashed, or judged wrong."""
    exception: str | None = None
    message: str | None = None
    traceback: str | None = None
    """Redacted and capped."""
    regex_matched: bool | None = None
    """Whether the entry's own patterns were found in what was raised or printed."""
    recovers: bool | None = None
    """Whether the device answered again, in the same process, after the error."""
    seconds: float
    step_seconds: float | None = None
    peak_bytes: int | None = None
    reference_error: float | None = None
    """Largest relative difference from the higher-precision reference."""
    measurements: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever else the arm measured, by name."""


class Evidence(Strict):
    """One file below an entry's `evidence/` folder. Written once, never edited."""

    schema_version: Literal[1]
    entry: EntryId
    verify_sha256: Sha256
    run: Run
    environment: RunEnvironment
    trials: tuple[Trial, ...]
