"""Show a published record in another language where the entry carries it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOCALES = ("en", "zh")


def localized(record: Mapping[str, Any], locale: str) -> dict[str, Any]:
    """A copy of `record` whose shown fields are in `locale`; fields without a translation stay as they are.

    Code, messages and measured values are never translated.
    """
    shown = dict(record)
    if locale != "zh":
        return shown
    shown["root_cause"] = record.get("root_cause_zh") or record["root_cause"]
    for field, target in (("workarounds", "action"), ("dead_ends", "action")):
        lines = record.get(f"{field}_zh") or ()
        items = record.get(field) or ()
        if len(lines) == len(items):
            shown[field] = [{**item, target: line or item[target]} for item, line in zip(items, lines, strict=True)]
    return shown
