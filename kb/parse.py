"""Denoised lines to incidents: exceptions with type, message and frames, and the log lines around them.

Lines are first sorted by the stream they came from, so that interleaved ranks are read one after the other. Nothing
raises on junk: what is not understood stays a log line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kb import lazy
from kb.models.result import Frame, Incident, Line, Link
from kb.sourcecode import FLATTENED, without_literals

MESSAGE_LINES = 40
"""An exception's message ends at the latest after this many lines."""
MESSAGE_LENGTH = 4_000
"""Code points of a message that are kept."""

FOREIGN_LINES = 5
"""Lines that another program may have written between a frame and its source."""

_ORIGINAL = "Original Traceback (most recent call last):"
"""Written by torch above the traceback of a worker, inside the message of what it raises in the main process."""
_HEADER = lazy.pattern(r"^[\s+|]*(?:╭─+ )?Traceback \(most recent call last\)(?:[:]| ─+╮)?\s*$")
_LATE_HEADER = lazy.pattern(r"\bTraceback \(most recent call last\):\s*$")
"""A header behind what a logger said of it."""
_IPYTHON_HEADER = lazy.pattern(
    r"^\s*(?P<type>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*) {2,}Traceback \(most recent call last\)\s*$"
)
_CHAINS: tuple[tuple[str, Link], ...] = (
    ("The above exception was the direct cause of the following exception", "cause"),
    ("During handling of the above exception, another exception occurred", "context"),
)
_FRAMES = (
    lazy.pattern(r'^\s*File "(?P<file>[^"]{1,1000})", line (?P<line>\d{1,9})(?:, in (?P<function>.{1,300}))?\s*$'),
    lazy.pattern(r"^\s*File (?P<file>[^\s\"][^\"]{0,1000}?):(?P<line>\d{1,9})(?:, in (?P<function>.{1,300}))?\s*$"),
    lazy.pattern(
        r"^\s*(?P<file>Cell\s+In\s?\[[\d ]{1,8}\])(?:, line (?P<line>\d{1,9}))(?:, in (?P<function>.{1,300}))?\s*$"
    ),
    lazy.pattern(
        r"^(?P<file>(?:<ipython-input-[\w-]{1,60}>|/tmp/ipykernel_[\w/]{1,60}\.py|/tmp/ipython-input-[\w.-]{1,60}\.py)) in (?P<function>.{1,300}?)\s*$"
    ),
    lazy.pattern(
        r"^(?P<file>(?:/|~/|[A-Za-z]:[\\/]|\./|\.\./)[^:*?\"<>|]{1,1000}\.\w{1,4}) in (?P<function>(?:<cell line: \d{1,6}>|[\w<>.]{1,200})\(.{0,300}\)?)\s*$"
    ),
    lazy.pattern(
        r"^(?P<file>(?:/|~/|[A-Za-z]:[\\/]|\./|\.\./)[^:*?\"<>|]{1,1000}):(?P<line>\d{1,9}) in (?P<function>[\w<>.]{1,200})\s*$"
    ),
    lazy.pattern(r"^(?P<file>[\w./\\~-]{1,300}\.py):(?P<line>\d{1,9}): (?:in )?(?P<function>[\w<>.]{1,200})?\s*$"),
)
_RICH_SPLIT = lazy.pattern(r"^(?:/|~/|[A-Za-z]:[\\/]).{4,}$")
_EXCEPTION = lazy.pattern(r"^(?P<type>(?:[A-Za-z_]\w{0,80}\.){0,12}[A-Za-z_]\w{0,120})(?::(?:\s+(?P<message>.*))?)?$")
_TYPE = lazy.pattern(
    r"(?:Error|Exception|Interrupt|Exit|Unsupported|Failure|Fault|Timeout|Hit|Group|Mismatch|NotFound|Abort|Iteration)$"
)
_STANDALONE_TYPE = lazy.pattern(
    r"^(?:[a-z_]\w{0,80}\.){0,12}(?:_?[A-Z]\w{0,120}(?:Error|Exception|Unsupported|Interrupt)|Exception|KeyboardInterrupt|SystemExit"
    r"|(?:assertion|attribute|import|index|key|memory|name|runtime|type|value)Error)$"  # as typed by hand
)
_CODE = lazy.pattern(r"^\s*(?:-+>|❱|>)?\s*\d{1,6}(?:\s|$)")
_ARROW = lazy.pattern(r"^\s*(?:-+>|❱)")
_RAISES = lazy.pattern(r"\braise (?P<type>[A-Za-z_][\w.]{0,120})\([rfbRFB]{0,2}[\"'](?P<message>.{8,})$")
_CARETS = lazy.pattern(r"^[\s~^]+$")
_REPEATED = lazy.pattern(r"^\s*\[Previous line repeated \d+ more times?\]\s*$")
_RULE_LINE = lazy.pattern(r"^\s*[-=─╭╰╮╯*_]{4,}.*$")
_INSTALLED = lazy.pattern(r"(?:site|dist)-packages[/\\](?P<package>[A-Za-z_]\w*)")
_LIBRARY = lazy.pattern(
    r"(?:site|dist)-packages[/\\]|lib[/\\]python\d|[/\\]Lib[/\\](?!site)|^<frozen |[/\\]python\d+\.zip|^<string>$"
)


