"""Entries whose scripts need nothing but Python, for the tests of verification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENTRY = {
    "schema_version": 1,
    "id": "python/zero",
    "regex": "division by zero",
    "variants": [{"regex": "modulo by zero in .{0,20} numbers"}],
    "exceptions": ["ZeroDivisionError"],
    "workarounds": [{"id": "use-two"}, {"id": "use-three"}],
    "dead_ends": [{"id": "try-again"}],
}
HEAD = """\
import pytest

@pytest.fixture(params=["int", "float"])
def config(request):
    return {"int": 0, "float": 0.0}[request.param]

@pytest.mark.reproduces
def test_reproduces(config, device):
    1 / config
"""


def write_entry(root: Path, source: str, **changes: Any) -> Path:
    record = {**ENTRY, **changes}
    folder = root / "entries" / record["id"]
    folder.mkdir(parents=True)
    folder.joinpath("entry.json").write_text(json.dumps(record))
    script = folder / "verify.py"
    script.write_text(source)
    return script
