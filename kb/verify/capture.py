"""Turns what an arm raised into text that may leave the machine: without secrets, local paths, or our own frames."""

from __future__ import annotations

import ast
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from kb.redact import redact
from kb.verify.claims import Claim, Raised, fold
from kb.verify.measure import WrongResult
from kb.verify.script import ScriptFailed

LIMIT = 16 * 1024
"""Bytes of a stored traceback."""
_HEAD, _AROUND = 4 * 1024, 2 * 1024
_MESSAGE = 4 * 1024

# The runner makes the package importable through a link, and frames name the link.
_OURS = (str(Path(__file__).parent), str(Path(__file__).resolve().parent))
_RUNNERS_FOLDERS = re.compile(
    r"(?<![^\s\"':=,()<>\[\]])[^\s\"':=,()<>\[\]]*kb-verify-\w{1,40}/(?:lib|\d{1,9}/\w{1,9})/?"
    # pytest's own temporary folders name whoever runs it.
    r"(?:pytest-of-[^/\s]{1,80}/pytest-\d{1,9}/)?"
)
_CHECKERS = ("torch/testing/", "numpy/testing/", "numpy/_utils/")
_PRINTED = re.compile(
    r"(?:^|[\s\]])((?:[A-Za-z_]\w{0,80}\.){0,8}[A-Z]\w{0,80}(?:Error|Exception|Interrupt|Exit|Warning)): ?(.*)"
)


def describe(error: BaseException, claim: Claim, script: Path) -> Raised:
    """What was raised, judged against the entry's own patterns.

    In a chain of exceptions the one that matches is described, else the last one raised.
    """
    text = cap(clean("".join(_format(error, script)), script), claim)
    if isinstance(error, ScriptFailed):
        return _printed(error, claim, script, text)
    chain = list(_chain(error))
    described = next((part for part in chain if _is_expected(part, claim, script)), None)
    described = described or next((part for part in chain if claim.matches(_line(part))), chain[0])
    return Raised(
        exception=type_name(described),
        message=_short(clean(message(described), script)),
        traceback=text,
        matched=claim.matches(_line(described)),
        named=claim.names(type_name(described)),
        assertion=_is_assertion(error, script),
        staged=_is_staged(described, script),
    )


def type_name(error: BaseException) -> str:
    """The class as a traceback prints it."""
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def message(error: BaseException) -> str:
    """`str(error)`, also for classes whose `__str__` fails."""
    try:
        return str(error)
    except Exception:
        return ""


def clean(text: str, script: Path) -> str:
    """Local paths shortened, secrets and home folders redacted."""
    for folder, short in _folders(script):
        text = text.replace(folder, short)
    text = _RUNNERS_FOLDERS.sub("", text)
    return redact(text, paths=True)


def cap(text: str, claim: Claim) -> str:
    """At most `LIMIT` bytes: the head, the tail, and the surroundings of the line that matches."""
    if len(text.encode()) <= LIMIT:
        return text
    head = _take(text, _HEAD)
    tail = _take_end(text, LIMIT - _HEAD - _AROUND - 200)
    middle = text[len(head) : len(text) - len(tail)]
    kept = "" if claim.matching_line(head) or claim.matching_line(tail) else _surroundings(middle, claim)
    left = len(middle) - len(kept)
    gap = f"\n[... {left} characters left out ...]\n"
    return f"{head}{gap}{kept}{gap if kept else ''}{tail}"


