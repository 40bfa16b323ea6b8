# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=5", "accelerate>=1.1", "bitsandbytes>=0.48"]
# ///
"""The arguments load_in_8bit and load_in_4bit, which from_pretrained no longer takes.

`eight-bit` and `four-bit` ask for quantization as programs of transformers 4 did. `flag-unset` is a script that hands
its option on although it is off, `beside-a-config` one that has both the new way and the old. All but the last are
reproduced with bitsandbytes and accelerate hidden.
"""

import sys

import accelerate
import bitsandbytes
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.4", transformers=">=5", bitsandbytes=">=0.48", accelerate=">=1.1")

LAYERS = 2
ROUNDING = {"eight-bit": 0.05, "beside-a-config": 0.05, "four-bit": 0.3, "flag-unset": 1e-4}
"""Largest error of a logit, relative to the largest one, that rounding the weights may cause."""


@pytest.fixture(params=list(ROUNDING))
def config(request):
    """What is passed."""
    return request.param


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=LAYERS, **shape)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def options(config):
    """What BitsAndBytesConfig is told."""
    if config == "four-bit":
        return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    return {"load_in_8bit": True}


def flags(config):
    """The arguments of the broken programs."""
    if config == "beside-a-config":
        return {"load_in_8bit": True, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {"load_in_8bit": False} if config == "flag-unset" else {next(iter(options(config))): True}


def place(device):
    return {"device_map": {"": 0}} if device == "cuda" else {}


def quantized(model):
    kinds = bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit
    return float(sum(isinstance(layer, kinds) for layer in model.modules()))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 15)[None].to(model.device)).logits.double().cpu()


def close(measure, model, config, path):
    wanted = 0.0 if config == "flag-unset" else 7.0 * LAYERS
    assert quantized(model) == wanted
    measure.record("quantized layers", quantized(model))
    measure.compare(logits(model), logits(LlamaForCausalLM.from_pretrained(path).double()), ROUNDING[config])


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.mark.reproduces
def test_reproduces(config, path, monkeypatch):
    if config != "beside-a-config":
        for package in ("bitsandbytes", "accelerate"):
            monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    AutoModelForCausalLM.from_pretrained(path, **flags(config))


@pytest.mark.workaround("quantization-config")
def test_quantization_config(config, path, device, measure):
    only_for(config, "eight-bit", "four-bit", "beside-a-config")
    settings = BitsAndBytesConfig(**options(config))
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=settings, **place(device))
    close(measure, model, config, path)


@pytest.mark.workaround("settings-as-a-dict")
def test_settings_as_a_dict(config, path, device, measure):
    only_for(config, "eight-bit", "four-bit", "beside-a-config")
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=options(config), **place(device))
    close(measure, model, config, path)


@pytest.mark.workaround("save-it-quantized")
def test_save_it_quantized(config, path, device, measure, tmp_path):
    only_for(config, "eight-bit", "four-bit")
    settings = BitsAndBytesConfig(**options(config))
    first = AutoModelForCausalLM.from_pretrained(path, quantization_config=settings, **place(device))
    first.save_pretrained(tmp_path / "quantized")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", **place(device))
    close(measure, model, config, path)


@pytest.mark.workaround("pass-only-what-is-set")
def test_pass_only_what_is_set(config, path, device, measure):
    only_for(config, "flag-unset")
    load_in_8bit = False
    extra = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if load_in_8bit else {}
    close(measure, AutoModelForCausalLM.from_pretrained(path, **extra, **place(device)), config, path)


@pytest.mark.dead_end("newer-packages")
def test_newer_packages(config, path, measure):
    only_for(config, "eight-bit", "four-bit", "flag-unset")
    measure.record("bitsandbytes", bitsandbytes.__version__)
    measure.record("accelerate", accelerate.__version__)
    AutoModelForCausalLM.from_pretrained(path, **flags(config))


@pytest.mark.dead_end("device-map-auto")
def test_device_map_auto(config, path):
    AutoModelForCausalLM.from_pretrained(path, device_map="auto", **flags(config))


@pytest.mark.dead_end("flag-in-the-config")
def test_flag_in_the_config(config, path, device, measure):
    only_for(config, "eight-bit", "four-bit")
    settings = AutoConfig.from_pretrained(path, **flags(config))
    model = AutoModelForCausalLM.from_pretrained(path, config=settings, **place(device))
    measure.compare(quantized(model), 7.0 * LAYERS, 0.01)
