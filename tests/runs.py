"""Evidence and published records for tests: what runs would have written, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kb.catalog import LoadedEntry
from kb.evidence import LoadedEvidence
from kb.models.entry import AuthoredEntry
from kb.models.evidence import Evidence
from kb.models.published import PublishedDeadEnd, PublishedEntry, PublishedWorkaround
from kb.publish import publish
from tests.conftest import entry

H100 = "NVIDIA H100 80GB HBM3"
SOURCES = [{"url": "https://example.org/issues/1", "kind": "report"}]
SCRIPT = """
import pytest

@pytest.fixture(params=["a", "b"])
def config(request):
    return request.param

@pytest.mark.reproduces
def test_reproduces(config):
    raise RuntimeError("the frobnicator jammed")

@pytest.mark.dead_end("hit-it")
def test_hit_it(config):
    raise RuntimeError("the frobnicator jammed")

@pytest.mark.workaround("oil-it")
def test_oil_it(config):
    assert True
"""
TESTS = {
    "reproduce": "test_reproduces",
    "refute": "test_refutes",
    "dead_end": "test_hit_it",
    "workaround": "test_oil_it",
}
IDS = {"dead_end": "hit-it", "workaround": "oil-it"}


def trial(arm: str, **changes: Any) -> dict[str, Any]:
    """One trial; those of claims have a control that reproduced."""
    plain = {
        "arm": arm,
        "id": IDS.get(arm),
        "test": TESTS[arm],
        "arm_digest": "0" * 64,
        "config": "a",
        "control": "reproduced" if arm in IDS else None,
        "outcome": "reproduced",
        "seconds": 0.5,
    }
    return {**plain, **changes}


def document(trials: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """One evidence document. `gpu`, `torch`, `started_at`, `contributed_by` and `entry` may be given."""
    gpu = changes.get("gpu")
    return {
        "schema_version": 1,
        "entry": changes.get("entry", "pytorch/some-error"),
        "verify_sha256": "0" * 64,
        "run": {
            "started_at": changes.get("started_at", "2026-11-22T10:00:00Z"),
            "seconds": 1.5,
            "kb_version": "0.1.0",
            "commit": None,
            "command": "kb verify",
            "contributed_by": changes.get("contributed_by"),
        },
        "environment": {
            "device": "cuda" if gpu else "cpu",
            "gpu": gpu,
            "compute_capability": "9.0" if gpu else None,
            "driver": "580.1" if gpu else None,
            "cuda": None,
            "torch": changes.get("torch", "2.13.0+cpu"),
            "packages": {},
            "python": "3.12.1",
            "os": "Linux",
        },
        "trials": list(trials),
    }


def loaded(trials: Sequence[dict[str, Any]], *, fresh: Sequence[bool] | bool = True, **changes: Any) -> LoadedEvidence:
    """The same as it is after loading, with the freshness given."""
    evidence = Evidence.model_validate_json(json.dumps(document(trials, **changes)))
    flags = [fresh] * len(trials) if isinstance(fresh, bool) else fresh
    return LoadedEvidence(Path("evidence.json"), evidence, tuple(flags))


def write(folder: Path, data: dict[str, Any]) -> Path:
    """Write a document below an entry's folder under the name it must have."""
    text = json.dumps(data, indent=2).encode()
    gpu = (data["environment"]["gpu"] or "cpu").lower().replace(" ", "-")
    day, digest = data["run"]["started_at"][:10], hashlib.sha256(text).hexdigest()[:8]
    file = folder / "evidence" / f"{day}_{gpu}_{digest}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)
    return file


def fix(claim: str = "oil-it", **changes: Any) -> dict[str, Any]:
    plain = {"action": "Oil it.", "how": "oil()", "kind": "root_cause", "verification": "verify.py::test_oil_it"}
    return {"id": claim, **plain, **changes}


def dead_end(claim: str = "hit-it", **changes: Any) -> dict[str, Any]:
    plain = {"action": "Hit it.", "why_fails": "It stays dry.", "verification": "verify.py::test_hit_it"}
    return {"id": claim, **plain, **changes}


def authored(**changes: Any) -> AuthoredEntry:
    data = entry(**{"workarounds": [fix()], "dead_ends": [dead_end()], **changes})
    return AuthoredEntry.model_validate_json(json.dumps(data))


def published(folder: Path, *files: LoadedEvidence, **changes: Any) -> PublishedEntry:
    return publish(LoadedEntry(authored(**changes), folder, "packaged"), files)


def run(outcome: str = "fixed", *, dead: str = "still_fails", **changes: Any) -> LoadedEvidence:
    trials = [
        trial("reproduce"),
        trial("workaround", outcome=outcome, step_seconds=0.01),
        trial("dead_end", outcome=dead, reason="a check of the result failed"),
    ]
    return loaded(trials, **changes)


def refuting_run(outcome: str = "not_reproduced", dead: str = "works", **changes: Any) -> LoadedEvidence:
    return loaded(
        [
            trial("refute", outcome=outcome),
            trial("refute", outcome="not_reproduced", config="b"),
            trial("workaround", outcome="works_without_fix", control=outcome),
            trial("dead_end", outcome=dead, control=outcome, reason="a check of the result failed"),
        ],
        **changes,
    )


def one_fix(record: PublishedEntry) -> PublishedWorkaround:
    (only,) = record.workarounds
    return only


def one_dead_end(record: PublishedEntry) -> PublishedDeadEnd:
    (only,) = record.dead_ends
    return only
