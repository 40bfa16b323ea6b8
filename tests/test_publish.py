"""From authored entry and evidence to the published record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kb.catalog import Catalog, LoadedEntry, load
from kb.digest import arm_digests
from kb.errors import EntryError
from kb.publish import publish, publish_all
from tests.conftest import PROJECT
from tests.runs import (
    H100,
    SCRIPT,
    authored,
    document,
    fix,
    loaded,
    one_dead_end,
    one_fix,
    published,
    run,
    trial,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "verify.py").write_text(SCRIPT)
    return tmp_path


# --- rates and dates


def test_a_measured_entry_carries_its_rates(folder: Path) -> None:
    record = published(folder, run(), run(gpu=H100, torch="2.11.0"))
    measured = one_fix(record)
    assert measured.state == "measured"
    assert measured.success_rate == 1.0
    assert measured.measured is not None
    assert measured.measured.device == "cuda"
    assert measured.measured.step_seconds == 0.01
    assert [rate.device for rate in measured.measured_by_device] == ["cuda", "cpu"]
    assert one_dead_end(record).fail_rate == 1.0
    assert record.fix_success_rate == 1.0
    assert record.confidence == measured.measured.low
    assert record.evidence_count == 2
    assert record.reproduction is not None
    assert (record.reproduction.k, record.reproduction.n, record.reproduction.device) == (1, 1, "cuda")


def test_nothing_measured_is_null_and_never_zero(folder: Path) -> None:
    record = published(folder)
    assert one_fix(record).success_rate is None
    assert one_fix(record).measured is None
    assert one_dead_end(record).fail_rate is None
    assert (record.confidence, record.fix_success_rate, record.reproduction, record.last_confirmed) == (None,) * 4
    assert record.evidence_count == 0


def test_dates_come_from_runs(folder: Path) -> None:
    files = [
        run(started_at="2026-11-01T00:00:00Z"),
        loaded([trial("reproduce", outcome="not_reproduced")], started_at="2026-11-09T00:00:00Z"),
        run(started_at="2026-11-15T00:00:00Z", fresh=False),
        run(started_at="2026-11-20T00:00:00Z", contributed_by="somebody"),
    ]
    record = published(folder, *files, first_seen="2024-01-01")
    assert record.last_confirmed == "2026-11-01"
    assert record.last_updated == "2026-11-15"
    assert record.evidence_count == 2
    assert published(folder, first_seen="2024-01-01").last_updated == "2024-01-01"
    assert published(folder).last_updated is None


def test_the_script_is_named(folder: Path) -> None:
    record = published(folder)
    assert record.reproduce_arms == ("verify.py::test_reproduces",)
    assert record.verify_sha256 is not None
    (folder / "verify.py").write_text("def broken(:")
    assert published(folder).reproduce_arms == ()
    (folder / "verify.py").unlink()
    assert published(folder).verify_sha256 is None


def test_every_field_of_the_reference_record_is_there(folder: Path) -> None:
    names = (
        "id signature signature_zh regex domain category subcategory root_cause root_cause_type root_cause_zh versions"
        " os_specific dead_ends workarounds workarounds_zh transition_graph official_doc_url official_doc_section"
        " error_code verification_tier confidence fix_success_rate resolvable first_seen last_confirmed last_updated"
        " evidence_count tags locale aliases"
    )
    record = json.loads(published(folder).model_dump_json())
    assert set(names.split()) <= set(record)
    assert {"action", "success_rate", "how", "condition", "sources"} <= set(record["workarounds"][0])
    assert {"action", "why_fails", "fail_rate", "condition", "sources"} <= set(record["dead_ends"][0])


# --- which fix comes first


def test_the_first_fix_is_the_surest_not_the_first_written(folder: Path) -> None:
    trials = [trial("reproduce", config=config) for config in "ab"]
    trials += [trial("workaround", config=config, outcome="fixed") for config in "ab"]
    trials += [trial("workaround", id="grease-it", config="a", outcome="fixed")]
    record = published(folder, loaded(trials), workarounds=[fix("buy-new"), fix("grease-it"), fix("oil-it")])
    assert [one.id for one in record.workarounds] == ["buy-new", "grease-it", "oil-it"]
    assert record.fix_success_rate == 1.0
    assert record.confidence == record.workarounds[2].measured.low  # type: ignore[union-attr]


def test_a_fix_that_never_worked_is_not_first(folder: Path) -> None:
    assert published(folder, run("not_fixed"), workarounds=[fix(), fix("buy-new")]).fix_success_rate is None
    assert published(folder, run("not_fixed")).fix_success_rate == 0.0


# --- what the matcher says of runs


def test_a_reproduction_that_another_entry_wins_proves_nothing(folder: Path) -> None:
    file = loaded([trial("reproduce", traceback="other"), trial("workaround", outcome="fixed")])
    record = publish(LoadedEntry(authored(), folder, ""), [file], wins=lambda traceback: traceback != "other")
    assert record.verification_tier == "sourced"
    assert one_fix(record).measured is None
    assert record.last_confirmed is None


def test_the_error_that_a_dead_end_ran_into_is_a_measured_edge(folder: Path) -> None:
    file = loaded(
        [
            trial("reproduce"),
            trial("dead_end", outcome="fails_differently", exception="ValueError", traceback="ValueError: too hot"),
        ]
    )
    graph = {"leads_to": ["pytorch/known"]}
    record = publish(
        LoadedEntry(authored(transition_graph=graph), folder, ""), [file], names=lambda _: "pytorch/too-hot"
    )
    assert record.transition_graph.leads_to == ("pytorch/known", "pytorch/too-hot")
    for other in (None, "pytorch/known", record.id):
        same = publish(LoadedEntry(authored(transition_graph=graph), folder, ""), [file], names=lambda _, o=other: o)
        assert same.transition_graph.leads_to == ("pytorch/known",)


# --- whole catalogues


def test_a_catalogue_is_published_with_its_evidence_and_all_problems(folder: Path) -> None:
    digests = arm_digests(SCRIPT)
    trials = [trial("reproduce"), trial("workaround", outcome="fixed")]
    write(folder, document([{**one, "arm_digest": digests[one["test"]]} for one in trials]))
    (folder / "evidence" / "note.json").write_text("{}")
    known = EntryError("elsewhere.json", "", "is broken")
    catalog = Catalog({"pytorch/some-error": LoadedEntry(authored(), folder, "packaged")}, (known,))
    (found,), problems = publish_all(catalog)
    assert found.record.verification_tier == "verified_cpu"
    assert len(found.evidence) == 1
    assert problems[0] is known
    assert len(problems) > 1
    asked: list[tuple[str, str]] = []
    publish_all(catalog, wins=lambda entry_id, text: asked.append((entry_id, text)) is None)
    assert asked == []


def test_the_projects_own_entries_publish() -> None:
    publications, _ = publish_all(load([PROJECT / "entries"]))
    for publication in publications:
        assert publication.record.tier_reason
