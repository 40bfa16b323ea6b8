# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.38", "accelerate>=1.1", "bitsandbytes>=0.46.1", "safetensors"]
# ///
"""A quantization method that transformers does not know, from the caller or from config.json.

`dict-from-the-caller` names a package where a method is wanted. The other two are checkpoints that releases before 4.49
refuse (later ones warn and load the weights as they are): a tiny Llama whose config.json kept an entry of weights long
converted, and one whose matrices are float8 with a scale, the way DeepSeek-V3 stores them, with one scale per matrix.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.38", accelerate=">=1.1", bitsandbytes=">=0.46.1")
OLD = pytest.mark.requires(transformers="<4.49")

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
ROUNDING = 0.3
"""Largest error of a logit, relative to the largest logit, that 4-bit and 8-bit weights may cause."""


@pytest.fixture(
    params=[
        pytest.param("dict-from-the-caller", marks=pytest.mark.requires(transformers=">=4.56")),
        pytest.param("stale-config", marks=OLD),
        pytest.param("fp8-checkpoint", marks=OLD),
    ]
)
def config(request):
    return request.param


@pytest.fixture
def folder(config, tiny_llama, tmp_path):
    tiny_llama(hidden_size=64).save_pretrained(tmp_path)
    if config != "dict-from-the-caller":
        edit(tmp_path, {"quant_method": "bf16" if config == "stale-config" else "fp8", "fmt": "e4m3"})
    if config == "fp8-checkpoint":
        tensors = load_file(tmp_path / "model.safetensors")
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            scale = tensors[name].abs().max() / torch.finfo(torch.float8_e4m3fn).max
            tensors[f"{name}_scale_inv"] = scale
            tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def edit(folder, entry: dict | None) -> None:
    """Write the `quantization_config` of config.json; None removes it."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("quantization_config", None)
    path.write_text(json.dumps(settings | ({"quantization_config": entry} if entry else {})))


def to_bfloat16(folder) -> None:
    """Multiply float8 matrices by their scales."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if f"{name}_scale_inv" in tensors]:
        tensors[name] = (tensors[name].float() * tensors.pop(f"{name}_scale_inv")).bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def load(config: str, folder, **options):
    if config == "dict-from-the-caller":
        options = {"quantization_config": {"quant_method": "bitsandbytes"}} | options
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS.to(model.device)).logits


def check(measure, model, tiny_llama) -> None:
    reference = logits(tiny_llama(torch.float64, hidden_size=64).eval())
    measure.compare(measure(lambda: logits(model)), reference, ROUNDING)


@pytest.mark.reproduces
def test_reproduces(config, folder):
    load(config, folder)


@pytest.mark.workaround("name-the-method")
def test_name_the_method(config, folder, measure, tiny_llama):
    if config != "dict-from-the-caller":
        pytest.skip("the method comes from config.json")
    model = load(config, folder, quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True))
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    check(measure, model, tiny_llama)


@pytest.mark.workaround("remove-config")
def test_remove_config(config, folder, measure, tiny_llama):
    if config != "stale-config":
        pytest.skip("the weights are not unquantized ones with a stale entry")
    edit(folder, None)
    check(measure, load(config, folder), tiny_llama)


@pytest.mark.workaround("convert-weights")
def test_convert_weights(config, folder, measure, tiny_llama):
    if config != "fp8-checkpoint":
        pytest.skip("there is nothing to convert")
    to_bfloat16(folder)
    edit(folder, None)
    check(measure, load(config, folder), tiny_llama)


@pytest.mark.dead_end("convert-only")
def test_convert_only(config, folder):
    if config != "fp8-checkpoint":
        pytest.skip("there is nothing to convert")
    to_bfloat16(folder)
    load(config, folder)


@pytest.mark.dead_end("remove-config-only")
def test_remove_config_only(config, folder, measure, tiny_llama):
    if config != "fp8-checkpoint":
        pytest.skip("the weights are not quantized")
    edit(folder, None)
    check(measure, load(config, folder, torch_dtype=torch.float32), tiny_llama)


@pytest.mark.dead_end("quantize-over-it")
def test_quantize_over_it(config, folder):
    if config == "dict-from-the-caller":
        pytest.skip("that is the fix where config.json has no entry")
    load(config, folder, quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True))


@pytest.mark.dead_end("name-the-data-type")
def test_name_the_data_type(config, folder):
    if config != "dict-from-the-caller":
        pytest.skip("the method comes from config.json")
    load(config, folder, quantization_config={"quant_method": "nf4"})
