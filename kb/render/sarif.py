"""Answers as SARIF 2.1.0, for code scanning and editors: one result for each match, at the innermost user frame.

OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

import kb
from kb.models.result import Frame, Match, Result
from kb.render import structured
from kb.render.page import safe
from kb.render.text import shown

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"root": "error", "wrapper": "note", "consequence": "warning"}


def dumps(answers: Sequence[tuple[str, Result]]) -> str:
    """One SARIF log for `(name of the input, answer)` pairs, as JSON text."""
    return structured.dumps(log(answers))


def log(answers: Sequence[tuple[str, Result]]) -> dict[str, Any]:
    """The same as plain data."""
    matches = [match for _, answer in answers for match in answer.matches]
    rules = {match.entry_id: _rule(match) for match in matches}
    places = {entry_id: place for place, entry_id in enumerate(rules)}
    results = [_result(name, answer, match, places) for name, answer in answers for match in answer.matches]
    driver = {"name": "provenfix", "semanticVersion": kb.__version__, "rules": list(rules.values())}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(match: Match) -> dict[str, Any]:
    steps = "\n".join(f"{place}. {fix.action} ({fix.why})" for place, fix in enumerate(match.fixes, start=1))
    rule: dict[str, Any] = {
        "id": match.entry_id,
        "name": match.entry_id,
        "shortDescription": {"text": safe(match.signature)},
        "fullDescription": {"text": safe(match.root_cause)},
        "help": {"text": safe(f"{match.root_cause}\n\n{steps}".strip())},
        "properties": {"tags": [match.entry_id.partition("/")[0], match.verification_tier]},
    }
    if match.url:
        rule["helpUri"] = match.url
    return rule


def _result(name: str, answer: Result, match: Match, places: Mapping[str, int]) -> dict[str, Any]:
    incident = answer.query.incidents[match.incident]
    said = [f"{shown(incident)}", *(f"Do first: {fix.action} ({fix.why})" for fix in match.fixes[:1])]
    said += [f"Do not: {caution.action}" for caution in match.dead_ends[:1]]
    return {
        "ruleId": match.entry_id,
        "ruleIndex": places[match.entry_id],
        "level": _LEVELS[match.role],
        "message": {"text": safe("\n".join(said))},
        "locations": [_location(incident.user_frame, name, match.line)],
        "properties": {"role": match.role, "why": safe(match.why), "ranks": list(incident.ranks)},
    }


def _location(frame: Frame | None, name: str, line: int) -> dict[str, Any]:
    """The user's own code; where the paste shows none of it, the line of the paste."""
    if frame is None:
        place = "standard-input" if name == "-" else uri(name)
        return {"physicalLocation": {"artifactLocation": {"uri": place}, "region": {"startLine": line}}}
    found: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri(frame.file)}}}
    if frame.line:
        found["physicalLocation"]["region"] = {"startLine": frame.line}
    if frame.function:
        found["logicalLocations"] = [{"name": safe(frame.function), "kind": "function"}]
    return found


def uri(file: str) -> str:
    """A file's URI reference: relative to the working directory where it lies below it, else absolute."""
    text = local(file)
    if PureWindowsPath(text).drive:
        return "file:///" + quote(text.replace("\\", "/"), safe="/:")
    return ("file://" if text.startswith("/") else "") + quote(text, safe="/")


def local(file: str, below: Iterable[Path] | None = None) -> str:
    """`file` relative to the working directory where it lies below it, else as it is."""
    path = PurePosixPath(file)
    for root in below if below is not None else [Path.cwd()]:
        if path.is_absolute() and path.is_relative_to(root.as_posix()):
            return str(path.relative_to(root.as_posix()))
    return file
