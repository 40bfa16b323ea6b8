"""Results as JSON that is also safe to look at on a terminal."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

# Valid inside JSON strings as they are, but a terminal would act on them, or UTF-8 cannot carry them.
_ESCAPED = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def dumps(value: Any, *, compact: bool = False) -> str:
    """JSON text of a dataclass, a record or a list, ending in a newline."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps(plain, ensure_ascii=False, indent=None if compact else 2)
    return _ESCAPED.sub(lambda hit: f"\\u{ord(hit.group()):04x}", text) + "\n"
