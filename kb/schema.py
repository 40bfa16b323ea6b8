"""JSON Schemas of the files and answers, generated from the models that judge them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kb.models.entry import AuthoredEntry
from kb.models.evidence import Evidence
from kb.models.provenance import Provenance
from kb.models.published import PublishedEntry
from kb.models.result import Result

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, str]:
    """Text of each schema by its file name, always the same for the same models."""
    found = {
        "entry": ("An authored entry", AuthoredEntry.model_json_schema()),
        "evidence": ("An evidence file", Evidence.model_json_schema()),
        "match": ("The answer of `kb match --format json`", TypeAdapter(Result).json_schema(mode="serialization")),
        "provenance": ("A provenance file", Provenance.model_json_schema()),
        "published": ("A published record", PublishedEntry.model_json_schema(mode="serialization")),
    }
    return {f"{name}.schema.json": _text(name, title, schema) for name, (title, schema) in found.items()}


def write(directory: Path) -> list[Path]:
    """Write every schema into `directory`, which is created; the files written."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in schemas().items():
        file = directory / name
        file.write_text(text, "utf-8")
        written.append(file)
    return written


def _text(name: str, title: str, schema: dict[str, Any]) -> str:
    head = {"$schema": _DIALECT, "$id": f"urn:provenfix:schema:{name}:1", "title": title}
    body = {key: schema[key] for key in sorted(schema) if key not in head}
    return json.dumps(head | body, ensure_ascii=False, indent=2) + "\n"
