"""`show`, `search`, `list`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kb.cli import terminal
from kb.errors import UsageError
from kb.index import Hit
from kb.localize import LOCALES, localized
from kb.opening import ask
from kb.render import structured
from kb.render.page import cells, safe
from kb.render.words import TIERS


def _format(name: str) -> bool:
    if name not in ("text", "json"):
        raise UsageError(f"--format {name}: unknown", "text or json")
    return name == "json"


def show(entry_id: str, *, format: str, locale: str, reported: bool, entries: Sequence[Path]) -> None:
    """Print one record. Raises UnknownEntryError."""
    as_json = _format(format)
    if locale not in LOCALES:
        raise UsageError(f"--locale {locale}: unknown", f"one of {', '.join(LOCALES)}")
    record = dict(ask(entries, lambda base: base.get(entry_id)))
    if reported:
        claims = record.get("reported")
        if not claims:
            raise UsageError(f"{entry_id}: carries no imported record", "leave out --reported")
        terminal.write(structured.dumps(claims["record"]))
    elif as_json:
        terminal.write(structured.dumps(record))
    else:
        from kb.render import text

        terminal.write(
            text.record(localized(record, locale), width=terminal.width(), color=terminal.color(), locale=locale)
        )


def search(words: str, *, domain: str | None, limit: int, format: str, entries: Sequence[Path]) -> int:
    """Print hits, best first; 1 if there are none."""
    as_json = _format(format)
    hits = ask(entries, lambda base: base.search(words, limit=limit, domain=domain))
    _print(hits, as_json)
    return 0 if hits else 1


def listing(*, domain: str | None, tier: str | None, tag: str | None, format: str, entries: Sequence[Path]) -> None:
    """Print all entries that fit."""
    if tier is not None and tier not in TIERS:
        raise UsageError(f"--tier {tier}: unknown", f"one of {', '.join(TIERS)}")
    as_json = _format(format)
    _print(ask(entries, lambda base: base.index.list(domain=domain, tier=tier, tag=tag)), as_json)


def _print(hits: Sequence[Hit], as_json: bool) -> None:
    if as_json:
        terminal.write(
            structured.dumps([{"id": h.entry_id, "verification_tier": h.tier, "signature": h.signature} for h in hits])
        )
        return
    left = max((cells(hit.entry_id) for hit in hits), default=0)
    # Cut to the terminal for eyes; whole for programs.
    room = max(20, terminal.width() - left - 6) if sys.stdout.isatty() else sys.maxsize
    for hit in hits:
        signature = " ".join(safe(hit.signature).split())
        signature = signature if len(signature) <= room else signature[: room - 1] + "…"
        terminal.write(f"{TIERS[hit.tier][0]} {safe(hit.entry_id):<{left}}  {signature}\n")
