"""Order the fixes of a recognised entry, and say in words why each stands where it does.

What applies to the known environment comes first, then the lower bound of measured success, then root-cause fixes,
then the cheaper one. Pure functions over published records (plain dictionaries, as the index holds them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kb.environment import applies
from kb.models.result import Caution, Environment, Fix

_KINDS = {"root_cause": 0, "configuration": 1, "upgrade": 2, "symptom": 3, "hardware": 4}
_KIND_WORDS = {
    "root_cause": "removes the cause",
    "configuration": "a configuration change",
    "upgrade": "an upgrade",
    "symptom": "treats the symptom",
    "hardware": "needs other hardware",
}
_ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


def fixes(record: Mapping[str, Any], environment: Environment) -> tuple[Fix, ...]:
    """Ranked fixes of one published record."""
    verdicts = {item["id"]: applies(item.get("applies_when"), environment) for item in record["workarounds"]}
    ordered = sorted(record["workarounds"], key=lambda item: _key(item, verdicts[item["id"]][0]))
    return tuple(_fix(item, place, verdicts[item["id"]], record) for place, item in enumerate(ordered, start=1))


def _key(item: Mapping[str, Any], applies_here: bool | None) -> tuple[Any, ...]:
    measured = item.get("measured")
    worked = bool(measured and measured["k"])
    standing = 0 if worked else 2 if measured or item.get("state") == "refuted" else 1
    cuda = 0 if measured and measured["device"] == "cuda" else 1
    return (
        applies_here is False,
        standing,
        -measured["low"] if worked and measured else 0.0,
        cuda,
        _KINDS.get(item["kind"], 9),
        _cost_class(measured),
        item["id"],
    )


def _cost_class(measured: Mapping[str, Any] | None) -> int:
    """Step times within a factor of about one and a half are alike: timing noise must not order fixes."""
    seconds = (measured or {}).get("step_seconds") or 0.0
    return round(math.log(seconds, 1.5)) if seconds > 0 else -100


def _fix(item: Mapping[str, Any], place: int, verdict: tuple[bool | None, str], record: Mapping[str, Any]) -> Fix:
    applies_here, words = verdict
    measured = item.get("measured")
    reasons = [rate_words(measured) if measured else state_words(item), _KIND_WORDS.get(item["kind"], item["kind"])]
    if applies_here is False:
        reasons.insert(0, f"does not apply here: {words}")
    elif applies_here:
        reasons.append(f"applies here: {words}")
    cost = cost_words(measured)
    reasons.append(cost or "no cost measured")
    return Fix(
        id=item["id"],
        action=item["action"],
        how=item["how"],
        kind=item["kind"],
        addresses=tuple(item.get("addresses") or ()),
        applies=applies_here,
        why=f"{ordinal(place)}: " + ", ".join(reasons),
        state=item["state"],
        measured=_measured(measured),
        reported=_reported(record, "workarounds", "success_rate", item),
        trade_off=item.get("trade_off") or "",
        condition=item.get("condition") or "",
        cost=cost,
        verification=_verification(record, item),
        sources=tuple(item.get("sources") or ()),
    )


def cautions(record: Mapping[str, Any]) -> tuple[Caution, ...]:
    """Dead ends of one published record, those shown to fail first."""
    order = {"measured": 0, "unmeasured": 1, "unverifiable": 1, "stale": 2, "refuted": 3}
    ordered: Sequence[Mapping[str, Any]] = sorted(
        record.get("dead_ends") or (), key=lambda item: order.get(item["state"], 1)
    )
    return tuple(
        Caution(
            id=item["id"],
            action=item["action"],
            why_fails=item["why_fails"],
            state=item["state"],
            why=(f"failed in {rate_words(item['measured'])}" if item.get("measured") else state_words(item)),
            measured=_measured(item.get("measured")),
            reported=_reported(record, "dead_ends", "fail_rate", item),
            condition=item.get("condition") or "",
            verification=_verification(record, item),
            sources=tuple(item.get("sources") or ()),
        )
        for item in ordered
    )


def ordinal(place: int) -> str:
    """1st, 2nd, 3rd, 4th …"""
    return _ORDINALS.get(place, f"{place}th")


def rate_words(measured: Mapping[str, Any]) -> str:
    """`24 of 24 on H100 (95 %: 0.86-1.00)`."""
    where = ", ".join(dict.fromkeys(name.split(",")[0] for name in measured["environments"])) or measured["device"]
    return f"{measured['k']} of {measured['n']} on {where} (95 %: {measured['low']:.2f}–{measured['high']:.2f})"


def state_words(item: Mapping[str, Any]) -> str:
    """The state of a claim without a rate, with its reason."""
    words = str(item["state"]).replace("_", " ")
    reason = item.get("state_reason") or ""
    return f"{words} ({reason})" if reason and reason != words else words


def cost_words(measured: Mapping[str, Any] | None) -> str | None:
    """Step time and peak memory, None if neither was measured."""
    if not measured:
        return None
    parts = []
    if seconds := measured.get("step_seconds"):
        parts.append(f"{seconds * 1000:.3g} ms a step")
    if peak := measured.get("peak_bytes"):
        parts.append(f"{peak / 2**20:.3g} MiB at its peak")
    return ", ".join(parts) or None


def _measured(measured: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not measured:
        return None
    keys = ("k", "n", "low", "high", "environments", "device", "last_run", "step_seconds", "peak_bytes")
    return {key: measured.get(key) for key in keys}


def _verification(record: Mapping[str, Any], item: Mapping[str, Any]) -> str | None:
    reference = item.get("verification")
    return f"entries/{record['id']}/{reference}" if isinstance(reference, str) else None


def _reported(record: Mapping[str, Any], field: str, rate: str, item: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an imported record claims of the same action; claims are matched by their wording, never by position."""
    reported = record.get("reported")
    if not reported:
        return None
    for claim in reported["record"].get(field) or ():
        if isinstance(claim, dict) and claim.get("action") and claim["action"] == item["action"]:
            return {"origin": reported["origin"], rate: claim.get(rate)}
    return None
