"""Shared set-up: no test reads or writes the user's own cache, overlays or colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One index for the whole run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("KB_CACHE", str(cache))
    monkeypatch.delenv("KB_ENTRIES", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


def entry(entry_id: str = "pytorch/some-error", **changes: Any) -> dict[str, Any]:
    """The smallest authored entry that means something."""
    plain = {
        "schema_version": 1,
        "id": entry_id,
        "signature": f"RuntimeError: the frobnicator of {entry_id} jammed at step 12",
        "regex": rf"the frobnicator of {entry_id} jammed at step \d{{1,9}}",
        "exceptions": ["RuntimeError"],
        "domain": entry_id.partition("/")[0],
        "category": "runtime-error",
        "root_cause": "It was not oiled.",
        "sources": [{"url": "https://example.org/issues/1", "kind": "report"}],
        "workarounds": [
            {
                "id": "oil-it",
                "action": "Oil it.",
                "how": "    frobnicator.oil()",
                "kind": "root_cause",
                "verification": {"unverifiable": "not written yet"},
            }
        ],
    }
    return {**plain, **changes}


@pytest.fixture
def catalogue(tmp_path: Path) -> Callable[..., Path]:
    """Writes entries below a fresh folder and returns it."""
    root = tmp_path / "entries"
    root.mkdir()

    def add(*entries: dict[str, Any]) -> Path:
        for data in entries:
            folder = root / data["id"]
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
            (folder / "entry.json").write_text(text, encoding="utf-8")
        return root

    return add
