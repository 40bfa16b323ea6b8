"""The generated JSON Schemas: up to date, and of one mind with the models."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from kb.catalog import LoadedEntry
from kb.models.entry import AuthoredEntry
from kb.models.evidence import Evidence
from kb.models.result import Environment, Frame, Incident, Match, Query, Related, Result
from kb.publish import publish
from kb.schema import schemas, write
from tests.conftest import PROJECT, entry
from tests.runs import document, trial

SCHEMAS = schemas()
FILES = sorted(SCHEMAS)
INVALID = sorted((PROJECT / "tests" / "data" / "invalid").glob("*.json"))
ENTRIES = sorted((PROJECT / "entries").glob("*/*/entry.json"))


def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads(SCHEMAS[f"{name}.schema.json"]))


def model_accepts(model: type[BaseModel], text: str) -> bool:
    try:
        model.model_validate_json(text)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", FILES)
def test_committed_schemas_are_those_of_the_models(name: str) -> None:
    """Set KB_UPDATE_SCHEMAS=1 to write them anew."""
    if os.environ.get("KB_UPDATE_SCHEMAS") == "1":
        write(PROJECT / "schemas")
    assert (PROJECT / "schemas" / name).read_text("utf-8") == SCHEMAS[name]


def test_no_other_schema_is_committed() -> None:
    assert sorted(path.name for path in (PROJECT / "schemas").iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_schemas_are_schemas_and_say_which(name: str) -> None:
    schema = json.loads(SCHEMAS[name])
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert name.removesuffix(".schema.json") in schema["$id"]


def test_writing_is_repeatable(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write(tmp_path / "new" / "folder")]
    assert [path.read_bytes() for path in write(tmp_path / "new" / "folder")] == first


def test_fields_carry_their_descriptions() -> None:
    fields = json.loads(SCHEMAS["entry.schema.json"])["properties"]
    assert "RE2" in fields["regex"]["description"]


@pytest.mark.parametrize("file", INVALID, ids=lambda path: path.stem)
def test_both_refuse_what_is_invalid(file: Path) -> None:
    text = file.read_text("utf-8")
    assert not validator("entry").is_valid(json.loads(text))
    assert not model_accepts(AuthoredEntry, text)


@pytest.mark.parametrize("file", ENTRIES, ids=lambda path: path.parent.name)
def test_both_judge_every_entry_alike(file: Path) -> None:
    text = file.read_text("utf-8")
    errors = list(validator("entry").iter_errors(json.loads(text)))
    assert model_accepts(AuthoredEntry, text) == (not errors), errors


@pytest.mark.parametrize("value", ["a/b", "a/b\n", "a/b\r", "a//b", "a/b/c", "a/b c", "A/b", "a1/b-2", "", "ä/b"])
def test_both_judge_ids_alike(value: str) -> None:
    data = entry("a/b", id=value)
    assert model_accepts(AuthoredEntry, json.dumps(data)) == validator("entry").is_valid(data)


@pytest.mark.parametrize("value", ["x", "x\n", "\nx", "x\ry", " x ", "\t", "", "\u00a0", "\u2028", "é"])
def test_both_judge_lines_and_texts_alike(value: str) -> None:
    for field in ("regex", "signature", "locale"):
        data = entry(**{field: value})
        assert model_accepts(AuthoredEntry, json.dumps(data)) == validator("entry").is_valid(data), field


def test_a_published_record_keeps_its_schema() -> None:
    authored = AuthoredEntry.model_validate_json(json.dumps(entry()))
    record = publish(LoadedEntry(authored, Path("no/such/folder"), "packaged"))
    validator("published").validate(json.loads(record.model_dump_json()))


def test_an_evidence_file_keeps_its_schema() -> None:
    data = document([trial("reproduce", outcome="reproduced")])
    validator("evidence").validate(data)
    assert model_accepts(Evidence, json.dumps(data))
    data["run"]["rate"] = 1.0
    assert not validator("evidence").is_valid(data)
    assert not model_accepts(Evidence, json.dumps(data))


def test_an_answer_keeps_its_schema() -> None:
    incident = Incident("exception", "RuntimeError", "jammed", 3, (Frame("train.py", 3, "main"),), ("1",))
    match = Match(
        "a/b",
        "exact",
        "root",
        0,
        (),
        3,
        (0, 6),
        "why",
        "jammed",
        "dry",
        None,
        "sourced",
        "read",
        (),
        (),
        (),
        "unknown",
        {},
    )
    result = Result(1, "0", Query((incident,), Environment()), (match,), (Related("a/c", "x", "y"),), False)
    data = json.loads(json.dumps(asdict(result)))
    validator("match").validate(data)
    data["matches"][0]["level"] = "perhaps"
    assert not validator("match").is_valid(data)
