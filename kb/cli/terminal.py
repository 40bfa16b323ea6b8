"""Where output goes and how it looks: data on standard output, everything else on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

_PLAIN_WIDTH = 100


def write(text: str) -> None:
    """Data to standard output; what its encoding cannot carry becomes `?`."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))


def warn(messages: Iterable[str]) -> None:
    """Warnings to standard error."""
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)


def color() -> bool:
    """Styles only on a terminal that wants them (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Columns of the terminal, 100 where there is none."""
    try:
        return int(os.environ.get("COLUMNS", "")) or _PLAIN_WIDTH
    except ValueError:
        pass
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _PLAIN_WIDTH
    except (OSError, ValueError, AttributeError):
        return _PLAIN_WIDTH
