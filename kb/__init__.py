"""provenfix: a knowledge base of CUDA, PyTorch and Hugging Face errors whose fixes were proven by running them.

    >>> import kb
    >>> answer = kb.match("RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16")
    >>> answer.matches[0].entry_id
    'pytorch/linear-dtype-mismatch'

Importing this package is cheap: it loads nothing of itself, and never torch. What `__all__` names is loaded when it is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Environment",
    "KbError",
    "KnowledgeBase",
    "Match",
    "Result",
    "__version__",
    "get",
    "install",
    "load_ipython_extension",
    "match",
    "open",
    "search",
    "uninstall",
    "unload_ipython_extension",
]

if TYPE_CHECKING:
    from kb.api import get, match, open, search
    from kb.errors import KbError
    from kb.integrations.hooks import install, uninstall
    from kb.integrations.notebook import load_ipython_extension, unload_ipython_extension
    from kb.knowledge import KnowledgeBase
    from kb.models.result import Environment, Match, Result

_HOMES = {
    **dict.fromkeys(("get", "match", "open", "search"), "kb.api"),
    "KbError": "kb.errors",
    **dict.fromkeys(("install", "uninstall"), "kb.integrations.hooks"),
    **dict.fromkeys(("load_ipython_extension", "unload_ipython_extension"), "kb.integrations.notebook"),
    "KnowledgeBase": "kb.knowledge",
    **dict.fromkeys(("Environment", "Match", "Result"), "kb.models.result"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
