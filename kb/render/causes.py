"""Which causes a fix is for. An error often has several, and a fix of another cause does not help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kb.models.result import Fix

Cause = Mapping[str, Any]


def told_apart(causes: Sequence[Cause], fixes: Sequence[Fix]) -> Sequence[Cause]:
    """Causes worth naming: none where every fix is for all of them."""
    return causes if any(meant(fix, causes) for fix in fixes) else ()


def meant(fix: Fix, causes: Sequence[Cause]) -> tuple[str, ...]:
    """Ids of the causes a fix is for, in the entry's order; empty if it is for all of them."""
    wanted = tuple(cause["id"] for cause in causes if cause["id"] in fix.addresses)
    return () if len(wanted) == len(causes) else wanted


def gist(cause: Cause) -> str:
    """The first sentence of a cause."""
    head, stop, _ = cause["summary"].partition(". ")
    return f"{head}." if stop else str(cause["summary"])
