"""Source code as HTML with classes, and the style sheets for them: strict content policies allow no inline styles."""

from __future__ import annotations

from functools import lru_cache

from markupsafe import Markup
from pygments import highlight as _highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import BashLexer, PythonLexer

_FORMAT = HtmlFormatter(cssclass="code", nobackground=True)


@lru_cache(maxsize=1024)
def python(source: str) -> Markup:
    """Python source, escaped and marked up."""
    return Markup(_highlight(source, PythonLexer(stripnl=False), _FORMAT))


@lru_cache(maxsize=1024)
def shell(source: str) -> Markup:
    """Shell commands, escaped and marked up."""
    return Markup(_highlight(source, BashLexer(stripnl=False), _FORMAT))


@lru_cache(maxsize=1)
def styles() -> str:
    """Style sheet for both colour schemes."""
    light = HtmlFormatter(style="default", nobackground=True).get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark", nobackground=True).get_style_defs(".code")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