class Passage(NamedTuple):
    """Lines that are searched as one text, with white space folded."""

    lines: tuple[Line, ...]
    text: str

    def locate(self, offset: int) -> tuple[Line, int]:
        """The line and clean column on which code point `offset` of the folded text stands."""
        for start, line, column, length in _words(self.lines):
            if offset < start + length:
                return line, column + max(0, offset - start)
        last = self.lines[-1]
        return last, len(last.text)


def passage(lines: Sequence[Line]) -> Passage:
    """Fold `lines` into one searchable text. A word that was cut at the edge of the paste is joined again."""
    if not any(line.full for line in lines[:-1]):
        return Passage(tuple(lines), " ".join(" ".join(line.text for line in lines).split()))
    parts: list[str] = []
    end = 0
    for start, line, column, length in _words(lines):
        parts.append(" " * (start - end) + line.text[column : column + length])
        end = start + length
    return Passage(tuple(lines), "".join(parts))


def _words(lines: Iterable[Line]) -> Iterator[tuple[int, Line, int, int]]:
    """Each word's place in the folded text, its line, its column there, and its length."""
    end = 0
    joined = True
    for line in lines:
        for word in re.finditer(r"\S+", line.text):
            goes_on = joined and word.start() == 0 and end > 0
            start = end if end == 0 or goes_on else end + 1
            yield start, line, word.start(), len(word.group())
            end = start + len(word.group())
            joined = False
        joined = line.full


@dataclass(frozen=True, slots=True)
class Failure:
    """An incident with the text its patterns are searched in."""

    incident: Incident
    subject: Passage


@dataclass(frozen=True, slots=True)
class Parsed:
    """All that was understood: exceptions in the order of their lines, then everything else line by line."""

    failures: tuple[Failure, ...]
    log: tuple[Line, ...]
    frames: tuple[Frame, ...]
    """Every frame of the paste, also those whose exception was cut off."""


@dataclass(slots=True)
class _Open:
    """A traceback being read."""

    frames: list[Frame] = field(default_factory=list)
    ipython: bool = False
    rich: bool = False
    indent: int = 0
    source: Line | None = None
    """The source line of the innermost frame."""


def parse(lines: Sequence[Line]) -> Parsed:
    """Read denoised lines. Total: every line ends up in a failure, in a traceback's body, or in the log."""
    failures: list[Failure] = []
    log: list[Line] = []
    frames: list[Frame] = []
    for stream in _streams(lines):
        found, rest, calls = _Stream(stream).read(offset=len(failures))
        failures += found
        log += rest
        frames += calls
    ordered = sorted(log, key=lambda line: line.number)
    return Parsed(_folded(failures), tuple(without_literals(ordered)), tuple(frames))