def _surroundings(text: str, claim: Claim) -> str:
    at = 0
    for line in text.splitlines(keepends=True):
        if claim.matches(line):
            return _take(text[max(0, at - _AROUND // 4) :], _AROUND)
        at += len(line)
    return ""


def _take(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def _take_end(text: str, size: int) -> str:
    return text.encode()[-size:].decode(errors="ignore")


def _short(text: str) -> str:
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]} [...]"


def _format(error: BaseException, script: Path) -> Iterator[str]:
    if isinstance(error, ScriptFailed):
        yield error.output
        return
    report = traceback.TracebackException(type(error), error, _from_script(error.__traceback__, script))
    _drop_our_frames(report, set())
    yield from report.format()


def _from_script(frames: TracebackType | None, script: Path) -> TracebackType | None:
    start = frames
    while start is not None and Path(start.tb_frame.f_code.co_filename) != script:
        start = start.tb_next
    return start or frames


def _drop_our_frames(report: traceback.TracebackException, seen: set[int]) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    kept = [frame for frame in report.stack if not frame.filename.startswith(_OURS)]
    report.stack = traceback.StackSummary.from_list(kept)
    for inner in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if inner is not None:
            _drop_our_frames(inner, seen)


def _folders(script: Path) -> Iterator[tuple[str, str]]:
    entry = script.parent
    yield f"{entry}/", ""
    yield f"{entry}\\", ""
    if sys.prefix != sys.base_prefix:
        yield sys.prefix, "/venv"
    # A throwaway environment borrows the packages of another one.
    for packages in sys.path:
        if Path(packages).name in ("site-packages", "dist-packages") and len(Path(packages).parents) > 2:
            yield packages, f"/venv/lib/{Path(packages).parent.name}/site-packages"
    for ours in _OURS:
        yield f"{Path(ours).parents[1]}/", ""
    if len(entry.parents) > 2:
        # entries/<domain>/<slug>: what lies above `entries` is the checkout.
        yield f"{entry.parents[2]}/", ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it wraps, and what it was raised from or while handling; last raised first."""
    waiting, seen = [error], set()
    while waiting:
        part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, BaseExceptionGroup):
            waiting.extend(part.exceptions)
        linked = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
        if linked is not None:
            waiting.append(linked)


def _line(error: BaseException) -> str:
    return f"{type_name(error)}: {message(error)}"


def _is_expected(error: BaseException, claim: Claim, script: Path) -> bool:
    return claim.matches(_line(error)) and claim.names(type_name(error)) and not _is_staged(error, script)


def _innermost(error: BaseException) -> tuple[str, int] | None:
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not frame.f_code.co_filename.startswith(_OURS):
            place = (frame.f_code.co_filename, line)
    return place


def _is_assertion(error: BaseException, script: Path) -> bool:
    """Whether a comparison of results failed: ours, the script's own `assert`, or a library's testing function."""
    if isinstance(error, WrongResult) or type(error).__name__ == "Failed":
        return True
    place = _innermost(error)
    if not isinstance(error, AssertionError) or place is None:
        return False
    file = place[0].replace("\\", "/")
    return Path(place[0]) == script or any(part in file for part in _CHECKERS)


def _is_staged(error: BaseException, script: Path) -> bool:
    """Whether a `raise` or `assert` written in the script made this exception."""
    place = _innermost(error)
    if place is None or Path(place[0]) != script:
        return False
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False
    asserted = isinstance(error, AssertionError)
    return any(
        (isinstance(node, ast.Raise) and node.exc is not None) or (asserted and isinstance(node, ast.Assert))
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= place[1] <= (node.end_lineno or node.lineno)
    )


def _printed(error: ScriptFailed, claim: Claim, script: Path, text: str) -> Raised:
    line = claim.matching_line(error.output)
    shown = line or _last_error(error.output) or str(error)
    parsed = _PRINTED.search(shown)
    return Raised(
        exception=parsed.group(1) if parsed else None,
        message=_short(clean(parsed.group(2) if parsed else shown, script)),
        traceback=text or str(error),
        matched=line is not None,
        # Output has no exception class that could be told for sure.
        named=True,
        assertion=False,
        staged=False,
    )


def _last_error(output: str) -> str | None:
    lines = [line for line in (fold(line) for line in output.splitlines()) if line]
    printed = [line for line in lines if _PRINTED.search(line)]
    return (printed or lines or [""])[-1] or None
