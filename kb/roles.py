"""Which failure of a log began it: root, consequence or wrapper.

From what is certain to what is likely: an entry's kind, exception chains, known transitions between entries, what
kernels and hardware said, that a lost peer is no cause, the launcher's own summary, clocks, and the order of lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kb import lazy
from kb.matcher import Found
from kb.models.result import Incident, Line, Role

# What a process says when another one is gone or stuck. Never the cause where another process says what happened.
_PEER = lazy.pattern(
    r"collective operation timeout|detected by watchdog at work|watchdog thread terminated"
    r"|[Cc]onnection (?:was )?(?:closed|reset)(?: by (?:remote )?peer)?|remote process exited or there was a network"
    r"|ncclRemoteError|Timed out waiting \d{1,9} ?ms for (?:recv|send)|Timed out after \d{1,9} seconds waiting for"
    r"|Timed out initializing process group|unhandled system error|ncclSystemError|ncclInternalError"
    r"|internal error - please report this issue to the NCCL|Socket Timeout|wait timeout after"
    r"|Timeout waiting for key|Broken pipe|socket has timed out after|has failed to connect to any network address"
    r"|connection to the C10d store has failed|NCCL communicator (?:and|was aborted)|monitoredBarrier"
    r"|[Hh]eartbeat monitor timed out|EngineCore (?:encountered|died)|EngineDeadError|ActorDiedError"
    r"|ActorUnavailableError|WorkerCrashedError"
)
# What hardware or a kernel reports itself; host calls learn of it later, and their lines may be printed earlier.
_GROUND = lazy.pattern(
    r"NVRM: |fallen off the bus|uncorrectable|double.bit|thread: \[\d{1,6},\d{1,6},\d{1,6}\] Assertion"
)
_HOST_CALL = lazy.pattern(
    r"CUDA error|cuda runtime error|CUBLAS_STATUS|CUDNN_STATUS|CUSOLVER_STATUS|CUFFT_|CUSPARSE_STATUS"
    r"|Triton Error \[CUDA\]|unhandled cuda error|NCCL error"
)
_OUT_OF_MEMORY = lazy.pattern(r"out of memory|ALLOC_FAILED|NOT_INITIALIZED|NVRM: .{0,80}Xid.{0,80}: 31,")
# Exceptions that only carry the news of another one, or of a user who pressed a key.
_MESSENGER = lazy.pattern(
    r"^(?:ChildFailedError|ProcessExitedException|ProcessRaisedException|CalledProcessError|KeyboardInterrupt"
    r"|SystemExit|SignalException|BrokenPipeError|ConnectionResetError|ConnectionRefusedError|EOFError"
    r"|BrokenProcessPool|CancelledError|RayTaskError(?:\(\w+\))?|RayActorError|Dist(?:Backend|Store|Network)?Error"
    r"|EngineDeadError|EngineGenerateError|TrainingFailedError|JobException)$|Warning$"
)
_CARRIED = lazy.pattern(r"^Caught \w{1,80} in (?:DataLoader worker process|replica|pin memory)|in a background process")

_SUMMARY = "Root Cause (first observed failure)"
_SUMMARY_LINES = 14
_SUMMARY_RANK = lazy.pattern(r"^\s*rank\s*:\s*(\d{1,6})\b")
_SUMMARY_TIME = lazy.pattern(r"^\s*time\s*:\s*(\S{8,40})")

# The program's own clock before that of whatever collected its lines.
_CLOCKS = (
    ("glog", lazy.pattern(r"[IWEF](\d{1,2})(\d{2}) (\d{2}):(\d{2}):(\d{2}(?:\.\d{1,9})?)")),
    ("short", lazy.pattern(r"(?<![\d-])(\d{2})-(\d{2}) (\d{2}):(\d{2}):(\d{2}(?:[.,]\d{1,9})?)")),
    ("long", lazy.pattern(r"\d{4}[-/.](\d{2})[-/.](\d{2})[T _](\d{2}):(\d{2}):(\d{2}(?:[.,]\d{1,9})?)")),
)
_CLOCK_COLUMNS = 200

Moment = tuple[str, tuple[float, ...]]
"""Which clock, and month, day, hour, minute, second by it. Two clocks are not compared."""


@dataclass(frozen=True, slots=True)
class Clues:
    """What a log says of the order of its failures beyond the failures themselves."""

    first_ranks: tuple[str, ...] = ()
    """Ranks that the launcher saw fail first, as `rank3`."""
    moments: Mapping[int, Moment] = field(default_factory=dict)
    """By raw line, for lines of incidents that carry a clock."""


@dataclass(frozen=True, slots=True)
class Part:
    """A match with its role in the log and the words for it."""

    found: Found
    role: Role
    why: str


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why a match is a consequence. `of` is None where what came first is in no entry."""

    of: Found | None
    words: str


