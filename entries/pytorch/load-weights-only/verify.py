# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.6", "numpy>=1.26", "safetensors>=0.4"]
# ///
"""`torch.load` reads tensors and a short list of types, and these files hold something else.

Each configuration is a file as training programs leave them: random states of numpy, options beside the weights, a
whole pickled model, and a safetensors file under a pickle's name. `some_library_load` stands for the packages that
call `torch.load(path)` and rely on the old default.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.6")

WIDTH = 16


@pytest.fixture(params=["numpy-random-state", "options-beside-weights", "whole-model", "safetensors-renamed"])
def config(request) -> str:
    return request.param


class Saved(NamedTuple):
    """A file, and the tensors that reading it has to bring back."""

    path: pathlib.Path
    tensors: dict[str, torch.Tensor]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4))


def content(config: str) -> Any:
    """What the training program pickles."""
    model = build()
    if config == "numpy-random-state":
        return {"numpy": np.random.RandomState(7).get_state(), "cpu": torch.get_rng_state()}
    if config == "options-beside-weights":
        return {"model": model.state_dict(), "args": argparse.Namespace(lr=0.01, output=pathlib.PurePosixPath("runs"))}
    return model


def tensors(checkpoint: Any) -> dict[str, torch.Tensor]:
    """The tensors in what was read, whatever it is wrapped in."""
    if isinstance(checkpoint, nn.Module):
        return dict(checkpoint.state_dict())
    if "model" in checkpoint:
        return dict(checkpoint["model"])
    if "numpy" in checkpoint:
        return {"keys": torch.from_numpy(np.asarray(checkpoint["numpy"][1]).astype(np.int64)), "cpu": checkpoint["cpu"]}
    return dict(checkpoint)


def saved(config: str, folder: pathlib.Path) -> Saved:
    if config == "safetensors-renamed":
        path = folder / "pytorch_model.bin"
        safetensors.torch.save_file(build().state_dict(), path)
        return Saved(path, tensors(build()))
    path = folder / "checkpoint.pt"
    torch.save(content(config), path)
    return Saved(path, tensors(content(config)))


def some_library_load(path: pathlib.Path) -> Any:
    return torch.load(path)


def allowlist(config: str) -> list[Any]:
    """The types that the file needs beyond the harmless ones."""
    if config == "numpy-random-state":
        multiarray = (np._core if hasattr(np, "_core") else np.core).multiarray
        return [multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    if config == "options-beside-weights":
        return [argparse.Namespace, pathlib.PurePosixPath]
    return [nn.Sequential, nn.Linear, nn.GELU]


def skip_what_is_no_pickle(config: str) -> None:
    if config == "safetensors-renamed":
        pytest.skip("the file is no pickle, no setting of torch.load reads it")


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    some_library_load(saved(config, tmp_path).path)


@pytest.mark.workaround("allow-the-class")
def test_allow_the_class(config, tmp_path, measure):
    skip_what_is_no_pickle(config)
    file = saved(config, tmp_path)
    with torch.serialization.safe_globals(allowlist(config)):
        checkpoint = some_library_load(file.path)
    measure.compare(tensors(checkpoint), file.tensors, tolerance=0.0)
    measure.record("off_the_list", torch.serialization.get_unsafe_globals_in_checkpoint(file.path))


@pytest.mark.workaround("trust-the-file")
def test_trust_the_file(config, tmp_path, measure):
    skip_what_is_no_pickle(config)
    file = saved(config, tmp_path)
    checkpoint = torch.load(file.path, map_location="cpu", weights_only=False)
    measure.compare(tensors(checkpoint), file.tensors, tolerance=0.0)


@pytest.mark.workaround("environment-switch")
def test_environment_switch(config, tmp_path, measure, monkeypatch):
    skip_what_is_no_pickle(config)
    file = saved(config, tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    measure.compare(tensors(some_library_load(file.path)), file.tensors, tolerance=0.0)


@pytest.mark.workaround("save-plain-data")
def test_save_plain_data(config, tmp_path, measure):
    skip_what_is_no_pickle(config)
    file = saved(config, tmp_path)
    checkpoint = torch.load(file.path, weights_only=False)
    if isinstance(checkpoint, nn.Module):
        checkpoint = checkpoint.state_dict()
    elif "args" in checkpoint:
        options = {name: str(value) for name, value in vars(checkpoint["args"]).items()}
        checkpoint = {"model": checkpoint["model"], "args": options}
    else:
        name, keys, *rest = checkpoint["numpy"]
        checkpoint = {"numpy": (name, keys.tolist(), *rest), "cpu": checkpoint["cpu"]}
    torch.save(checkpoint, file.path)
    measure.compare(tensors(some_library_load(file.path)), file.tensors, tolerance=0.0)


@pytest.mark.workaround("load-by-its-true-kind")
def test_load_by_its_true_kind(config, tmp_path, measure):
    if config != "safetensors-renamed":
        pytest.skip("this file is a pickle, as its name says")
    file = saved(config, tmp_path)
    measure.compare(safetensors.torch.load_file(file.path), file.tensors, tolerance=0.0)


@pytest.mark.dead_end("allow-only-the-one-named")
def test_allow_only_the_one_named(config, tmp_path):
    skip_what_is_no_pickle(config)
    with torch.serialization.safe_globals(allowlist(config)[:1]):
        some_library_load(saved(config, tmp_path).path)


@pytest.mark.dead_end("save-again-with-this-release")
def test_save_again_with_this_release(config, tmp_path):
    skip_what_is_no_pickle(config)
    file = saved(config, tmp_path)
    torch.save(torch.load(file.path, weights_only=False), file.path)
    some_library_load(file.path)


@pytest.mark.dead_end("map-to-cpu")
def test_map_to_cpu(config, tmp_path):
    torch.load(saved(config, tmp_path).path, map_location="cpu", mmap=config != "safetensors-renamed")


@pytest.mark.dead_end("switch-off-for-a-foreign-format")
def test_switch_off_for_a_foreign_format(config, tmp_path):
    if config != "safetensors-renamed":
        pytest.skip("this file is a pickle, which the switch reads")
    torch.load(saved(config, tmp_path).path, weights_only=False)
