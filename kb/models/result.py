"""What flows from a paste to an answer: frozen standard-library dataclasses, so that matching imports no pydantic.

Positions: lines count from 1 in the raw input, columns are code points from 0, spans are half-open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["exact", "line", "related"]
Role = Literal["root", "consequence", "wrapper"]
Link = Literal["cause", "context"]


@dataclass(frozen=True, slots=True)
class Line:
    """One denoised line and the way back to the raw one.

    `cuts` holds `(clean column, raw column)` pairs, ascending: from each clean column on, raw columns run in step.
    `source` names the stream the line came from (`rank3`, `worker pid=12`), None if it carried no such prefix.
    """

    number: int
    text: str
    cuts: tuple[tuple[int, int], ...] = ((0, 0),)
    source: str | None = None
    severity: str | None = None
    stamped: bool = False
    """Whether a logger's, launcher's or terminal's prefix was taken off."""
    full: bool = False
    """Whether it fills the width at which the paste was cut, so that the next line goes on inside the same word."""

    def raw_column(self, column: int) -> int:
        """Raw column of a clean one."""
        clean, raw = 0, 0
        for clean_start, raw_start in self.cuts:
            if clean_start > column:
                break
            clean, raw = clean_start, raw_start
        return raw + column - clean


@dataclass(frozen=True, slots=True)
class Frame:
    """One call of a traceback, outermost first."""

    file: str
    line: int | None
    function: str | None


@dataclass(frozen=True, slots=True)
class Incident:
    """One failure as it was understood: an exception, or a log line that reports one."""

    kind: Literal["exception", "log"]
    type: str | None
    message: str
    line: int
    """Raw line on which the type, or the log line, stands."""
    frames: tuple[Frame, ...] = ()
    ranks: tuple[str, ...] = ()
    follows: int | None = None
    """Index of the incident this one was raised from or while handling."""
    link: Link | None = None
    package: str | None = None
    """Package that raised it, read from the innermost frame or the type."""
    user_frame: Frame | None = None
    """Innermost frame outside installed packages and the standard library."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is known of the machine the paste came from. Unknown stays None or absent."""

    packages: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    os: Literal["linux", "windows", "macos"] | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    cuda: str | None = None
    driver: str | None = None
    device: Literal["cpu", "cuda"] | None = None


@dataclass(frozen=True, slots=True)
class Fix:
    """One ranked workaround."""

    id: str
    action: str
    how: str
    kind: str
    addresses: tuple[str, ...]
    """Ids of the entry's causes that it is for."""
    applies: bool | None
    """False if the known environment rules it out, None if nothing is known."""
    why: str
    """Why it stands at this position."""
    state: str
    measured: dict[str, Any] | None
    reported: dict[str, Any] | None
    trade_off: str
    condition: str
    cost: str | None
    verification: str | None
    """Path and test of the arm, None if there is none."""
    sources: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Caution:
    """A dead end, shown so that nobody walks into it."""

    id: str
    action: str
    why_fails: str
    state: str
    why: str
    measured: dict[str, Any] | None
    reported: dict[str, Any] | None
    condition: str
    verification: str | None
    sources: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """One entry recognised in the paste."""

    entry_id: str
    level: Level
    role: Role
    incident: int
    repeats: tuple[int, ...]
    """Indices of further incidents that show the same entry, for example another rank's."""
    line: int
    span: tuple[int, int]
    why: str
    signature: str
    root_cause: str
    url: str | None
    verification_tier: str
    tier_reason: str
    fixes: tuple[Fix, ...]
    dead_ends: tuple[Caution, ...]
    causes: tuple[dict[str, Any], ...]
    recoverability: str
    transition_graph: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Related:
    """An entry that merely sounds alike. Never an answer."""

    entry_id: str
    signature: str
    why: str


@dataclass(frozen=True, slots=True)
class Query:
    """What was understood of the paste."""

    incidents: tuple[Incident, ...]
    environment: Environment


@dataclass(frozen=True, slots=True)
class Result:
    """The whole answer: the shape of `kb match --format json`."""

    schema_version: int
    kb_version: str
    query: Query
    matches: tuple[Match, ...]
    related: tuple[Related, ...]
    abstained: bool
    unknown_root: int | None = None
    """Index of the incident that most likely began it and that no entry knows; None where the root is known."""
