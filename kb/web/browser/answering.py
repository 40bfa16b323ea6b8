"""Runs inside the browser: opens the published index and answers pastes as JSON."""

import json

from kb.index import Index
from kb.knowledge import KnowledgeBase
from kb.redacted import redacted
from kb.render import compact, structured

_base = KnowledgeBase(Index.open("/kb.sqlite", stamp=None))


def answer(text: str, locale: str = "en") -> str:
    """The short answer, as `kb mcp` gives it, for showing."""
    return json.dumps(compact.answer(redacted(_base.match(text, locale=locale)), full=True))


def whole(text: str) -> str:
    """The answer of `kb match --format json`."""
    return structured.dumps(redacted(_base.match(text)), compact=True)
