"""`%load_ext kb`: in IPython and Jupyter, an answer below each traceback, and `%kb` for the last one in full."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kb import api

if TYPE_CHECKING:
    from kb.models.result import Result

_WIDTH = 100
_before: dict[int, tuple[Any, Any]] = {}
"""By shell: the exceptions and the handler that were set before ours."""


class Answer:
    """An answer that a notebook shows as Markdown and a terminal as text."""

    def __init__(self, result: Result, *, brief: bool = False) -> None:
        self.result = result
        self.brief = brief

    def _repr_markdown_(self) -> str:
        from kb.render import markdown

        return markdown.fenced(repr(self)) if self.brief else markdown.result(self.result)

    def __repr__(self) -> str:
        from kb.render import brief, text

        render = brief.block if self.brief else text.result
        return render(self.result, width=_WIDTH, color=False)


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext kb`. The traceback itself is shown by the shell, in its own colours and mode."""
    if id(shell) in _before:
        return
    _before[id(shell)] = (shell.custom_exceptions, shell.CustomTB)
    shell.set_custom_exc((Exception,), _show)
    shell.register_magic_function(_magic, magic_kind="line", magic_name="kb")


def unload_ipython_extension(shell: Any) -> None:
    """Called by `%unload_ext kb`."""
    if id(shell) in _before:
        shell.custom_exceptions, shell.CustomTB = _before.pop(id(shell))
        shell.magics_manager.magics["line"].pop("kb", None)


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, trace: Any, tb_offset: int | None = None
) -> None:
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    try:
        result = api.match(error)
        if result.matches:
            from IPython import display

            show: Any = display.display
            show(Answer(result, brief=True))
    except Exception:  # an answer must never stand between a person and a traceback
        return


def _magic(line: str = "") -> Answer | None:
    """`%kb`: the full answer for the last exception. `%kb ID`: one entry."""
    if line.strip():
        from kb.render import text

        print(text.record(api.get(line.strip()), width=_WIDTH, color=False))
        return None
    error = getattr(sys, "last_value", None)
    if error is None:
        print("kb: there was no exception yet")
        return None
    return Answer(api.match(error))