def clues(raw: Iterable[tuple[int, str]], lines: Sequence[Line], incidents: Sequence[Incident]) -> Clues:
    """What a log's clocks and the launcher's summary say.

    `raw` are its lines as they were, with their numbers; `lines` are the denoised ones.
    """
    wanted = {incident.line for incident in incidents}
    moments: dict[int, Moment] = {}
    for number, text in raw:
        if number in wanted and (moment := _moment(text)) is not None:
            moments[number] = moment
    return Clues(_first_ranks(lines), moments)


def _moment(raw: str) -> Moment | None:
    head = raw[:_CLOCK_COLUMNS]
    for name, pattern in _CLOCKS:
        if hit := pattern.search(head):
            return name, tuple(float(part.replace(",", ".")) for part in hit.groups())
    return None


def _first_ranks(lines: Sequence[Line]) -> tuple[str, ...]:
    """Of several summaries, one a node, the earliest speaks; those of one second speak together."""
    told: list[tuple[str, str]] = []
    for index, line in enumerate(lines):
        if _SUMMARY not in line.text:
            continue
        block = [other.text for other in lines[index + 1 : index + _SUMMARY_LINES] if other.source == line.source]
        rank = next((hit[1] for text in block if (hit := _SUMMARY_RANK.match(text))), None)
        time = next((hit[1] for text in block if (hit := _SUMMARY_TIME.match(text))), "")
        if rank is not None:
            told.append((time, f"rank{int(rank)}"))
    earliest = min((time for time, _ in told), default="")
    return tuple(dict.fromkeys(rank for time, rank in told if time == earliest))


def assign(
    found: Sequence[Found],
    incidents: Sequence[Incident],
    edges: Mapping[str, frozenset[str]],
    clues: Clues | None = None,
) -> tuple[Part, ...]:
    """Matches with their roles, the root first, wrappers last.

    `edges` maps an entry to those it is known to lead to. There is no root where what came first is in no entry.
    """
    log = _Log(found, incidents, edges, clues or Clues())
    reasons = {match.entry_id: reason for match in log.concrete if (reason := log.reason(match)) is not None}
    first = log.first(reasons)
    known = first or log.earliest([match for match in log.concrete if match.entry_id not in reasons] or log.concrete)
    parts = [_part(match, log, first, reasons.get(match.entry_id)) for match in found]
    order = {"root": 0, "consequence": 1, "wrapper": 2}
    return tuple(
        sorted(parts, key=lambda p: (order[p.role], p.found is not known, p.found.level != "exact", p.found.line))
    )


def unknown_origin(incidents: Sequence[Incident], found: Sequence[Found], clues: Clues | None = None) -> int | None:
    """Index of the exception that none of `found` explains and that most likely began it, None if there is none.

    A rank that the launcher saw fail first goes first.
    """
    matched = {index for match in found for index in (match.incident, *match.repeats)}
    handled = {incident.follows for incident in incidents if incident.follows is not None}
    named = frozenset((clues or Clues()).first_ranks)
    known = {_likeness(incidents[index]) for index in matched}
    strangers = [
        index
        for index, incident in enumerate(incidents)
        if index not in matched and _is_own_failure(incident) and _likeness(incident) not in known
    ]
    heads = [index for index in strangers if not (index in handled and _is_import(incidents[index]))] or strangers
    return min(heads, key=lambda i: (not named.intersection(incidents[i].ranks), incidents[i].line), default=None)


def _is_own_failure(incident: Incident) -> bool:
    """An exception that says what went wrong where it was raised."""
    if incident.kind != "exception":
        return False
    name = (incident.type or "").rpartition(".")[2]
    said = _said(incident)
    return not (
        _MESSENGER.search(name) or _PEER.search(said) or _CARRIED.search(incident.message) or _is_late(incident)
    )


def _is_late(incident: Incident) -> bool:
    return "device-side assert triggered" in incident.message


def _likeness(incident: Incident) -> tuple[str, str]:
    """Copies of a failure that differ in frames or figures are alike."""
    return (incident.type or "").rpartition(".")[2], re.sub(r"\d+", "0", incident.message[:60])


def _said(incident: Incident) -> str:
    """What an incident says, in one line as patterns see it."""
    return " ".join(f"{incident.type or ''}: {incident.message[:2_000]}".split())


def _is_import(incident: Incident) -> bool:
    return (incident.type or "").rpartition(".")[2] in ("ImportError", "ModuleNotFoundError")


def _only_wraps(match: Found, found: Sequence[Found]) -> bool:
    """A wrapper tells nothing of its own, but for those of which its entry says that it knows better."""
    return match.kind == "wrapper" and not any(other.entry_id in match.supersedes for other in found)


def _part(match: Found, log: _Log, first: Found | None, reason: _Reason | None) -> Part:
    stranger = log.stranger
    if match not in log.concrete:
        return Part(match, "wrapper", "reports that something else failed")
    if match is first:
        return Part(match, "root", "the first failure of the log" if reason else "")
    if reason is not None:
        return Part(match, "consequence", reason.words)
    if first is None and match.kind == "warning":
        return Part(match, "consequence", "a warning; what ended the program is something else")
    if first is None and stranger is not None:
        return Part(match, "consequence", f"{_named(stranger)} came first, and no entry knows it")
    return Part(match, "consequence", "appears after the first failure; it may be one of its own")


def _named(incident: Incident) -> str:
    name = (incident.type or "").rpartition(".")[2]
    rank = f" on {incident.ranks[0]}" if incident.ranks else ""
    return f"{name}{rank} (line {incident.line})"


