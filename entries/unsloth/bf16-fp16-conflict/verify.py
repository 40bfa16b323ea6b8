# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.52", "unsloth>=2025.9"]
# ///
"""Unsloth's check of the precision flags against the model.

unsloth can only be imported beside a GPU, so its check, a piece of source that it writes into every trainer that it
compiles, is taken out of the installed file and run as it stands; `_get_dtype`, which it imports, is replaced by a line
that does the same. Install unsloth without its dependencies to run this: `pip install --no-deps unsloth`.
"""

from __future__ import annotations

import ast
import json
import os
import pathlib
import sys
import types
from importlib import metadata
from typing import NamedTuple

import pytest
import torch
import transformers
from torch import nn

WIDTH = 32


class Config(NamedTuple):
    """The type the model is loaded in, and the flag that contradicts it."""

    loaded: torch.dtype
    flag: str


@pytest.fixture(
    params=[
        pytest.param(Config(torch.bfloat16, "fp16"), id="bfloat16-model-fp16-flag"),
        pytest.param(Config(torch.float16, "bf16"), id="float16-model-bf16-flag"),
        pytest.param(
            Config(torch.float32, "fp16"), id="float32-model-fp16-flag", marks=pytest.mark.requires(unsloth="<2025.12")
        ),
    ]
)
def config(request) -> Config:
    return request.param


class Args:
    """The flags of the training arguments that the check reads and sets."""

    def __init__(self, fp16: bool = False, bf16: bool = False) -> None:
        self.fp16, self.bf16 = fp16, bf16


def source_of_the_check() -> str:
    file = metadata.distribution("unsloth").locate_file("unsloth/models/rl.py")
    for node in ast.walk(ast.parse(pathlib.Path(str(file)).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "mixed_precision":
            return ast.literal_eval(node.value)
    raise LookupError("this release of unsloth keeps its check elsewhere")


def check(model: nn.Module, args: Args, monkeypatch) -> Args:
    """What the compiled trainer does first, on a card that has bfloat16."""
    kinds = types.ModuleType("unsloth_zoo.utils")
    kinds._get_dtype = lambda dtype: getattr(torch, dtype) if isinstance(dtype, str) else dtype
    monkeypatch.setitem(sys.modules, "unsloth_zoo", types.ModuleType("unsloth_zoo"))
    monkeypatch.setitem(sys.modules, "unsloth_zoo.utils", kinds)
    monkeypatch.setitem(sys.modules, "unsloth_zoo.device_type", None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    exec(compile(source_of_the_check(), "<the check of unsloth>", "exec"), {"args": args, "model": model, **NAMES})
    return args


NAMES = {"torch": torch, "os": os}


def load(folder: pathlib.Path, dtype: torch.dtype, written: str | None = None) -> nn.Module:
    """A tiny model as the loader of unsloth asks for it; `written` replaces the type in its config.json."""
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=32, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(settings).save_pretrained(folder)
    if written:
        path = folder / "config.json"
        entries = json.loads(path.read_text())
        path.write_text(json.dumps({**entries, "dtype": written, "torch_dtype": written}))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def flags(name: str) -> Args:
    return Args(**{name: True})


def autocast_of(args: Args) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float16


def loss(model: nn.Module, args: Args) -> torch.Tensor:
    """The loss of one batch under the mixed precision that the flags stand for."""
    ids = torch.arange(16).reshape(2, 8)
    with torch.autocast("cpu", dtype=autocast_of(args)), torch.no_grad():
        return model(input_ids=ids, labels=ids).loss


def reference(folder: pathlib.Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss


@pytest.mark.reproduces
def test_reproduces(config, tmp_path, monkeypatch):
    check(load(tmp_path, config.loaded), flags(config.flag), monkeypatch)


@pytest.mark.workaround("match-flags-to-model")
def test_match_flags_to_model(config, tmp_path, measure, monkeypatch):
    model = load(tmp_path, config.loaded)
    args = check(model, flags("fp16" if config.loaded == torch.float16 else "bf16"), monkeypatch)
    assert args.fp16 != args.bf16
    measure.compare(loss(model, args), reference(tmp_path), tolerance=0.02)


@pytest.mark.workaround("leave-the-flags-out")
def test_leave_the_flags_out(config, tmp_path, measure, monkeypatch):
    model = load(tmp_path, config.loaded)
    args = check(model, Args(), monkeypatch)
    assert autocast_of(args) == (torch.float16 if config.loaded == torch.float16 else torch.bfloat16)
    measure.compare(loss(model, args), reference(tmp_path), tolerance=0.02)


@pytest.mark.workaround("load-in-the-other-type")
def test_load_in_the_other_type(config, tmp_path, measure, monkeypatch):
    wanted = torch.float16 if config.flag == "fp16" else torch.bfloat16
    model = load(tmp_path, wanted)
    args = check(model, flags(config.flag), monkeypatch)
    assert autocast_of(args) == wanted
    measure.compare(loss(model, args), reference(tmp_path), tolerance=0.02)


@pytest.mark.dead_end("edit-torch-dtype")
def test_edit_torch_dtype(config, tmp_path, monkeypatch):
    written = "float16" if config.flag == "fp16" else "bfloat16"
    check(load(tmp_path, config.loaded, written=written), flags(config.flag), monkeypatch)


@pytest.mark.dead_end("accelerate-variable")
def test_accelerate_variable(config, tmp_path, monkeypatch):
    model = load(tmp_path, config.loaded)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if config.flag == "fp16" else "fp16")
    check(model, flags(config.flag), monkeypatch)


@pytest.mark.dead_end("autocast-around-the-trainer")
def test_autocast_around_the_trainer(config, tmp_path, monkeypatch):
    model = load(tmp_path, config.loaded)
    with torch.autocast("cpu", dtype=torch.float16 if config.flag == "fp16" else torch.bfloat16):
        check(model, flags(config.flag), monkeypatch)
