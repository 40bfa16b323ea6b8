"""`kb.install()`: after an uncaught exception's traceback, a short answer from the knowledge base.

The hooks that were there run first and unchanged. Nothing here ever raises, imports torch, or speaks when the
exception is unknown or the user pressed Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kb import api

_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]
_ThreadHook = Callable[[threading.ExceptHookArgs], Any]

_QUIET = (KeyboardInterrupt, SystemExit, GeneratorExit)
_lock = threading.Lock()
_installed: _Installed | None = None


class _Installed:
    """The hooks of one `install`, with what they stand in front of."""

    def __init__(self, locale: str) -> None:
        self.locale = locale
        self.active = True
        self.before: _Hook = sys.excepthook
        self.thread_before: _ThreadHook = threading.excepthook

    def hook(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.before(kind, error, trace)
        if self.active:
            explain(error, locale=self.locale)

    def thread_hook(self, args: threading.ExceptHookArgs) -> None:
        self.thread_before(args)
        if self.active and args.exc_value is not None:
            explain(args.exc_value, locale=self.locale)


def install(*, locale: str = "en") -> None:
    """Explain uncaught exceptions of the main thread and of others. Calling it twice changes nothing."""
    global _installed
    with _lock:
        if _installed is not None and _installed.active:
            _installed.locale = locale
            return
        _installed = _Installed(locale)
        sys.excepthook = _installed.hook
        threading.excepthook = _installed.thread_hook


def uninstall() -> None:
    """Take the hooks out again. Where another tool has hooked in since, ours stay in its chain and do nothing."""
    global _installed
    with _lock:
        if _installed is None:
            return
        _installed.active = False
        if sys.excepthook == _installed.hook:
            sys.excepthook = _installed.before
        if threading.excepthook == _installed.thread_hook:
            threading.excepthook = _installed.thread_before
        _installed = None


def explain(error: BaseException, *, locale: str = "en") -> None:
    """Print what is known of an exception on standard error; nothing if that is nothing. Never raises."""
    if isinstance(error, _QUIET):
        return
    try:
        text = answer(error, locale=locale)
        if text and sys.stderr is not None:
            sys.stderr.write("\n" + text)
            sys.stderr.flush()
    except Exception:
        if os.environ.get("KB_DEBUG"):
            import traceback

            traceback.print_exc()


def answer(error: BaseException, *, locale: str = "en") -> str:
    """The short answer for an exception raised here, empty if it is unknown."""
    from kb.render.brief import block

    stream = sys.stderr
    terminal = stream is not None and stream.isatty()
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return block(api.match(error, locale=locale), width=_width(), color=color, locale=locale)


def _width() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns
