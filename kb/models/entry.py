"""The authored entry: what a contributor writes in `entries/<domain>/<slug>/entry.json`.

Rates, tiers and dates of confirmation are absent on purpose: they are computed from evidence (`kb.rates`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from kb.models.base import ArmReference, Date, EntryId, Line, Name, Slug, Strict, Text, Url

CauseType = Literal["generic", "user_code", "library_bug", "api_change", "configuration", "environment", "hardware"]
Recoverability = Literal["in_process", "restart_process", "reset_gpu", "reboot", "replace_hardware", "unknown"]


class Source(Strict):
    """Where a statement was read."""

    url: Url
    kind: Literal["report", "fix", "docs", "discussion"]
    """`report`: somebody hit it; `fix`: a change that repaired it; `docs`: documentation; `discussion`: the rest."""
    note: str = ""
    """What the reader finds there, in one's own words."""


class Variant(Strict):
    """Another wording of the same error: an older release, CPU instead of CUDA, C++ instead of Python."""

    signature: Text
    regex: Line
    versions: str = ""
    """PEP 440 range of the raising package in which this wording stands, empty if unknown."""
    note: str = ""
    frames: tuple[Line, ...] | None = None
    """Patterns that replace the entry's `frames` for this wording; null inherits them, `[]` asks for none."""


class RaisedBy(Strict):
    """A distribution that contains the message."""

    package: Line
    versions: str = ""
    """PEP 440 range, empty if unknown."""
    literal: str = ""
    """Text that must stand in that distribution's files. Empty only for a claim that measurement refuted."""


class AppliesWhen(Strict):
    """Conditions a program checks against the user's environment. What is unknown neither matches nor mismatches."""

    packages: dict[str, str] = Field(default_factory=dict)
    """Distribution name to PEP 440 range."""
    compute_capability: str = ""
    """Range over `major.minor` of the GPU, for example `>=8.0`."""
    os: tuple[Literal["linux", "windows", "macos"], ...] = ()
    python: str = ""
    """PEP 440 range of the interpreter."""
    device: Literal["cpu", "cuda"] | None = None


class Unverifiable(Strict):
    """Why no arm proves this yet."""

    unverifiable: Line
    """For example `needs sm_75`, `needs two GPUs`, `not written yet`."""


Verification = ArmReference | Unverifiable


class Cause(Strict):
    """One of the ways to get this error."""

    id: Slug
    summary: Text
    detection: str = ""
    """What to look for in the paste or the program to tell this cause from the others."""
    sources: tuple[Source, ...] = ()


class Workaround(Strict):
    """A fix, as claimed. Whether it works is measured by the arm that `verification` names."""

    id: Slug
    action: Line
    """One imperative line."""
    how: Text
    """How to apply it; code is the code of the verification arm."""
    kind: Literal["root_cause", "symptom", "configuration", "upgrade", "hardware"]
    addresses: tuple[Slug, ...] = ()
    """Ids of the causes it removes."""
    trade_off: str = ""
    condition: str = ""
    applies_when: AppliesWhen | None = None
    sources: tuple[Source, ...] = ()
    verification: Verification


class DeadEnd(Strict):
    """Something people try that does not help."""

    id: Slug
    action: Line
    why_fails: Text
    condition: str = ""
    applies_when: AppliesWhen | None = None
    sources: tuple[Source, ...] = ()
    verification: Verification


class Version(Strict):
    """One release in which behaviour was seen or changed; the reference record's shape."""

    version: Line
    """`package release`, for example `torch 2.6.0`."""
    introduced: str | None = None
    deprecated: str | None = None
    removed: str | None = None
    behavior_change: str | None = None
    status: Line = "active"


class TransitionGraph(Strict):
    """Entries met before, after, or mistaken for this one."""

    leads_to: tuple[EntryId, ...] = ()
    preceded_by: tuple[EntryId, ...] = ()
    frequently_confused_with: tuple[EntryId, ...] = ()


class Reported(Strict):
    """A foreign record, kept verbatim and apart from everything measured here."""

    origin: Line
    """Where it came from: a file name or an address."""
    record: dict[str, JsonValue]


class AuthoredEntry(Strict):
    """One known error."""

    schema_version: Literal[1]
    id: EntryId
    signature: Text
    """The error line as users see it."""
    regex: Line
    """RE2 pattern, searched in one exception (`Type: message`) or one log line with white space folded."""
    variants: tuple[Variant, ...] = ()
    exceptions: tuple[Line, ...] = ()
    """Exception classes that carry it, last component only; empty for plain log lines."""
    frames: tuple[Line, ...] = ()
    """Patterns searched in `file` and `function` of frames, slashes forward; if given, one must be in the paste."""
    kind: Literal["error", "wrapper", "warning"] = "error"
    """`wrapper`: reports that something else failed, and never wins over a concrete error."""
    raised_by: tuple[RaisedBy, ...] = ()

    domain: Slug
    category: Name
    subcategory: str | None = None
    tags: tuple[Line, ...] = ()
    aliases: tuple[Line, ...] = ()
    """Vendor codes, retired ids, and ids of families merged into this entry."""
    error_code: str | None = None
    """For example `cudaErrorAssert (710)`."""
    locale: Line = "en"

    root_cause: Text
    root_cause_type: CauseType = "generic"
    causes: tuple[Cause, ...] = ()
    detection: str = ""
    prevention: str = ""
    recoverability: Recoverability = "unknown"
    asynchronous: bool = False
    """True where the Python frame shown is not where it happened."""
    versions: tuple[Version, ...] = ()
    os_specific: dict[str, JsonValue] = Field(default_factory=dict)

    workarounds: tuple[Workaround, ...]
    dead_ends: tuple[DeadEnd, ...] = ()

    signature_zh: str | None = None
    root_cause_zh: str | None = None
    workarounds_zh: tuple[str, ...] = ()
    """One line per workaround, in the same order."""
    dead_ends_zh: tuple[str, ...] = ()
    """One line per dead end, in the same order."""

    transition_graph: TransitionGraph = TransitionGraph()
    official_doc_url: Url | None = None
    official_doc_section: str | None = None
    resolvable: Literal["true", "false", "partial", "unknown"] = "true"
    first_seen: Date | None = None
    sources: tuple[Source, ...] = ()
    reported: Reported | None = None
    supersedes: tuple[EntryId, ...] = ()
    """Entries this one wins over when both match the same failure."""

    withdrawn: str | None = None
    """Why this id was retired; a withdrawn entry matches nothing and still explains itself."""
    moved_to: EntryId | None = None