class _Log:
    """The failures of one log, and what speaks for which of them."""

    def __init__(
        self,
        found: Sequence[Found],
        incidents: Sequence[Incident],
        edges: Mapping[str, frozenset[str]],
        clues: Clues,
    ) -> None:
        self.concrete = [match for match in found if not _only_wraps(match, found)]
        self.wrapped = len(self.concrete) < len(found)
        self.incidents = incidents
        self.edges = edges
        self.clues = clues
        self.said = {match.entry_id: _said(incidents[match.incident]) for match in self.concrete}
        self.peers = [m for m in self.concrete if _PEER.search(self.said[m.entry_id])]
        origin = unknown_origin(incidents, found, clues)
        self.stranger = None if origin is None else incidents[origin]

    def reason(self, match: Found) -> _Reason | None:
        """Why `match` followed something else, None if nothing says so."""
        if precise := self._precise(match):
            return _Reason(precise, f"the same failure, told more precisely by {precise.entry_id}")
        if origin := self._origin(match):
            return _Reason(origin, f"raised because of {origin.entry_id}")
        if cause := self._cause(match):
            return _Reason(cause, f"known to follow {cause.entry_id}")
        if ground := self._ground(match):
            return _Reason(ground, f"{ground.entry_id} happened on the device before any call could report it")
        if after := self._after_probe(match):
            return _Reason(after, f"a failed import that the program handled; {after.entry_id} ended it")
        if match in self.peers:
            return self._lost_peer(match)
        return None

    def first(self, reasons: Mapping[str, _Reason]) -> Found | None:
        """The match that began it; None where that is something no entry knows."""
        free = [match for match in self.concrete if match.entry_id not in reasons]
        if not free:
            if any(reason.of is None for reason in reasons.values()):
                return None
            free = self.concrete
        errors = [match for match in free if match.kind != "warning"]
        if not errors and (self.wrapped or self.stranger is not None):
            return None  # a warning is no reason to die
        if errors and self._launcher_saw_stranger(errors):
            return None
        return self.earliest(errors or free)

    def earliest(self, matches: Sequence[Found]) -> Found | None:
        """By the launcher's summary, then by one common clock, then by lines."""
        clocks = {match.entry_id: self.clues.moments.get(match.line) for match in matches}
        names = {clock[0] if clock else None for clock in clocks.values()}
        timed = len(names) == 1 and None not in names

        def key(match: Found) -> tuple[bool, bool, tuple[float, ...], int]:
            clock = clocks[match.entry_id]
            return match.kind == "warning", not self._is_named(match), clock[1] if timed and clock else (), match.line

        return min(matches, key=key, default=None)

    def _is_named(self, match: Found) -> bool:
        return bool(set(self.clues.first_ranks).intersection(self._ranks(match)))

    def _ranks(self, match: Found) -> tuple[str, ...]:
        places = (match.incident, *match.repeats)
        return tuple(dict.fromkeys(rank for place in places for rank in self.incidents[place].ranks))

    def _launcher_saw_stranger(self, errors: Sequence[Found]) -> bool:
        """The launcher names a rank whose exception no entry knows, and none of the known ones is of that rank."""
        named = set(self.clues.first_ranks)
        return (
            self.stranger is not None
            and bool(named.intersection(self.stranger.ranks))
            and all(self._ranks(match) and not self._is_named(match) for match in errors)
        )

    def _chain(self, match: Found) -> Iterator[int]:
        """Incidents this one was raised from or while handling, nearest first; handled imports end the search."""
        seen: set[int] = set()
        current = match.incident
        while (before := self.incidents[current].follows) is not None and before not in seen:
            handled = self.incidents[current].link == "context" and _is_import(self.incidents[before])
            if handled and not _is_import(self.incidents[match.incident]):
                return
            seen.add(before)
            yield before
            current = before

    def _precise(self, match: Found) -> Found | None:
        """The match of the same chain that is more specific than this one, by its own entry's word."""
        for other in self.concrete:
            if match.entry_id in other.supersedes and (
                match.incident in self._chain(other) or other.incident in self._chain(match)
            ):
                return other
        return None

    def _origin(self, match: Found) -> Found | None:
        """The recognised exception from which this one was raised."""
        by_incident = {
            other.incident: other
            for other in self.concrete
            if other is not match and other.entry_id not in match.supersedes
        }
        origins = [by_incident[index] for index in self._chain(match) if index in by_incident]
        return origins[-1] if origins else None

    def _after_probe(self, match: Found) -> Found | None:
        """The recognised exception raised while this failed import was being handled."""
        if not _is_import(self.incidents[match.incident]):
            return None
        for other in self.concrete:
            later = self.incidents[other.incident]
            if later.follows == match.incident and later.link == "context" and not _is_import(later):
                return None if _leads(match.entry_id, other.entry_id, self.edges) else other
        return None

    def _cause(self, match: Found) -> Found | None:
        """A recognised failure that is known to lead to this one, unless the launcher saw this one first."""
        causes = (
            other
            for other in self.concrete
            if other is not match
            and not (self._is_named(match) and self._ranks(other) and not self._is_named(other))
            and _leads(other.entry_id, match.entry_id, self.edges)
            and not _leads(match.entry_id, other.entry_id, self.edges)
        )
        return next(causes, None)

    def _ground(self, match: Found) -> Found | None:
        """What the hardware or a kernel on the same rank reported, if this is a call that learned of it."""
        said = self.said[match.entry_id]
        if not _HOST_CALL.search(said) or _GROUND.search(said) or _OUT_OF_MEMORY.search(said):
            return None
        ranks = set(self._ranks(match))
        return next(
            (
                other
                for other in self.concrete
                if other is not match
                and _GROUND.search(self.said[other.entry_id])
                and not (ranks and self._ranks(other) and not ranks.intersection(self._ranks(other)))
            ),
            None,
        )

    def _lost_peer(self, match: Found) -> _Reason | None:
        """The failure of another process that this one, which lost its peer, followed."""
        ranks = set(self._ranks(match))
        errors = [other for other in self.concrete if other.kind == "error" and other not in self.peers]
        elsewhere = [
            other
            for other in errors
            if not ranks or not self._ranks(other) or set(self._ranks(other)) - ranks or other.line < match.line
        ]
        if cause := self.earliest(elsewhere):
            return _Reason(cause, f"a peer was lost, and {cause.entry_id} says why")
        stranger = self.stranger
        if stranger is None:
            return None
        apart = bool(ranks and stranger.ranks and not ranks.intersection(stranger.ranks))
        if apart or stranger.line < match.line:
            return _Reason(None, f"a peer was lost: {_named(stranger)} came first, and no entry knows it")
        return None


def _leads(start: str, goal: str, edges: Mapping[str, frozenset[str]]) -> bool:
    seen: set[str] = set()
    open_ids = [start]
    while open_ids:
        current = open_ids.pop()
        for following in edges.get(current, frozenset()):
            if following == goal:
                return True
            if following not in seen:
                seen.add(following)
                open_ids.append(following)
    return False
