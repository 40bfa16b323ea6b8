"""Fixtures that only entries' scripts see; `plugin` puts them into the modules it collects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kb.verify import machine
from kb.verify.measure import Measure
from kb.verify.script import ScriptRunner

DEVICE: pytest.StashKey[str] = pytest.StashKey()
MEASURE: pytest.StashKey[Measure] = pytest.StashKey()


def device_of(config: pytest.Config) -> str:
    """The device under test: `--kb-device`, else CUDA if there is one, else the CPU."""
    if DEVICE not in config.stash:
        device = str(config.getoption("kb_device") or machine.default_device())
        config.stash[DEVICE] = device
        if device.startswith("cuda"):
            # Asked while it still answers: no arm has run yet.
            machine.gpus()
    return config.stash[DEVICE]


@pytest.fixture(name="device")
def kb_device(request: pytest.FixtureRequest) -> str:
    """`cuda` if there is one, else `cpu`; `--kb-device` overrides."""
    return device_of(request.config)


@pytest.fixture(name="measure")
def kb_measure(request: pytest.FixtureRequest) -> Measure:
    """Times a step, compares results with a reference, records values."""
    measure = Measure(device_of(request.config), cost=not request.config.getoption("kb_no_cost"))
    request.node.stash[MEASURE] = measure
    return measure


@pytest.fixture(name="run_script")
def kb_run_script(request: pytest.FixtureRequest) -> ScriptRunner:
    """Runs a program in one or several processes of its own."""
    return ScriptRunner(device_of(request.config))


@pytest.fixture(name="tiny_llama")
def kb_tiny_llama() -> Callable[..., Any]:
    """Factory of a tiny random Llama: `tiny_llama(dtype=None, seed=0, **config_overrides)`, on the CPU."""
    return build_tiny_llama


def build_tiny_llama(dtype: Any = None, seed: int = 0, **config_overrides: Any) -> Any:
    """A `LlamaForCausalLM` of 2 layers and hidden size 32; the same seed gives the same weights in every dtype."""
    import torch  # type: ignore[import-not-found,unused-ignore]
    import transformers  # type: ignore[import-not-found,unused-ignore]

    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **config_overrides}))
    return model if dtype is None else _cast_weights(model, dtype)


def _cast_weights(model: Any, dtype: Any) -> Any:
    """Weights in `dtype`, buffers as they were: `from_pretrained` keeps the rotary frequencies in float32."""
    buffers = {
        (module, name): buffer for module in model.modules() for name, buffer in module.named_buffers(recurse=False)
    }
    model.to(dtype)
    for (module, name), buffer in buffers.items():
        module._buffers[name] = buffer
    return model


FIXTURES = {"device": kb_device, "measure": kb_measure, "run_script": kb_run_script, "tiny_llama": kb_tiny_llama}


def offer(module: Any) -> None:
    """Put the fixtures into a module under names that sort before its own, which therefore win over ours."""
    for name, fixture in FIXTURES.items():
        setattr(module, f"_kb_{name}", fixture)
