"""Foreign records come in whole, unproven, and never over something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kb.catalog import load
from kb.errors import EntryError, ImportRefusedError
from kb.foreign import take_in

RECORD: dict[str, Any] = {
    "id": "huggingface/some-claim",
    "signature": "ValueError: bnb_4bit_compute_dtype=torch.float16 is incompatible.",
    "signature_zh": "不兼容",
    "regex": "bnb_4bit_compute_dtype.*incompatible",
    "domain": "huggingface",
    "category": "config_error",
    "subcategory": None,
    "root_cause": "The two differ.",
    "root_cause_type": "generic",
    "versions": [{"version": "torch 2.3.0", "introduced": None, "status": "active"}],
    "os_specific": {},
    "dead_ends": [{"action": "", "why_fails": "It still differs.", "fail_rate": 1.0, "condition": "", "sources": []}],
    "workarounds": [
        {"action": "Set both the same.", "success_rate": 0.95, "how": "Set both.", "condition": "", "sources": []}
    ],
    "workarounds_zh": ["设为相同。"],
    "transition_graph": {"leads_to": [], "preceded_by": [], "frequently_confused_with": []},
    "official_doc_url": "https://example.org/docs",
    "confidence": 0.87,
    "verification_tier": "ai_generated",
    "fix_success_rate": 0.9,
    "resolvable": "true",
    "first_seen": "2024-03-10",
    "evidence_count": 1,
    "tags": [],
    "locale": "en",
    "aliases": [],
}


def write(folder: Path, name: str = "claim.json", **changes: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps({**RECORD, **changes}), encoding="utf-8")
    return file


def test_a_record_becomes_an_entry_without_its_rates(tmp_path: Path) -> None:
    root = tmp_path / "entries"
    (done,) = take_in(write(tmp_path), root)
    text = done.file.read_text(encoding="utf-8")
    loaded = load([root])
    assert loaded.problems == ()
    entry = loaded.entries["huggingface/some-claim"].entry
    assert [item.id for item in entry.workarounds] == ["workaround-1"]
    assert entry.dead_ends[0].action == "(not stated by the source)"
    assert entry.reported is not None
    assert entry.reported.record == RECORD
    assert "success_rate" not in json.loads(text)["workarounds"][0]


def test_a_pattern_that_breaks_the_policy_gives_way_to_the_signature_itself(tmp_path: Path) -> None:
    take_in(write(tmp_path), tmp_path / "entries")
    entry = load([tmp_path / "entries"]).entries["huggingface/some-claim"].entry
    assert ".*" not in entry.regex
    assert "compute_dtype=torch" in entry.regex


def test_a_folder_is_taken_in_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    write(folder, "a.json")
    write(folder, "b.json", id="huggingface/other-claim", signature="")
    with pytest.raises(EntryError, match=r"b\.json: signature"):
        take_in(folder, tmp_path / "entries")
    assert not (tmp_path / "entries").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "entries"
    file = write(tmp_path)
    take_in(file, root)
    with pytest.raises(ImportRefusedError, match="exists already"):
        take_in(file, root)
    with pytest.raises(ImportRefusedError, match="carries a reported record already"):
        take_in(file, root, into="huggingface/some-claim")


def test_a_record_attached_to_an_entry_leaves_the_rest_of_it_alone(tmp_path: Path) -> None:
    root = tmp_path / "entries"
    (done,) = take_in(write(tmp_path), root)
    own = json.loads(done.file.read_text(encoding="utf-8"))
    own.pop("reported")
    done.file.write_text(json.dumps(own), encoding="utf-8")
    (attached,) = take_in(write(tmp_path, "b.json", root_cause="Another story."), root, into="huggingface/some-claim")
    now = json.loads(attached.file.read_text(encoding="utf-8"))
    assert now.pop("reported")["record"]["root_cause"] == "Another story."
    assert now == own


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": "Not An Id"}, "id"),
        ({"id": "../../etc/passwd"}, "id"),
        ({"signature": 3}, "signature"),
        ({"workarounds": None}, "workarounds"),
    ],
)
def test_bad_records_are_refused_by_field(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(EntryError) as caught:
        take_in(write(tmp_path, **changes), tmp_path / "entries")
    assert caught.value.field == named
    assert not (tmp_path / "entries").exists()


def test_a_missing_source_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match="no such file"):
        take_in(tmp_path / "nope.json", tmp_path)
    with pytest.raises(ImportRefusedError, match=r"no \.json file"):
        take_in(tmp_path, tmp_path)
