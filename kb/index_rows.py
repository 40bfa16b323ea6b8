"""A published record as rows of the index's tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kb.errors import PatternError
from kb.index import spaced
from kb.models.published import PublishedDeadEnd, PublishedEntry, PublishedWorkaround, Rate
from kb.patterns import compile_pattern, required_literals
from kb.prefilter import rarest_grams
from kb.publish import Publication

Rows = dict[str, list[dict[str, Any]]]
"""Rows by table."""

_ENTRY_COLUMNS = (
    *("id", "domain", "category", "subcategory", "kind", "signature", "root_cause", "recoverability", "resolvable"),
    *("error_code", "locale", "verification_tier", "tier_reason", "confidence", "fix_success_rate", "evidence_count"),
    *("last_confirmed", "last_updated", "first_seen", "withdrawn", "moved_to"),
)
_RUN_COLUMNS = ("started_at", "seconds", "kb_version", "commit", "contributed_by")
_ENVIRONMENT_COLUMNS = ("device", "gpu", "compute_capability", "driver", "cuda", "torch", "python", "os")
_TRIAL_COLUMNS = (
    *("arm", "test", "config", "control", "outcome", "reason", "exception", "message", "seconds", "step_seconds"),
    *("peak_bytes", "reference_error"),
)


def add(rows: Rows, publication: Publication) -> None:
    """Append what one publication puts into each table."""
    entry = publication.record
    rows["entries"].append(_entry(publication))
    rows["aliases"] += [{"alias": alias, "entry_id": entry.id} for alias in dict.fromkeys(entry.aliases)]
    rows["tags"] += [{"entry_id": entry.id, "tag": tag} for tag in dict.fromkeys(entry.tags)]
    rows["signatures"] += _signatures(entry)
    rows["causes"] += [
        {"entry_id": entry.id, "id": cause.id, "summary": cause.summary, "detection": cause.detection}
        for cause in {cause.id: cause for cause in entry.causes}.values()
    ]
    rows["workarounds"] += [
        _claim(entry.id, place, fix) | {"how": fix.how, "kind": fix.kind, "success_rate": fix.success_rate}
        for place, fix in enumerate(entry.workarounds)
    ]
    rows["dead_ends"] += [
        _claim(entry.id, place, end) | {"why_fails": end.why_fails, "fail_rate": end.fail_rate}
        for place, end in enumerate(entry.dead_ends)
    ]
    rows["versions"] += [{"entry_id": entry.id, **version.model_dump()} for version in entry.versions]
    rows["transitions"] += _transitions(publication)
    rows["evidence"] += _evidence(publication)
    rows["trials"] += _trials(publication)
    rows["rates"] += _rates(entry)
    rows["entries_fts"].append(_words(entry))


def add_literals(rows: Rows) -> None:
    """Number the signatures, and list them by their literals. To be called once, when all publications are in."""
    wanted: list[tuple[str, int]] = []
    for number, row in enumerate(rows["signatures"], start=1):
        row["number"] = number
        wanted += [(literal, number) for literal in json.loads(row["literals"])]
    gram = rarest_grams(literal for literal, _ in wanted)
    rows["literals"] = [{"gram": gram[literal], "literal": literal, "signature": number} for literal, number in wanted]


def _entry(publication: Publication) -> dict[str, Any]:
    entry = publication.record
    row = {name: getattr(entry, name) for name in _ENTRY_COLUMNS}
    folder = str(publication.folder) if publication.folder else None
    return row | {"layer": publication.layer, "folder": folder, "record": entry.model_dump_json()}


def _signatures(entry: PublishedEntry) -> Iterator[dict[str, Any]]:
    if entry.withdrawn is not None:
        return
    wordings = [(entry.signature, entry.regex, entry.frames)]
    wordings += [
        (one.signature, one.regex, entry.frames if one.frames is None else one.frames) for one in entry.variants
    ]
    shared = {
        "entry_id": entry.id,
        "exceptions": _array(entry.exceptions),
        "kind": entry.kind,
        "supersedes": _array(entry.supersedes),
    }
    for ordinal, (signature, regex, frames) in enumerate(wordings):
        # A pattern that only Python's engines take can still be searched, under a time limit.
        engine = _engine(regex)
        if engine:
            yield shared | _pattern(ordinal, signature, regex, engine, frames, legacy=False)
    reported = entry.reported.record if entry.reported else {}
    foreign, claimed = reported.get("regex"), reported.get("signature")
    if not isinstance(foreign, str) or not foreign or foreign in {wording[1] for wording in wordings}:
        return
    engine = _engine(foreign)
    if engine:
        text = claimed if isinstance(claimed, str) and claimed else entry.signature
        yield shared | _pattern(len(wordings), text, foreign, engine, entry.frames, legacy=True)


def _pattern(
    ordinal: int, signature: str, regex: str, engine: str, frames: Iterable[str], *, legacy: bool
) -> dict[str, Any]:
    return {
        "ordinal": ordinal,
        "signature": signature,
        "regex": regex,
        "literals": _array(required_literals(regex)),
        "engine": engine,
        "frames": _array(frames),
        "legacy": int(legacy),
    }


def _engine(regex: str) -> str | None:
    """`re2`, else `regex` if that module takes the pattern, None if nothing does."""
    try:
        compile_pattern(regex)
    except PatternError as refusal:
        # Compiling has no time limit, and what is too large for RE2 takes seconds elsewhere.
        return None if refusal.too_large else _regex_engine(regex)
    return "re2"


def _regex_engine(regex: str) -> str | None:
    import regex as regex_module

    try:
        regex_module.compile(regex)
    except (regex_module.error, RecursionError, OverflowError, ValueError):
        return None
    return "regex"


def _claim(entry_id: str, place: int, claim: PublishedWorkaround | PublishedDeadEnd) -> dict[str, Any]:
    return {
        "entry_id": entry_id,
        "id": claim.id,
        "ordinal": place,
        "action": claim.action,
        "state": claim.state,
        "state_reason": claim.state_reason,
        **_rate(claim.measured),
    }


def _rate(rate: Rate | None) -> dict[str, Any]:
    return {name: getattr(rate, name, None) for name in ("k", "n", "low", "high", "device")}


def _rates(entry: PublishedEntry) -> Iterator[dict[str, Any]]:
    found: list[tuple[str, str | None, Rate]] = []
    if entry.reproduction:
        found.append(("reproduce", None, entry.reproduction))
    found += [("workaround", fix.id, rate) for fix in entry.workarounds for rate in fix.measured_by_device]
    found += [("dead_end", end.id, rate) for end in entry.dead_ends for rate in end.measured_by_device]
    for arm, claim_id, rate in found:
        yield {
            "entry_id": entry.id,
            "arm": arm,
            "claim_id": claim_id,
            **_rate(rate),
            "environments": _array(rate.environments),
            "last_run": rate.last_run,
            "step_seconds": rate.step_seconds,
            "peak_bytes": rate.peak_bytes,
        }


def _transitions(publication: Publication) -> Iterator[dict[str, Any]]:
    entry = publication.record
    for relation in ("leads_to", "preceded_by", "frequently_confused_with"):
        for other in dict.fromkeys(getattr(entry.transition_graph, relation)):
            measured = relation == "leads_to" and other in publication.measured_edges
            origin = "measured" if measured else "authored"
            yield {"entry_id": entry.id, "relation": relation, "other_id": other, "origin": origin}


def _evidence(publication: Publication) -> Iterator[dict[str, Any]]:
    for loaded in publication.evidence:
        yield {
            "file": _file(publication, loaded.file),
            "entry_id": publication.record.id,
            **{name: getattr(loaded.evidence.run, name) for name in _RUN_COLUMNS},
            **{name: getattr(loaded.evidence.environment, name) for name in _ENVIRONMENT_COLUMNS},
            "trials": len(loaded.fresh),
            "fresh_trials": sum(loaded.fresh),
        }


def _trials(publication: Publication) -> Iterator[dict[str, Any]]:
    for loaded in publication.evidence:
        for trial, fresh in loaded.trials():
            yield {
                "file": _file(publication, loaded.file),
                "entry_id": publication.record.id,
                "claim_id": trial.id,
                "fresh": int(fresh),
                **{name: getattr(trial, name) for name in _TRIAL_COLUMNS},
            }


def _file(publication: Publication, file: Path) -> str:
    return f"{publication.record.id}/evidence/{file.name}"


def _words(entry: PublishedEntry) -> dict[str, str]:
    chinese = [entry.signature_zh or "", entry.root_cause_zh or "", *entry.workarounds_zh, *entry.dead_ends_zh]
    claims = [text for fix in entry.workarounds for text in (fix.action, fix.how)]
    claims += [text for end in entry.dead_ends for text in (end.action, end.why_fails)]
    parts: dict[str, Iterable[str]] = {
        "aliases": [*entry.aliases, entry.error_code or ""],
        "signatures": [entry.signature, *(variant.signature for variant in entry.variants)],
        "tags": [*entry.tags, entry.domain, entry.category, entry.subcategory or ""],
        "root_cause": [entry.root_cause, entry.detection, entry.prevention],
        "causes": [f"{cause.summary} {cause.detection}" for cause in entry.causes],
        "actions": claims,
        "zh": chinese,
    }
    return {"id": entry.id} | {name: spaced("\n".join(filter(None, texts))) for name, texts in parts.items()}


def _array(texts: Iterable[str]) -> str:
    return json.dumps(list(texts), ensure_ascii=False)
