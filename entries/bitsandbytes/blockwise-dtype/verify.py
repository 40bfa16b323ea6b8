# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "bitsandbytes>=0.48", "transformers>=4.56", "accelerate>=1.0"]
# ///
"""The 4-bit quantizer is handed a weight that is no 16- or 32-bit float.

A 4-bit layer that packs one matrix when it is moved stands for the loading of a model. A fix passes if the layer
computes, within the error of four bits, the product with the matrix that the weight stands for.
"""

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

pytestmark = pytest.mark.requires(bitsandbytes=">=0.48", transformers=">=4.56")

WIDTH = 64
FOUR_BITS = 0.2


@pytest.fixture(params=["packed-before", "float8-with-scales", "int8-with-scales", "float64"])
def config(request):
    """What the weight is: bytes that bitsandbytes packed, a scaled 8-bit format, or numbers from NumPy."""
    return request.param


def matrix():
    """The numbers meant, larger than one, so that a lost scale cannot go unseen."""
    return torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) * 3


def stored(config, device):
    """The weight as the checkpoint has it, and what it takes to read it."""
    if config == "packed-before":
        return bnb.functional.quantize_4bit(matrix().to(device), quant_type="nf4")
    if config == "float64":
        return matrix().double().to(device), None
    kind, largest = (torch.float8_e4m3fn, 448.0) if config == "float8-with-scales" else (torch.int8, 127.0)
    scales = matrix().abs().amax(dim=1, keepdim=True) / largest
    values = matrix() / scales
    return (values.round() if kind == torch.int8 else values).to(kind).to(device), scales.to(device)


def quantize(weight, device, **options):
    """A 4-bit layer that packs `weight` on its way to the device."""
    settings = {"quant_type": "nf4", **options}
    layer = bnb.nn.Linear4bit(WIDTH, WIDTH, bias=False, **settings)
    settings.pop("compute_dtype", None)
    layer.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, module=layer, **settings)
    return layer.to(device)


def inputs(device):
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)).to(device)


def check(measure, layer, device):
    result = measure(lambda: layer(inputs(device)))
    measure.compare(result.cpu(), inputs("cpu").double() @ matrix().double().t(), tolerance=FOUR_BITS)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"does not concern {config}")


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    weight, _ = stored(config, device)
    try:
        quantize(weight, device)
    finally:
        measure.recovers(lambda: quantize(matrix(), device)(inputs(device)).isfinite().all())


@pytest.mark.workaround("load-16-bit-checkpoint")
def test_load_16_bit_checkpoint(config, device, measure):
    check(measure, quantize(matrix().bfloat16(), device), device)


@pytest.mark.workaround("apply-the-scales")
def test_apply_the_scales(config, device, measure):
    only_for(config, "float8-with-scales", "int8-with-scales")
    weight, scales = stored(config, device)
    check(measure, quantize((weight.float() * scales).to(torch.bfloat16), device), device)


@pytest.mark.workaround("unpack-first")
def test_unpack_first(config, device, measure):
    only_for(config, "packed-before")
    packed, state = stored(config, device)
    check(measure, quantize(bnb.functional.dequantize_4bit(packed, state), device), device)


@pytest.mark.workaround("use-checkpoint-quantization")
def test_use_checkpoint_quantization(config, device, measure, tiny_llama, tmp_path):
    only_for(config, "packed-before")
    tiny_llama(hidden_size=WIDTH).save_pretrained(tmp_path / "whole")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=quantization, device_map={"": device}
    )
    ids = torch.arange(12, device=device)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.save_pretrained(tmp_path / "packed")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", device_map={"": device})
        assert any(isinstance(module, bnb.nn.Linear4bit) for module in loaded.modules())
        measure.compare(measure(lambda: loaded(input_ids=ids).logits), expected, tolerance=1e-3)


@pytest.mark.workaround("cast-before-quantizing")
def test_cast_before_quantizing(config, device, measure):
    only_for(config, "float64")
    weight, _ = stored(config, device)
    check(measure, quantize(weight.to(torch.bfloat16), device), device)


@pytest.mark.dead_end("bare-cast")
def test_bare_cast(config, device, measure):
    """The values are read without their scales, or the packed bytes as numbers; those do not even have the shape."""
    only_for(config, "packed-before", "float8-with-scales", "int8-with-scales")
    weight, _ = stored(config, device)
    check(measure, quantize(weight.to(torch.bfloat16), device), device)


@pytest.mark.dead_end("reinterpret-bytes")
def test_reinterpret_bytes(config, device, measure):
    only_for(config, "packed-before")
    weight, _ = stored(config, device)
    check(measure, quantize(weight.reshape(WIDTH, -1).view(torch.bfloat16), device), device)


@pytest.mark.dead_end("other-quant-type")
def test_other_quant_type(config, device):
    weight, _ = stored(config, device)
    quantize(weight, device, quant_type="fp4")


@pytest.mark.dead_end("set-storage-and-compute-dtype")
def test_set_storage_and_compute_dtype(config, device):
    weight, _ = stored(config, device)
    quantize(weight, device, compute_dtype=torch.bfloat16, quant_storage=torch.bfloat16)
