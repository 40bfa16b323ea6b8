"""The catalogue as shipped: every sample ranks its entry first, near misses and clean pastes match nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from kb.build import in_memory
from kb.catalog import Catalog, load
from kb.intake import decode
from kb.knowledge import KnowledgeBase
from kb.lint import check
from tests.conftest import PROJECT

CATALOG: Catalog = load([PROJECT / "entries"])
CLEAN = sorted((PROJECT / "tests" / "data" / "clean").glob("*.txt"))
SAMPLES = [(entry_id, path) for entry_id, loaded in CATALOG.entries.items() for path in loaded.samples]


@pytest.fixture(scope="module")
def base() -> KnowledgeBase:
    return in_memory(CATALOG)


def test_the_catalogue_is_sound() -> None:
    assert [str(finding) for finding in check(CATALOG, clean=CLEAN)] == []


def answered(base: KnowledgeBase, text: str) -> list[str]:
    return [match.entry_id for match in base.match(text).matches]


@pytest.mark.parametrize(("entry_id", "path"), SAMPLES, ids=[f"{i}/{p.stem}" for i, p in SAMPLES])
def test_a_sample_stays_won_under_noise(base: KnowledgeBase, entry_id: str, path: Path) -> None:
    lines = decode(path.read_bytes(), str(path)).rstrip("\n").split("\n")
    noisy = {
        "as it is": "\n".join(lines),
        "quoted": "\n".join(f"> {line}" for line in lines),
        "timestamps": "\n".join(f"2026-11-22T13:26:21.1390001Z {line}" for line in lines),
        "windows line ends": "\r\n".join(lines),
    }
    assert {name: answered(base, text)[:1] for name, text in noisy.items()} == {name: [entry_id] for name in noisy}


@pytest.mark.parametrize("path", CLEAN, ids=[path.stem for path in CLEAN])
def test_a_clean_paste_matches_nothing(base: KnowledgeBase, path: Path) -> None:
    assert answered(base, decode(path.read_bytes(), str(path))) == []


def test_every_fix_says_how_it_stands_and_why(base: KnowledgeBase) -> None:
    for _, path in SAMPLES:
        match = base.match(decode(path.read_bytes(), str(path))).matches[0]
        assert match.fixes
        for fix in match.fixes:
            assert fix.why
            assert (fix.measured is None) != (fix.state == "measured")
