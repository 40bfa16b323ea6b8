"""Answers as GitHub Actions workflow commands: one annotation for each match.

GitHub Docs, "Workflow commands for GitHub Actions": `%`, line breaks, and in properties `:` and `,` are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kb.models.result import Match, Result
from kb.render.page import safe
from kb.render.sarif import local
from kb.render.text import shown

_COMMANDS = {"root": "error", "consequence": "warning", "wrapper": "notice"}


def commands(answers: Sequence[tuple[str, Result]]) -> str:
    """The commands, one a line; a notice where nothing was recognised."""
    lines = []
    for name, answer in answers:
        lines += [_annotation(answer, match) for match in answer.matches]
        if answer.abstained:
            lines.append(f"::notice title=kb::{_data(f'{name}: no entry knows this error')}")
    return "".join(line + "\n" for line in lines)


def _annotation(answer: Result, match: Match) -> str:
    incident = answer.query.incidents[match.incident]
    properties = {"title": f"{match.entry_id} ({match.role})"}
    if frame := incident.user_frame:
        properties = {"file": local(frame.file), **({"line": str(frame.line)} if frame.line else {}), **properties}
    said = [shown(incident)]
    said += [f"Do first: {fix.action} ({fix.why})" for fix in match.fixes[:1]]
    said += [f"Do not: {caution.action}" for caution in match.dead_ends[:1]]
    return command(_COMMANDS[match.role], properties, "\n".join(said))


def command(name: str, properties: Mapping[str, str], said: str) -> str:
    """One workflow command; nothing in its parts can end it or begin another."""
    shown_properties = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name} {shown_properties}::{_data(said)}"


def _data(text: str) -> str:
    return safe(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
