"""Which folders are read, and what tells that they changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kb.errors import UsageError
from kb.layers import Layer, default_path, layers, stamp
from tests.conftest import PROJECT, entry

Add = Callable[..., Path]


@pytest.fixture
def layer(catalogue: Add) -> Layer:
    return Layer("team", catalogue(entry("a/one"), entry("a/two")))


def test_overlays_come_after_the_packaged_entries(tmp_path: Path) -> None:
    assert [one.root for one in layers([tmp_path])] == [PROJECT / "entries", tmp_path]


def test_an_overlay_that_is_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        layers([tmp_path / "nowhere"])


def test_the_stamp_stays_while_nothing_changes(layer: Layer) -> None:
    assert stamp([layer]) == stamp([layer])


def _edit(root: Path) -> None:
    file = root / "a/one/entry.json"
    file.write_text(file.read_text() + " ")


def _touch(root: Path) -> None:
    os.utime(root / "a/one/entry.json", ns=(1, 1))


def _add(root: Path) -> None:
    (root / "a/one/verify.py").write_text("")


def _remove(root: Path) -> None:
    (root / "a/one/entry.json").unlink()


def _rename(root: Path) -> None:
    (root / "a/two").rename(root / "a/three")


@pytest.mark.parametrize("change", [_edit, _touch, _add, _remove, _rename])
def test_the_stamp_tells_every_change(layer: Layer, change: Callable[[Path], None]) -> None:
    before = stamp([layer])
    change(layer.root)
    assert stamp([layer]) != before


def test_compiled_files_do_not_change_the_stamp(layer: Layer) -> None:
    before = stamp([layer])
    (layer.root / "a/one/__pycache__").mkdir()
    (layer.root / "a/one/__pycache__/verify.pyc").write_text("x")
    assert stamp([layer]) == before


def test_a_built_stamp_stands_for_the_files(layer: Layer) -> None:
    (layer.root / "STAMP").write_text("abc\n")
    before = stamp([layer])
    _touch(layer.root)
    assert stamp([layer]) == before
    (layer.root / "STAMP").write_text("def\n")
    assert stamp([layer]) != before


def test_the_stamp_tells_the_order_of_layers(layer: Layer, tmp_path: Path) -> None:
    other = Layer("other", tmp_path / "other")
    other.root.mkdir()
    assert stamp([layer, other]) != stamp([other, layer])


def test_a_broken_link_does_not_stop_the_stamp(layer: Layer) -> None:
    before = stamp([layer])
    (layer.root / "a/gone").symlink_to("nowhere")
    assert stamp([layer]) != before


def test_each_set_of_layers_has_an_index_of_its_own(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KB_CACHE", str(tmp_path / "cache"))
    first, second = default_path([layer]), default_path([layer, Layer("other", tmp_path)])
    assert first.parent == second.parent == tmp_path / "cache"
    assert first != second
    assert not (tmp_path / "cache").exists()


def test_without_a_chosen_folder_the_users_cache_is_taken(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KB_CACHE", raising=False)
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    path = default_path([layer])
    assert path.is_relative_to(tmp_path)
    assert "provenfix" in path.parts
