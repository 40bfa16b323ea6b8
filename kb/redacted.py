"""Answers without the secrets of the paste they quote."""

from __future__ import annotations

from dataclasses import replace

from kb.models.result import Frame, Incident, Result
from kb.redact import redact


def redacted(answer: Result, *, paths: bool = False) -> Result:
    """An answer whose quotations of the paste hold no secrets; with `paths` no home folders either."""

    def frame(one: Frame) -> Frame:
        return replace(one, file=redact(one.file, paths))

    def incident(one: Incident) -> Incident:
        return replace(
            one,
            message=redact(one.message, paths),
            frames=tuple(map(frame, one.frames)),
            user_frame=frame(one.user_frame) if one.user_frame else None,
        )

    query = replace(answer.query, incidents=tuple(map(incident, answer.query.incidents)))
    return replace(answer, query=query)
