"""Plain words for what the models refuse: the field, what stands there, what is wanted, what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, StringConstraints, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from kb.models import base

COMPUTED_FIELDS = frozenset(
    """success_rate fail_rate fix_success_rate confidence evidence_count verification_tier last_confirmed last_updated
    measured""".split()  # noqa: SIM905
)
"""Fields of the published record that are computed from evidence, and refused by name in an authored one."""

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


class Complaint(NamedTuple):
    """One thing wrong with a file."""

    field: str
    """Dotted path, list positions from 0; empty for the file as a whole."""
    message: str
    remedy: str


def complaints(refusal: ValidationError, data: Any, model: type[BaseModel]) -> list[Complaint]:
    """What pydantic refused in `data`, the parsed JSON, one complaint for each field in the order of the model."""
    by_field: dict[str, list[ErrorDetails]] = {}
    for error in refusal.errors(include_url=False):
        by_field.setdefault(".".join(map(str, _path(error, data))), []).append(error)
    fields = sorted(_field_names(model))
    return [
        _complaint(field, errors, fields)
        for field, errors in by_field.items()
        if not _is_shadowed(field, errors, by_field)
    ]


def _path(error: ErrorDetails, data: Any) -> Iterator[int | str]:
    """The parts of a location that are keys and positions of the document, without pydantic's names of alternatives."""
    last = len(error["loc"]) - 1
    for place, part in enumerate(error["loc"]):
        if isinstance(data, dict) and isinstance(part, str):
            if part in data or (error["type"] == "missing" and place == last):
                yield part
                data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            yield part
            data = data[part] if part < len(data) else None


def _is_shadowed(field: str, errors: list[ErrorDetails], all_errors: dict[str, list[ErrorDetails]]) -> bool:
    """Whether these only say that a value is not the other alternative of a field, whose inside is complained about."""
    return all(error["type"] in _TYPES for error in errors) and any(
        other.startswith(f"{field}.") for other in all_errors
    )


def _complaint(field: str, errors: list[ErrorDetails], fields: list[str]) -> Complaint:
    errors = [error for error in errors if error["type"] not in _TYPES] or errors
    error = errors[0]
    name = field.rpartition(".")[2]
    if error["type"] == "extra_forbidden":
        return _unknown(field, name, error["input"], fields)
    if error["type"] == "json_invalid":
        return Complaint(field, f"is not JSON: {error['ctx']['error']}", "correct it there")
    if error["type"] == "missing":
        return Complaint(field, "is missing", "add it; `kb schema` says what it means")
    wanted = " or ".join(dict.fromkeys(map(_wanted, errors)))
    return Complaint(field, f"found {_shown(error['input'])}, wanted {wanted}", "correct the value")


def _unknown(field: str, name: str, value: Any, fields: list[str]) -> Complaint:
    if name in COMPUTED_FIELDS:
        message = f"found {_shown(value)}: a rate or date typed in by hand is not accepted"
        return Complaint(field, message, "remove it, rates are computed from evidence")
    close = get_close_matches(name, fields, n=1)
    remedy = f"did you mean `{close[0]}`?" if close else "remove it"
    return Complaint(field, "no such field", remedy)


def _wanted(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "string_pattern_mismatch":
        described = _descriptions().get(context["pattern"], f"text like {context['pattern']}")
        return described[:1].lower() + described[1:].rstrip(".")
    if error["type"] == "literal_error":
        return f"one of {context['expected']}"
    return _TYPES.get(error["type"], error["msg"])


def _descriptions() -> dict[str, str]:
    """What each constrained string type of the models wants, by its pattern."""
    found: dict[str, str] = {}
    for value in vars(base).values():
        parts = get_args(value)
        described = [str((part.json_schema or {})["description"]) for part in parts if isinstance(part, WithJsonSchema)]
        patterns = [str(part.pattern) for part in parts if isinstance(part, StringConstraints)]
        found.update(zip(patterns, described, strict=True))
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _field_names(model: type[BaseModel]) -> set[str]:
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}
