"""What an entry claims, and whether one run of an arm bears it out. Pure; standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPRODUCE, REFUTE, WORKAROUND, DEAD_END = "reproduce", "refute", "workaround", "dead_end"
MARKERS = {"reproduces": REPRODUCE, "refutes": REFUTE, "workaround": WORKAROUND, "dead_end": DEAD_END}

WINDOW = 3
"""Printed messages may wrap: this many neighbouring lines are also searched as one."""


def fold(text: str) -> str:
    """One line with single spaces, the subject that patterns are written for."""
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Claim:
    """The part of `entry.json` that arms are judged by."""

    entry: str
    patterns: tuple[re.Pattern[str], ...]
    exceptions: tuple[str, ...]
    workarounds: tuple[str, ...]
    dead_ends: tuple[str, ...]

    def matches(self, text: str) -> bool:
        """Whether one of the entry's patterns is found in the folded text."""
        subject = fold(text)
        return any(pattern.search(subject) for pattern in self.patterns)

    def names(self, exception: str) -> bool:
        """Whether the entry lists this exception class, by its last component; true if it lists none."""
        return not self.exceptions or exception.rpartition(".")[2] in self.exceptions

    def matching_line(self, output: str) -> str | None:
        """First printed line, or window of lines folded to one, in which a pattern is found."""
        lines = [line for line in (fold(line) for line in output.splitlines()) if line]
        for line in lines:
            if self.matches(line):
                return line
        for start in range(len(lines)):
            window = " ".join(lines[start : start + WINDOW])
            if self.matches(window):
                return window
        return None


def read_claim(path: Path) -> Claim:
    """The claim of an `entry.json`. Raises ValueError with the file's name if it cannot be used."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sources = [record["regex"], *(variant["regex"] for variant in record.get("variants", ()))]
        return Claim(
            entry=str(record["id"]),
            # RE2's classes are ASCII; this flag makes the standard library agree with it.
            patterns=tuple(re.compile(source, re.ASCII) for source in sources),
            exceptions=tuple(name.rpartition(".")[2] for name in record.get("exceptions", ())),
            workarounds=tuple(fix["id"] for fix in record.get("workarounds", ())),
            dead_ends=tuple(end["id"] for end in record.get("dead_ends", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise ValueError(f"{path}: not a usable entry: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Raised:
    """What an arm raised."""

    exception: str | None
    message: str
    traceback: str
    matched: bool
    """The entry's patterns were found."""
    named: bool
    """The exception class is one the entry lists."""
    assertion: bool
    """The script's own check of a result failed, not the program."""
    staged: bool
    """The script itself has a `raise` statement there, so the library showed nothing."""

    @property
    def expected(self) -> bool:
        """Whether this is the entry's error."""
        return self.matched and self.named and not self.staged


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome and, where it needs one, its reason."""

    outcome: str
    reason: str | None = None


def judge(arm: str, raised: Raised | None, control_arm: str | None) -> Verdict:
    """Outcome of an arm that ran to its end or raised.

    `control_arm` says whether the entry's error is claimed (`reproduce`) or its absence (`refute`).
    """
    if arm == REPRODUCE:
        return _reproduce(raised)
    if arm == REFUTE:
        return _refute(raised)
    if arm == WORKAROUND:
        return _workaround(raised, control_arm)
    return _dead_end(raised)


def _reproduce(raised: Raised | None) -> Verdict:
    if raised is None:
        return Verdict("not_reproduced", "no error was raised")
    if raised.expected:
        return Verdict("reproduced")
    return Verdict("not_reproduced", _mismatch(raised))


def _refute(raised: Raised | None) -> Verdict:
    if raised is None:
        return Verdict("not_reproduced")
    if raised.expected:
        return Verdict("reproduced", "the error that was refuted came after all")
    if raised.assertion:
        return Verdict("wrong_result", fold(raised.message) or "a check of the result failed")
    return Verdict("fails_differently", _mismatch(raised))


def _workaround(raised: Raised | None, control_arm: str | None) -> Verdict:
    if raised is None:
        return Verdict("works_without_fix" if control_arm == REFUTE else "fixed")
    if raised.assertion:
        return Verdict("wrong_result", fold(raised.message) or "a check of the result failed")
    return Verdict("not_fixed", "the entry's error is still raised" if raised.expected else _mismatch(raised))


def _dead_end(raised: Raised | None) -> Verdict:
    if raised is None:
        return Verdict("works", "no error was raised")
    if raised.expected:
        return Verdict("still_fails")
    if raised.assertion:
        return Verdict("fails_differently", fold(raised.message) or "a check of the result failed")
    return Verdict("fails_differently", _mismatch(raised))


def _mismatch(raised: Raised) -> str:
    what = fold(f"{raised.exception or 'output'}: {raised.message}")[:300]
    if raised.staged:
        return f"the script raised it itself, which shows nothing: {what}"
    if raised.matched:
        return f"the message matches, but the entry does not list this exception class: {what}"
    return f"something else was raised: {what}"


def control_outcome(outcomes: Iterable[str]) -> str | None:
    """The control of a configuration from its reproduce (or refute) trials: the worst that ran, else skipped."""
    seen = list(outcomes)
    ran = [outcome for outcome in seen if outcome != "skipped"]
    for outcome in ran:
        if outcome not in ("reproduced", "not_reproduced"):
            return outcome
    if len(set(ran)) > 1:
        return "not_reproduced"
    return ran[0] if ran else (seen[0] if seen else None)


def contradiction(arm: str, outcome: str, control: str | None, control_arm: str | None) -> str | None:
    """Why this outcome contradicts the entry, or None if its claim held, or if it was skipped.

    `control_arm` is None where nothing reproduces or refutes the error in this configuration. A control that merely
    was not selected for this run (`control` None) contradicts nothing.
    """
    if outcome == "skipped":
        return None
    if outcome in ("timed_out", "crashed"):
        return f"the arm {outcome.replace('_', ' ')}"
    if arm == REPRODUCE:
        return None if outcome == "reproduced" else "the error was not reproduced"
    if arm == REFUTE:
        return None if outcome == "not_reproduced" else "the refutation did not hold"
    if control_arm is None:
        return "nothing reproduces the error in this configuration, so it proves nothing"
    wanted = "reproduced" if control_arm == REPRODUCE else "not_reproduced"
    if control is not None and control != wanted:
        return f"its control is {control.replace('_', ' ')}, so it proves nothing"
    if arm == WORKAROUND:
        held = "fixed" if control_arm == REPRODUCE else "works_without_fix"
        return None if outcome == held else "the fix did not hold"
    if control_arm == REFUTE:
        return "the error that was refuted came after all" if outcome == "still_fails" else None
    return "the dead end works" if outcome == "works" else None
