"""What the models refuse is said in plain words, at the right field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kb.complaints import Complaint, complaints
from kb.models.entry import AuthoredEntry
from tests.conftest import PROJECT, entry

INVALID = sorted((PROJECT / "tests" / "data" / "invalid").glob("*.json"))


def found(data: Any) -> dict[str, Complaint]:
    with pytest.raises(ValidationError) as caught:
        AuthoredEntry.model_validate_json(json.dumps(data))
    return {complaint.field: complaint for complaint in complaints(caught.value, data, AuthoredEntry)}


@pytest.mark.parametrize("file", INVALID, ids=lambda path: path.stem)
def test_each_invalid_file_is_complained_about_once_at_the_field_it_is_named_after(file: Path) -> None:
    data = json.loads(file.read_text("utf-8"))
    field, _, what = file.stem.partition("__")
    told = found(data)
    assert list(told) == [field]
    assert told[field].remedy
    if what.startswith("typed-in"):
        assert told[field].remedy == "remove it, rates are computed from evidence"
    if what == "missing":
        assert told[field].message == "is missing"


def test_found_and_wanted_are_both_said() -> None:
    told = found(entry(id="Some Error"))["id"].message
    assert '"Some Error"' in told
    assert "`domain/slug`" in told


def test_a_misspelt_field_is_guessed() -> None:
    assert found(entry(root_couse="x"))["root_couse"].remedy == "did you mean `root_cause`?"


def test_long_values_are_cut() -> None:
    assert len(found(entry(asynchronous="x" * 10_000))["asynchronous"].message) < 200


def test_of_two_alternatives_only_the_one_meant_is_complained_about() -> None:
    data = entry()
    data["workarounds"][0]["verification"] = {"unverifiable": "x", "until": "later"}
    assert list(found(data)) == ["workarounds.0.verification.until"]
    data["workarounds"][0]["verification"] = {}
    assert found(data)["workarounds.0.verification.unverifiable"].message == "is missing"
    data["workarounds"][0]["verification"] = 3
    assert "text or an object" in found(data)["workarounds.0.verification"].message


def test_what_is_no_object_at_all() -> None:
    assert found([1])[""].message == "found [1], wanted an object"
