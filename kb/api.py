"""The Python interface: ask about a text or an exception, look entries up, search them.

All of it may be called from several threads at once. A look-up takes about a millisecond of CPU, a large log longer;
from asynchronous code call `await asyncio.to_thread(kb.match, text)`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from kb.environment import from_file, from_machine
from kb.errors import UsageError
from kb.index import Hit
from kb.knowledge import KnowledgeBase
from kb.localize import LOCALES, localized
from kb.models.result import Environment, Result
from kb.opening import open_base

Known = Literal["auto", "machine", "none"] | Environment | str | PathLike[str]
"""What is known of the environment beyond the paste: see `match`."""

_lock = Lock()
_base: KnowledgeBase | None = None
_machine: Environment | None = None


def open(entries: str | PathLike[str] | Iterable[str | PathLike[str]] = ()) -> KnowledgeBase:
    """The packaged entries with folders of a team's own laid over them, `KB_ENTRIES` included.

    The index is built on first use and whenever entries changed. Raises UsageError if a folder is missing.

    >>> base = kb.open()
    >>> base.match("nothing of ours").abstained
    True
    """
    folders = [entries] if isinstance(entries, (str, PathLike)) else entries
    return open_base([Path(folder) for folder in folders])


def match(
    paste: str | BaseException, *, environment: Known = "auto", locale: str = "en", base: KnowledgeBase | None = None
) -> Result:
    """Ranked fixes for a pasted traceback or log, or for an exception object. Never raises on any text.

    `environment` is what is known beyond the text, which wins where it says something: `"auto"` takes this machine for
    an exception, which happened here, and nothing for a text, which may be from anywhere; `"machine"` and `"none"`
    decide it; an `Environment` or the path of a JSON file is taken as it is. `base` is what `open` gave; by default
    the packaged entries, opened once.

    >>> answer = kb.match("KeyError: 'rows'")
    >>> answer.abstained, answer.query.incidents[0].type
    (True, 'KeyError')
    >>> try:
    ...     raise RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16")
    ... except RuntimeError as error:
    ...     kb.match(error).matches[0].entry_id
    'pytorch/linear-dtype-mismatch'
    """
    _check(locale)
    known = _known(environment, here=isinstance(paste, BaseException))
    text = paste if isinstance(paste, str) else formatted(paste)
    return (base or default()).match(text, known, locale=locale)


def get(entry_id: str, *, locale: str = "en", base: KnowledgeBase | None = None) -> dict[str, Any]:
    """The published record of an id or an alias, a copy of your own. Raises UnknownEntryError.

    >>> kb.get("pytorch/linear-dtype-mismatch")["recoverability"]
    'in_process'
    """
    from copy import deepcopy

    _check(locale)
    return deepcopy(dict(localized((base or default()).get(entry_id), locale)))


def search(
    words: str, *, limit: int = 20, domain: str | None = None, base: KnowledgeBase | None = None
) -> Sequence[Hit]:
    """Entries about these words, best first; empty if there are none.

    >>> kb.search("unscale float16 gradients")[0].entry_id
    'pytorch/gradscaler-unscale-fp16-gradients'
    """
    return (base or default()).search(words, limit=limit, domain=domain)


def default() -> KnowledgeBase:
    """The packaged entries and those of `KB_ENTRIES`, opened when first asked for and then kept."""
    global _base
    with _lock:
        if _base is None:
            _base = open_base()
        return _base


def formatted(error: BaseException) -> str:
    """The traceback as Python prints it, or its last line if the exception cannot be printed."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return f"{type(error).__module__}.{type(error).__qualname__}"


def _check(locale: str) -> None:
    if locale not in LOCALES:
        raise UsageError(f"locale {locale!r}: unknown", f"one of {', '.join(LOCALES)}")


def _known(choice: Known, *, here: bool) -> Environment:
    if isinstance(choice, Environment):
        return choice
    if choice == "none" or (choice == "auto" and not here):
        return Environment()
    if choice in ("auto", "machine"):
        return _this_machine()
    return from_file(Path(choice))


def _this_machine() -> Environment:
    global _machine
    with _lock:
        if _machine is None:
            _machine = from_machine()
        return _machine