def _streams(lines: Iterable[Line]) -> list[list[Line]]:
    streams: dict[str | None, list[Line]] = {}
    above: Line | None = None
    for line in lines:
        goes_on = above is not None and above.source and not line.source and _goes_on(above, line)
        streams.setdefault(above.source if above and goes_on else line.source, []).append(line)
        above = line
    return list(streams.values())


def _goes_on(above: Line, line: Line) -> bool:
    """Whether a line without prefix is the rest of the message above it, which was wrapped behind its prefix."""
    text = line.text.strip()
    if not text or line.stamped or line.severity or not (hit := _EXCEPTION.match(above.text.strip())):
        return False
    if not (hit["message"] and _STANDALONE_TYPE.match(hit["type"])) or _HEADER.match(text) or _chain(text):
        return False
    other = _EXCEPTION.match(text)
    return not (other and _STANDALONE_TYPE.match(other["type"])) and not any(one.match(text) for one in _FRAMES)


class _Stream:
    """Reads one stream from top to bottom."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.at = 0
        self.failures: list[Failure] = []
        self.log: list[Line] = []
        self.frames: list[Frame] = []
        self.open: _Open | None = None
        self.link: Link | None = None
        self.offset = 0
        self.carrier: int | None = None
        """The failure that quotes another process's traceback, which is about to be read."""

    def read(self, offset: int) -> tuple[list[Failure], list[Line], list[Frame]]:
        self.offset = offset
        while self.at < len(self.lines):
            self._step(self.lines[self.at])
        self._cut_off()
        return self.failures, self.log, self.frames

    def _cut_off(self) -> None:
        """A traceback whose last line was lost still shows what it was about to raise."""
        source = self.open.source if self.open else None
        if self.open is None or source is None or not (hit := _RAISES.search(source.text)):
            return
        name = hit["type"].rpartition(".")[2]
        if any(name in line.text for line in self.lines[self.at : self.at + MESSAGE_LINES]):
            return  # it was not lost: another program's line stands before it
        frames = tuple(self.open.frames)
        incident = _incident(source, hit["type"], hit["message"].rstrip("\"')"), frames)
        self.failures.append(Failure(incident, passage([source])))

    def _step(self, line: Line) -> None:
        text = line.text
        if not text.strip():
            self.at += 1
        elif _HEADER.match(text) or _IPYTHON_HEADER.match(text):
            self.carrier = None
            self.open = _Open(ipython=_IPYTHON_HEADER.match(text) is not None, rich="─" in text, indent=_indent(text))
            self.at += 1
        elif (link := _chain(text)) is not None:
            self.link = link
            self.at += 1
        elif text.rstrip().endswith("last):") and _LATE_HEADER.search(text) and text.strip() != _ORIGINAL:
            self.carrier = None
            self.open = _Open(indent=_indent(text))
            self.log.append(line)
            self.at += 1
        elif text.strip() == _ORIGINAL:
            self.carrier = len(self.failures) - 1 if self.failures else None
            self.open = _Open(indent=_indent(text))
            self.at += 1
        elif (frame := self._frame(text)) is not None:
            self._take_frame(frame, text)
        elif self._is_body(text):
            self.at += 1
        elif (hit := self._exception(text)) is not None:
            self._take_exception(line, hit)
        else:
            # A notebook's traceback ends with its exception; an odd location in it does not end it.
            if self.open is not None and not self.open.ipython and not _RULE_LINE.match(text):
                self._cut_off()
                self.open = None
            self.log.append(line)
            self.at += 1

    def _frame(self, text: str) -> Frame | None:
        for pattern in _FRAMES:
            if hit := pattern.match(text):
                groups = hit.groupdict()
                if (function := groups.get("function")) and FLATTENED.search(function):
                    return None  # the whole traceback on one line
                number = groups.get("line")
                return Frame(groups["file"], int(number) if number else None, groups.get("function"))
        if self.open is not None and self.open.rich and _RICH_SPLIT.match(text) and self.at + 1 < len(self.lines):
            joined = text + self.lines[self.at + 1].text  # Rich breaks a long location at the edge of its box
            for pattern in _FRAMES[5:6]:
                if hit := pattern.match(joined):
                    self.at += 1
                    return Frame(hit["file"], int(hit["line"]), hit["function"])
        return None

    def _take_frame(self, frame: Frame, text: str) -> None:
        if self.open is None:
            self.open = _Open(indent=max(0, _indent(text) - 2))
        self.open.frames.append(frame)
        self.open.source = None
        self.frames.append(frame)
        self.at += 1
        if not self.open.ipython and not self.open.rich and text.lstrip().startswith('File "'):
            self._skip_source(_indent(text))

    def _skip_source(self, indent: int) -> None:
        """The source line below a frame, which may hold anything, an error message included."""
        if self.at >= len(self.lines):
            return
        text = self.lines[self.at].text
        if not text.strip() or _HEADER.match(text) or self._frame(text) or _chain(text):
            return
        if indent > 0 and _indent(text) < indent and (foreign := self._foreign(indent)):
            # Another program wrote between the frame and its source, for example a linker.
            self.log += self.lines[self.at : self.at + foreign]
            self.at += foreign
            text = self.lines[self.at].text
        if self.open is not None:
            self.open.source = self.lines[self.at]
        if _indent(text) > indent:
            while (
                self.at < len(self.lines)
                and _indent(self.lines[self.at].text) > indent
                and self.lines[self.at].text.strip()
            ):
                if self._frame(self.lines[self.at].text):
                    return
                self.at += 1
        elif not (hit := _EXCEPTION.match(text.strip())) or not _TYPE.search(hit["type"]):
            self.at += 1  # indentation was lost on the way

    def _foreign(self, indent: int) -> int:
        """How many lines stand at the left edge before source that is indented as the frame above wants it."""
        for count, line in enumerate(self.lines[self.at : self.at + FOREIGN_LINES + 1]):
            if _indent(line.text) > indent and line.text.strip():
                return 0 if self._frame(line.text) else count
            if _indent(line.text) >= indent or self._frame(line.text) or _HEADER.match(line.text):
                return 0
        return 0

    def _is_body(self, text: str) -> bool:
        if _CARETS.match(text) or _REPEATED.match(text):
            return self.open is not None
        if self.open is None:
            return False
        if self.open.rich:
            # Inside the box everything but a location is source; the box may have lost its lower edge.
            self.open.rich = not text.startswith("╰")
            hit = _EXCEPTION.match(text.strip())
            return not (hit and _STANDALONE_TYPE.match(hit["type"]))
        if self.open.ipython and _CODE.match(text):
            if _ARROW.match(text):
                self.open.source = self.lines[self.at]
            return True
        return False

    def _exception(self, text: str) -> re.Match[str] | None:
        hit = _EXCEPTION.match(text.strip())
        if hit is None:
            return None
        name = hit["type"]
        last = name.rpartition(".")[2]
        if self.open is not None and self.open.frames and _indent(text) <= self.open.indent + 1:
            believable = bool(_TYPE.search(last)) or ("." in name and last[:1].isupper()) or last[:1].isupper()
            return hit if believable and not last.endswith("Warning") else None
        return hit if _STANDALONE_TYPE.match(name) and (":" in text or self.open is not None) else None

    def _take_exception(self, line: Line, hit: re.Match[str]) -> None:
        self.at += 1
        message = [line]
        while self.at < len(self.lines) and len(message) < MESSAGE_LINES and self._continues(message):
            message.append(self.lines[self.at])
            self.at += 1
        frames = tuple(self.open.frames) if self.open else ()
        first = hit["message"] or ""
        asserted = self.open.source if self.open and hit["type"] == "AssertionError" and not first else None
        if asserted is not None and len(message) == 1 and asserted.text.strip().startswith("assert"):
            # What was asserted is all that such an error says.
            first = asserted.text.strip()
            message.append(asserted)
        more = [] if message[-1] is asserted else message[1:]
        text = "\n".join([first, *(part.text for part in more)]).strip()[:MESSAGE_LENGTH]
        previous = self.offset + len(self.failures) - 1 if self.link and self.failures else None
        incident = _incident(line, hit["type"], text, frames)
        if previous is not None:
            incident = replace(incident, follows=previous, link=self.link)
        self.failures.append(Failure(incident, passage(message)))
        self._link_carrier()
        self.open = None
        self.link = None

    def _link_carrier(self) -> None:
        if self.carrier is None:
            return
        carrier = self.failures[self.carrier]
        origin = self.offset + len(self.failures) - 1
        self.failures[self.carrier] = replace(carrier, incident=replace(carrier.incident, follows=origin, link="cause"))
        self.carrier = None

    def _continues(self, message: list[Line]) -> bool:
        line = self.lines[self.at]
        text = line.text
        if not text.strip():
            # Some messages hold an empty line before indented detail, as `Weights only load failed.` does.
            following = self.lines[self.at + 1].text if self.at + 1 < len(self.lines) else ""
            return len(message) == 1 and following[:1] in {" ", "\t"} and not self._frame(following)
        if (
            line.severity is not None
            or (line.stamped and not message[0].stamped)
            or _RULE_LINE.match(text)
            or text.strip() == _ORIGINAL
            or _HEADER.match(text)
            or _IPYTHON_HEADER.match(text)
        ):
            return False
        if _chain(text) is not None or self._frame(text) is not None:
            return False
        hit = _EXCEPTION.match(text.strip())
        return not (hit and _STANDALONE_TYPE.match(hit["type"]))


def _incident(line: Line, name: str, message: str, frames: tuple[Frame, ...]) -> Incident:
    return Incident(
        kind="exception",
        type=name,
        message=message,
        line=line.number,
        frames=frames,
        ranks=(line.source,) if line.source else (),
        package=_package(name, frames),
        user_frame=_user_frame(frames),
    )


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _chain(text: str) -> Link | None:
    stripped = text.strip()
    return next((link for sentence, link in _CHAINS if stripped.startswith(sentence)), None)


def _package(name: str, frames: Sequence[Frame]) -> str | None:
    for frame in reversed(frames):
        if hit := _last_installed(frame.file):
            return hit
        if not _LIBRARY.search(frame.file):
            break
    top, dot, _ = name.partition(".")
    return top if dot else None


def _last_installed(file: str) -> str | None:
    hits = _INSTALLED.findall(file)
    return hits[-1] if hits else None


def _user_frame(frames: Sequence[Frame]) -> Frame | None:
    return next((frame for frame in reversed(frames) if not _LIBRARY.search(frame.file)), None)


def _folded(failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """Copies of one failure become one, with every rank that had it; order is that of first lines."""
    kept: dict[tuple[object, ...], int] = {}
    moved: dict[int, int] = {}
    folded: list[Failure] = []
    for index in sorted(range(len(failures)), key=lambda i: failures[i].incident.line):
        incident = failures[index].incident
        last = incident.frames[-1] if incident.frames else None
        key = (
            incident.type and incident.type.rpartition(".")[2],
            re.sub(r"\d+", "0", incident.message[:400]),
            (last.file, last.function) if last else None,
            incident.link,
        )
        bare = (key[0], key[1])
        found = kept.get(key, kept.get(bare) if last is None else None)
        if found is None:
            kept[key] = moved[index] = len(folded)
            kept.setdefault(bare, len(folded))
            folded.append(failures[index])
        else:
            moved[index] = found
            first = folded[found]
            ranks = tuple(dict.fromkeys(first.incident.ranks + incident.ranks))
            folded[found] = replace(first, incident=replace(first.incident, ranks=ranks))
    return tuple(_relinked(failure, position, moved) for position, failure in enumerate(folded))


def _relinked(failure: Failure, position: int, moved: dict[int, int]) -> Failure:
    follows = failure.incident.follows
    if follows is None:
        return failure
    target = moved.get(follows)
    if target is None or target == position:
        return replace(failure, incident=replace(failure.incident, follows=None, link=None))
    return replace(failure, incident=replace(failure.incident, follows=target))
