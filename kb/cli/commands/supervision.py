"""`run`: run a program, and explain its death."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from kb.cli import terminal
from kb.environment import from_machine
from kb.errors import KbError, UsageError
from kb.integrations import supervise
from kb.opening import ask
from kb.render import brief, text

_ASKED_FOR = tuple(128 + int(number) for number in (signal.SIGINT, signal.SIGTERM))


def run(command: Sequence[str], *, full: bool, locale: str, entries: Sequence[Path]) -> int:
    """Exit code of the program. Only standard error gets a word of ours, and only if the program failed."""
    if not command:
        raise UsageError("nothing to run", "kb run -- python train.py")
    ended = supervise.run(command)
    if ended.code == 0 or (ended.code in _ASKED_FOR and "Traceback" not in ended.output):
        return ended.code
    try:
        _explain(ended.output, full=full, locale=locale, entries=entries)
    except KbError as error:  # the program's exit code says more than a broken index
        print(f"kb: {error}", file=sys.stderr)
    return ended.code


def _explain(output: str, *, full: bool, locale: str, entries: Sequence[Path]) -> None:
    answer = ask(entries, lambda base: base.match(output, from_machine(), locale=locale))
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    render = text.result if full else brief.block
    shown = render(answer, width=terminal.width(), color=color, locale=locale)
    if shown:
        print("\n" + shown, end="", file=sys.stderr, flush=True)
