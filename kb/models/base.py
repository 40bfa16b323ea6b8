"""What all file models share: strictness, and string types that pydantic and JSON Schema judge alike."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, WithJsonSchema


class Strict(BaseModel):
    """Strict, frozen, closed: an unknown or wrongly typed field is an error, never a guess."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


def _pattern(body: str, description: str, *, min_length: int = 1) -> tuple[StringConstraints, WithJsonSchema]:
    # Python's `$` accepts a trailing newline and JSON Schema validators in Python inherit that; Rust's does not and
    # knows no lookahead. Each side gets the spelling that means "the end of the string" to it.
    return (
        StringConstraints(pattern=f"^(?:{body})$"),
        WithJsonSchema(
            {
                "type": "string",
                "minLength": min_length,
                "pattern": f"^(?:{body})$(?![\\s\\S])",
                "description": description,
            }
        ),
    )


_SLUG = "[a-z0-9]+(?:-[a-z0-9]+)*"

EntryId = Annotated[
    str, *_pattern(f"{_SLUG}/{_SLUG}", "Entry id, `domain/slug`, equal to its folder below `entries/`.")
]
Slug = Annotated[str, *_pattern(_SLUG, "Lower-case words joined by hyphens.")]
Name = Annotated[str, *_pattern("[a-z0-9]+(?:[_-][a-z0-9]+)*", "Lower-case words joined by hyphens or underscores.")]
Date = Annotated[str, *_pattern("[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])", "Calendar date, YYYY-MM-DD.")]
Timestamp = Annotated[
    str,
    *_pattern(
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})",
        "Moment with its offset, ISO 8601.",
    ),
]
Url = Annotated[str, *_pattern('https?://[^ \\t\\r\\n<>"]+', "Absolute http or https address.")]
Sha256 = Annotated[str, *_pattern("[0-9a-f]{64}", "SHA-256, 64 lower-case hex digits.")]
ArmReference = Annotated[
    str, *_pattern("verify\\.py::test_[A-Za-z0-9_]+", "A test function of the entry's own `verify.py`.")
]
Text = Annotated[str, *_pattern("[\\s\\S]*[^ \\t\\r\\n][\\s\\S]*", "Text with at least one visible character.")]
Line = Annotated[str, *_pattern("[^\\r\\n]*[^ \\t\\r\\n][^\\r\\n]*", "One line with at least one visible character.")]
