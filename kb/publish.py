"""Published records: the authored entry plus every rate, tier and date that evidence gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kb import evidence as evidence_files
from kb.catalog import Catalog, LoadedEntry
from kb.digest import arm_digests, file_sha256
from kb.errors import EntryError
from kb.evidence import LoadedEvidence, control_tests
from kb.models.entry import AuthoredEntry, DeadEnd, TransitionGraph, Workaround
from kb.models.evidence import Trial
from kb.models.published import Provenance, PublishedDeadEnd, PublishedEntry, PublishedWorkaround
from kb.provenance.record import load as load_provenance
from kb.provenance.summary import Standing, summary, version_rows
from kb.rates import Observation, Wins, headline, measure, observations
from kb.states import Proof, standing
from kb.tiers import refutation, tier

_KIND_ORDER = {"root_cause": 0, "configuration": 1, "upgrade": 1, "hardware": 1, "symptom": 2}

Names = Callable[[Trial], str | None]
"""Id of the entry that what a trial raised belongs to, None if no entry knows it."""


@dataclass(frozen=True)
class Publication:
    """A published record and what it was made from, as the index keeps it."""

    record: PublishedEntry
    layer: str = ""
    folder: Path | None = None
    evidence: tuple[LoadedEvidence, ...] = ()
    measured_edges: tuple[str, ...] = ()
    """Ids in `transition_graph.leads_to` that a run showed and the author did not name."""


def publish(
    loaded: LoadedEntry,
    evidence: Sequence[LoadedEvidence] = (),
    *,
    wins: Wins | None = None,
    names: Names | None = None,
    proofs: bool = True,
) -> PublishedEntry:
    """The published record of one entry. Pure but for reading its `verify.py`, which it leaves aside without `proofs`.

    `wins` says of a traceback that a reproduction raised whether today's matcher ranks this entry first; where it
    does not, the error was not reproduced. `names` gives the entry of the other error that a dead end ran into.
    Neither is asked by default.
    """
    entry = loaded.entry
    own = [file for file in evidence if not file.contributed]
    seen = observations(evidence, wins)
    measured = measure(evidence, wins)
    script = loaded.script if proofs else None
    source = _source(script)
    standing_in = summary(load_provenance(loaded.folder), entry)
    proof = Proof(evidence, measured, _tests(source), refutation(measured, own))
    workarounds = tuple(_workaround(claim, proof) for claim in entry.workarounds)
    first = min(workarounds, key=fix_order, default=None)
    name, reason = tier(entry, measured, evidence)
    confirmed = [one.day for one in seen if one.trial.arm == "reproduce" and one.held]
    days = [file.day for file in own]
    fields = _fields(entry) | {
        "workarounds": workarounds,
        "dead_ends": tuple(_dead_end(claim, proof) for claim in entry.dead_ends),
        "versions": (*entry.versions, *version_rows(standing_in)),
        "transition_graph": _graph(entry, _measured_edges(entry, seen, names)),
    }
    return PublishedEntry(
        **fields,
        verification_tier=name,
        tier_reason=reason,
        confidence=first.measured.low if first and first.measured else None,
        fix_success_rate=first.success_rate if first else None,
        evidence_count=sum(any(file.fresh) for file in own),
        last_confirmed=max(confirmed).isoformat() if confirmed else None,
        last_updated=max(days).isoformat() if days else entry.first_seen,
        reproduction=headline(measured.reproduction) or headline(measured.refutation),
        provenance=tuple(_provenance(one) for one in standing_in),
        verify_sha256=file_sha256(script) if script else None,
        reproduce_arms=_reproduce_arms(source),
    )


def publish_all(
    catalog: Catalog, *, wins: Callable[[str, str], bool] | None = None, names: Names | None = None
) -> tuple[tuple[Publication, ...], tuple[EntryError, ...]]:
    """Every entry of a catalogue with its evidence, and every problem: the catalogue's and the evidence's.

    `wins(entry_id, traceback)` and `names(trial)` as in `publish`.
    """
    found: list[Publication] = []
    problems = list(catalog.problems)
    for entry_id, loaded in catalog.entries.items():
        files, refused = evidence_files.load(loaded.folder, entry_id)
        problems += refused
        record = publish(loaded, files, wins=partial(wins, entry_id) if wins else None, names=names)
        known = loaded.entry.transition_graph.leads_to
        edges = tuple(other for other in record.transition_graph.leads_to if other not in known)
        found.append(Publication(record, loaded.layer, loaded.folder, files, edges))
    return tuple(found), tuple(problems)


def fix_order(fix: PublishedWorkaround) -> tuple[Any, ...]:
    """Sort key without regard to anybody's environment: shown to work first, then surer, then nearer to the cause."""
    worked = fix.measured is not None and fix.measured.k > 0
    low = fix.measured.low if fix.measured else 0.0
    return (not worked, fix.state == "refuted", -low, _KIND_ORDER[fix.kind], fix.id)


def _measured_edges(entry: AuthoredEntry, seen: Sequence[Observation], names: Names | None) -> tuple[str, ...]:
    """Entries whose error a dead end of this one really ran into, and which the author does not name."""
    if names is None:
        return ()
    trials = [one.trial for one in seen if one.trial.arm == "dead_end" and one.trial.outcome == "fails_differently"]
    ids = {names(trial) for trial in trials if trial.traceback or trial.exception}
    return tuple(sorted({other for other in ids if other} - {entry.id, *entry.transition_graph.leads_to}))


def _workaround(claim: Workaround, proof: Proof) -> PublishedWorkaround:
    found = standing(claim, proof)
    rate = headline(found.rates)
    return PublishedWorkaround(
        **_fields(claim),
        success_rate=rate.k / rate.n if rate else None,
        state=found.state,
        state_reason=found.reason,
        measured=rate,
        measured_by_device=tuple(found.rates.values()),
    )


def _dead_end(claim: DeadEnd, proof: Proof) -> PublishedDeadEnd:
    found = standing(claim, proof)
    rate = headline(found.rates)
    return PublishedDeadEnd(
        **_fields(claim),
        fail_rate=rate.k / rate.n if rate else None,
        state=found.state,
        state_reason=found.reason,
        measured=rate,
        measured_by_device=tuple(found.rates.values()),
    )


def _provenance(found: Standing) -> Provenance:
    return Provenance(
        package=found.package,
        literal=found.literal,
        origin=found.origin,
        stands=found.stands,
        lacks=found.lacks,
        unknown=found.unknown,
    )


def _fields(model: AuthoredEntry | Workaround | DeadEnd) -> dict[str, Any]:
    return {name: getattr(model, name) for name in type(model).model_fields}


def _graph(entry: AuthoredEntry, measured: Sequence[str]) -> TransitionGraph:
    graph = entry.transition_graph
    return graph.model_copy(update={"leads_to": (*graph.leads_to, *measured)}) if measured else graph


def _source(script: Path | None) -> str | None:
    try:
        return script.read_text("utf-8") if script else None
    except (OSError, UnicodeDecodeError):
        return None


def _tests(source: str | None) -> frozenset[str] | None:
    if source is None:
        return None
    try:
        return frozenset(name.rpartition(".")[2] for name in arm_digests(source))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()


def _reproduce_arms(source: str | None) -> tuple[str, ...]:
    try:
        return tuple(f"verify.py::{test}" for test in control_tests(source or ""))
    except (SyntaxError, ValueError, RecursionError):
        return ()
