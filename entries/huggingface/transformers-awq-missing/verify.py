# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56", "accelerate>=1.1", "bitsandbytes>=0.46.1", "safetensors"]
# ///
"""An AWQ checkpoint where the package with its kernels is not installed.

A tiny Llama is packed the way AWQ packs it: eight 4-bit numbers in an int32, in their odd order, with a zero and a
scale for each group of input channels. What a fix computes is compared with the unquantized model in float64, within
what 4 bits cost; the unpacked weights also with the numbers that were packed.
"""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56", accelerate=">=1.1", bitsandbytes=">=0.46.1")

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which of eight neighbouring outputs lies in the n-th four bits."""
GROUP = 32
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
ROUNDING = 0.3
"""Largest error of a logit, relative to the largest logit, that 4-bit weights may cause."""


@pytest.fixture(
    params=[
        pytest.param("release-5-without-gptqmodel", marks=pytest.mark.requires(transformers=">=5")),
        pytest.param("release-4-without-autoawq", marks=pytest.mark.requires(transformers="<5")),
    ]
)
def config(request):
    package = "awq" if "autoawq" in request.param else "gptqmodel"
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    return request.param


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """4-bit numbers, zeros and scales of a weight of shape [outputs, inputs], the inputs first."""
    groups = weight.t().reshape(-1, GROUP, weight.shape[0])
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-5)
    zeros = (-low / scales).round()
    numbers = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return numbers.reshape(weight.t().shape).int(), zeros.int(), scales


def pack(numbers: torch.Tensor) -> torch.Tensor:
    rows = numbers.reshape(len(numbers), -1, 8)
    return sum(rows[..., place] << 4 * index for index, place in enumerate(ORDER)).int().contiguous()


def unpack(packed: torch.Tensor) -> torch.Tensor:
    rows = torch.stack([packed >> 4 * ORDER.index(place) & 15 for place in range(8)], -1)
    return rows.flatten(1)


def dequantized(numbers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    size = numbers.shape[0] // zeros.shape[0]
    zeros, scales = zeros.repeat_interleave(size, 0), scales.repeat_interleave(size, 0)
    return ((numbers - zeros) * scales).t().contiguous()


@pytest.fixture
def original(tiny_llama, tmp_path):
    """The model before quantization."""
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "original")
    return tmp_path / "original"


@pytest.fixture
def folder(config, original, tmp_path):
    path = tmp_path / "awq"
    path.mkdir()
    tensors = load_file(original / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        numbers, zeros, scales = quantized(tensors.pop(name))
        prefix = name.removesuffix("weight")
        tensors |= {f"{prefix}qweight": pack(numbers), f"{prefix}qzeros": pack(zeros), f"{prefix}scales": scales}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    settings = json.loads((original / "config.json").read_text())
    awq = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    (path / "config.json").write_text(json.dumps(settings | {"quantization_config": awq}))
    return path


def forget_quantization(folder) -> None:
    settings = json.loads((folder / "config.json").read_text())
    del settings["quantization_config"]
    (folder / "config.json").write_text(json.dumps(settings))


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS.to(model.device)).logits


def check(measure, model, tiny_llama) -> None:
    reference = logits(tiny_llama(torch.float64, hidden_size=64).eval())
    measure.compare(measure(lambda: logits(model)), reference, ROUNDING)


@pytest.mark.reproduces
def test_reproduces(folder):
    load(folder)


@pytest.mark.workaround("other-quantization")
def test_other_quantization(config, original, measure, tiny_llama):
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True)
    model = load(original, quantization_config=settings)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    check(measure, model, tiny_llama)


@pytest.mark.workaround("unpack-the-weights")
def test_unpack_the_weights(folder, original, device, measure, tiny_llama):
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("qweight")]:
        prefix = name.removesuffix("qweight")
        numbers, zeros = unpack(tensors.pop(name)), unpack(tensors.pop(f"{prefix}qzeros"))
        tensors[f"{prefix}weight"] = dequantized(numbers, zeros, tensors.pop(f"{prefix}scales"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    forget_quantization(folder)
    model = load(folder).to(device)
    weight = load_file(original / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    measure.compare(model.model.layers[0].mlp.up_proj.weight, dequantized(*quantized(weight)), tolerance=1e-6)
    check(measure, model, tiny_llama)


@pytest.mark.dead_end("remove-the-config")
def test_remove_the_config(folder, measure, tiny_llama):
    forget_quantization(folder)
    check(measure, load(folder), tiny_llama)


@pytest.mark.dead_end("quantize-over-it")
def test_quantize_over_it(folder):
    load(folder, quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True))


@pytest.mark.dead_end("half-precision")
def test_half_precision(folder):
    load(folder, dtype=torch.float16)
