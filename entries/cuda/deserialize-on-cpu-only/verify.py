# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A checkpoint that was saved from GPU tensors, read where torch does not see that GPU.

No second machine is at hand, so the file is made by telling `torch.save` that the model's storages lie on a card:
byte for byte what saving on that card writes. Without a GPU any card will do; with one, a card number beyond the last.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

WIDTH = 16


@pytest.fixture(
    params=[
        "state-dict",
        "with-optimizer",
        "loaded-by-a-library",
        pytest.param("higher-card-number", marks=pytest.mark.requires(device="cuda")),
    ]
)
def config(request) -> str:
    if torch.cuda.is_available() != (request.param == "higher-card-number"):
        pytest.skip("torch sees a GPU, and this configuration is about a machine where it sees none")
    return request.param


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()
    return model, optimizer


def checkpoint(config: str) -> dict[str, Any]:
    model, optimizer = trained()
    if config == "with-optimizer":
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
    return model.state_dict()


@contextlib.contextmanager
def storages_on(card: str) -> Iterator[None]:
    """While it holds, `torch.save` notes this card for every storage."""
    original = torch.serialization.location_tag
    torch.serialization.location_tag = lambda _storage: card
    try:
        yield
    finally:
        torch.serialization.location_tag = original


def saved_elsewhere(config: str, folder: pathlib.Path) -> pathlib.Path:
    card = f"cuda:{torch.cuda.device_count()}" if config == "higher-card-number" else "cuda:0"
    with storages_on(card):
        torch.save(checkpoint(config), folder / "best.pt")
    return folder / "best.pt"


def some_library_load(path: pathlib.Path) -> Any:
    return torch.load(path)


def check(measure, config: str, loaded: dict[str, Any], device: str = "cpu") -> None:
    """All tensors are back with their values, the model's on the device that was asked for."""
    wanted = checkpoint(config)
    if config == "with-optimizer":
        moments = [{name: state[name] for name in ("exp_avg", "exp_avg_sq")} for state in states(loaded)]
        expected = [{name: state[name] for name in ("exp_avg", "exp_avg_sq")} for state in states(wanted)]
        measure.compare(moments, expected, tolerance=0.0)
        loaded, wanted = loaded["model"], wanted["model"]
    assert {tensor.device.type for tensor in loaded.values()} == {device}
    model = trained()[0].to(device)
    model.load_state_dict(loaded)
    measure.compare(dict(model.state_dict()), wanted, tolerance=0.0)


def states(loaded: dict[str, Any]) -> list[dict[str, Any]]:
    return list(loaded["optimizer"]["state"].values())


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    some_library_load(saved_elsewhere(config, tmp_path))


@pytest.mark.workaround("map-location")
def test_map_location(config, device, tmp_path, measure):
    if config == "loaded-by-a-library":
        pytest.skip("the call is in a package, it takes no argument")
    check(measure, config, torch.load(saved_elsewhere(config, tmp_path), map_location=device), device)


@pytest.mark.workaround("patch-third-party")
def test_patch_third_party(config, tmp_path, measure, monkeypatch):
    path = saved_elsewhere(config, tmp_path)
    monkeypatch.setattr(torch, "load", functools.partial(torch.load, map_location="cpu"))
    check(measure, config, some_library_load(path))


@pytest.mark.workaround("save-on-cpu")
def test_save_on_cpu(config, tmp_path, measure):
    path = saved_elsewhere(config, tmp_path)
    torch.save(torch.load(path, map_location="cpu"), path)
    check(measure, config, some_library_load(path))


@pytest.mark.dead_end("move-after-loading")
def test_move_after_loading(config, tmp_path):
    model = trained()[0].to("cpu")
    model.load_state_dict(some_library_load(saved_elsewhere(config, tmp_path)))
    model.to("cpu")


@pytest.mark.dead_end("default-device")
def test_default_device(config, tmp_path):
    path = saved_elsewhere(config, tmp_path)
    with torch.device("cpu"):
        some_library_load(path)


@pytest.mark.dead_end("weights-only-false")
def test_weights_only_false(config, tmp_path):
    torch.load(saved_elsewhere(config, tmp_path), weights_only=False)


@pytest.mark.dead_end("hide-the-cards")
def test_hide_the_cards(config, tmp_path, monkeypatch):
    if config == "higher-card-number":
        pytest.skip("the variable has to be set before torch starts the driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    some_library_load(saved_elsewhere(config, tmp_path))
