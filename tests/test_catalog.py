"""Reading folders of entries: path = id, layers, and nothing that one bad file can break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kb.catalog import load, packaged_root, read_json
from kb.errors import EntryError
from kb.layers import Layer
from tests.conftest import PROJECT, entry

Add = Callable[..., Path]


def problem(root: Path) -> EntryError:
    (only,) = load([root]).problems
    assert only.file
    assert only.remedy
    return only


def test_entries_are_found_by_their_path(catalogue: Add) -> None:
    catalog = load([catalogue(entry("b/two"), entry("a/one"))])
    assert list(catalog.entries) == ["a/one", "b/two"]
    assert catalog.entries["a/one"].entry.domain == "a"
    assert catalog.problems == ()


def test_the_checkout_reads_its_own_entries() -> None:
    assert packaged_root() == PROJECT / "entries"


def test_samples_and_near_misses_are_told_apart(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    samples = root / "a/one/samples"
    samples.mkdir()
    for name in ("real.txt", "not-this.txt", "another.txt", "readme.md"):
        (samples / name).write_text("x")
    loaded = load([root]).entries["a/one"]
    assert [path.name for path in loaded.samples] == ["another.txt", "real.txt"]
    assert [path.name for path in loaded.near_misses] == ["not-this.txt"]


def test_one_broken_entry_leaves_the_others(catalogue: Add) -> None:
    root = catalogue(entry("a/one"), entry("a/two"))
    (root / "a/two/entry.json").write_text("{")
    catalog = load([root])
    assert list(catalog.entries) == ["a/one"]
    assert "is not JSON" in catalog.problems[0].detail


def test_every_field_that_is_wrong_is_told(catalogue: Add) -> None:
    root = catalogue(entry("a/one", kind="mistake", colour="red"))
    assert {found.field for found in load([root]).problems} == {"kind", "colour"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"id": "a/one", "id": "a/one"}', "`id` stands twice"),
        (b'{"sources": [{"url": "x", "note": "", "url": "y"}]}', "`url` stands twice"),
        (b"\xff\xfe{}", "is not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"schema_version": NaN}', "NaN"),
        (b'{"schema_version": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'"' + b"a" * 5 * 2**20 + b'"', "is larger than"),
        (b"[]", "wanted an object"),
        (b'"\\udc80"', "is not JSON: lone leading surrogate"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "is not JSON: recursion limit"),
    ],
    ids=lambda value: str(value[:24]),
)
def test_unreadable_content_is_a_problem(catalogue: Add, content: bytes, words: str) -> None:
    root = catalogue(entry("a/one"))
    (root / "a/one/entry.json").write_bytes(content)
    assert words in problem(root).detail


def test_a_repeated_key_names_the_key_as_its_field(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    (root / "a/one/entry.json").write_text('{"regex": "a", "regex": "b"}')
    assert problem(root).field == "regex"


def test_typed_in_rates_are_refused_by_name(catalogue: Add) -> None:
    data = entry("a/one")
    data["workarounds"][0]["success_rate"] = 0.95
    found = problem(catalogue(data))
    assert found.field == "workarounds.0.success_rate"
    assert "computed from evidence" in found.remedy


def test_the_path_is_the_id(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    (root / "a/one").rename(root / "a/two")
    found = problem(root)
    assert found.field == "id"
    assert "`a/one`" in found.detail
    assert "`a/two`" in found.detail


def test_an_entry_one_level_too_high_is_told(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    (root / "a/one").rename(root / "one")
    (root / "a").rmdir()
    assert problem(root).field == "id"


def test_an_empty_folder_is_a_problem(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    (root / "a/empty").mkdir()
    assert "holds no entry.json" in problem(root).detail


def test_caches_and_hidden_folders_are_none_of_ours(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    for name in ("__pycache__", ".cache", "a/__pycache__", "a/.idea"):
        (root / name).mkdir()
    (root / "STAMP").write_text("x")
    (root / "README.md").write_text("x")
    catalog = load([root])
    assert list(catalog.entries) == ["a/one"]
    assert catalog.problems == ()


@pytest.mark.parametrize("link", ["a/two", "a/one/entry.json", "a/one/samples/real.txt", "a/one/samples", "b"])
def test_links_leading_outside_are_refused(catalogue: Add, tmp_path: Path, link: str) -> None:
    root = catalogue(entry("a/one"))
    outside = tmp_path / "outside"
    (outside / "two").mkdir(parents=True)
    (outside / "entry.json").write_text(json.dumps(entry("a/two")))
    place = root / link
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(outside if place.suffix == "" else outside / "entry.json")
    catalog = load([root])
    assert not [found for found in catalog.entries.values() if found.folder.resolve().is_relative_to(outside)]
    assert "leads outside" in catalog.problems[0].detail
    assert ("a/one" in catalog.entries) == (not link.startswith("a/one"))


def test_links_inside_are_fine_and_broken_or_circular_ones_are_problems(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    samples = root / "a/one/samples"
    samples.mkdir()
    (samples / "first.txt").write_text("x")
    (samples / "second.txt").symlink_to("first.txt")
    assert len(load([root]).entries["a/one"].samples) == 2
    (samples / "loop").symlink_to("loop")
    assert "cannot be read" in problem(root).detail
    (samples / "loop").unlink()
    (root / "a/gone").symlink_to("nowhere")
    assert "cannot be read" in problem(root).detail


def test_a_folder_in_place_of_the_file_is_a_problem(catalogue: Add) -> None:
    root = catalogue(entry("a/one"))
    (root / "a/one/entry.json").unlink()
    (root / "a/one/entry.json").mkdir()
    assert "holds no entry.json" in problem(root).detail


def test_a_missing_root_is_a_problem(tmp_path: Path) -> None:
    assert "cannot be read" in problem(tmp_path / "nowhere").detail


def test_later_layers_add_and_replace(catalogue: Add, tmp_path: Path) -> None:
    below = catalogue(entry("a/one"), entry("a/two"))
    above = tmp_path / "team"
    for data in (entry("a/two", root_cause="Ours."), entry("b/three")):
        (above / data["id"]).mkdir(parents=True)
        (above / data["id"] / "entry.json").write_text(json.dumps(data))
    catalog = load([Layer("packaged", below), Layer("team", above)])
    assert list(catalog.entries) == ["a/one", "a/two", "b/three"]
    assert catalog.entries["a/two"].entry.root_cause == "Ours."
    assert catalog.entries["a/two"].layer == "team"
    (note,) = catalog.problems
    assert "replaces" in note.detail


def test_a_broken_replacement_leaves_the_entry_below(catalogue: Add, tmp_path: Path) -> None:
    below = catalogue(entry("a/one"))
    (tmp_path / "team/a/one").mkdir(parents=True)
    (tmp_path / "team/a/one/entry.json").write_text("{}")
    catalog = load([below, tmp_path / "team"])
    assert catalog.entries["a/one"].folder == below / "a/one"
    assert catalog.problems


def test_reading_json_gives_the_value(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text('{"a": [1, 2.5, null]}')
    assert read_json(file) == {"a": [1, 2.5, None]}
    with pytest.raises(EntryError):
        read_json(tmp_path / "missing.json")
