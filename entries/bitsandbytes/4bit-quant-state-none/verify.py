# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "bitsandbytes>=0.50", "transformers>=5", "accelerate>=1.0"]
# ///
"""A bitsandbytes 4-bit layer is called while its weight is not packed, or has lost the state to unpack it with.

One layer stands for all those of a model. A fix passes if the layer is packed and computes, within the error of four
bits, what the float matrix gives, and exactly what its own unpacked weight gives.
"""

import copy

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

pytestmark = pytest.mark.requires(bitsandbytes=">=0.50", transformers=">=5")

WIDTH = 64
FOUR_BITS = 0.2
"""How far NF4 may be from the float matrix."""


@pytest.fixture(params=["never-moved", "assigned-on-meta", "packed-weight-without-state"])
def config(request):
    """A layer made by hand; one filled by a loader of its own; one that was given another layer's packed weight."""
    return request.param


def matrix():
    return torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5


def inputs(device):
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)).to(device)


def empty_layer(**options):
    return bnb.nn.Linear4bit(WIDTH, WIDTH, bias=False, quant_type="nf4", compress_statistics=False, **options)


def layer_by_hand(**options):
    layer = empty_layer(**options)
    layer.load_state_dict({"weight": matrix()})
    return layer


def packed_layer(device):
    return layer_by_hand().to(device)


def broken_layer(config, device, **options):
    if config == "never-moved":
        return layer_by_hand(**options)
    if config == "assigned-on-meta":
        with torch.device("meta"):
            layer = empty_layer(**options)
        layer.load_state_dict({"weight": matrix()}, assign=True)
        return layer
    layer = empty_layer(**options)
    layer.weight = nn.Parameter(packed_layer(device).weight.data, requires_grad=False)
    return layer


def check(measure, layer, device):
    """The layer is packed, and its product is that of its own unpacked weight and close to that of the float matrix."""
    result = measure(lambda: layer(inputs(device)))
    assert layer.weight.dtype == torch.uint8
    unpacked = bnb.functional.dequantize_4bit(packed_layer(device).weight.data, packed_layer(device).weight.quant_state)
    measure.compare(result.cpu(), inputs("cpu").double() @ unpacked.cpu().double().t(), tolerance=0.02)
    measure.compare(result.cpu(), inputs("cpu").double() @ matrix().double().t(), tolerance=FOUR_BITS)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"does not concern {config}")


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    layer = broken_layer(config, device)
    try:
        layer(inputs(device))
    finally:
        measure.recovers(lambda: packed_layer(device)(inputs(device)).isfinite().all())


@pytest.mark.workaround("move-layer-to-device")
def test_move_layer_to_device(config, device, measure):
    only_for(config, "never-moved")
    check(measure, broken_layer(config, device).to(device), device)


@pytest.mark.workaround("wrap-in-params4bit")
def test_wrap_in_params4bit(config, device, measure):
    only_for(config, "never-moved", "assigned-on-meta")
    layer = broken_layer(config, device)
    layer.weight = bnb.nn.Params4bit(
        layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False, module=layer
    )
    check(measure, layer.to(device), device)


@pytest.mark.workaround("quantize-through-from-pretrained")
def test_quantize_through_from_pretrained(config, device, measure, tiny_llama, tmp_path):
    only_for(config, "never-moved", "assigned-on-meta")
    tiny_llama(hidden_size=WIDTH, intermediate_size=WIDTH).save_pretrained(tmp_path)
    model = load_in_4bit(tmp_path, device)
    linear = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(linear) == 14
    assert all(module.weight.quant_state is not None for module in linear)
    ids = torch.arange(8, device=device)[None]
    logits = measure(lambda: model(input_ids=ids).logits)
    measure.compare(logits.cpu(), unpacked_logits(model, tmp_path, ids), tolerance=0.05)


@pytest.mark.workaround("carry-the-state")
def test_carry_the_state(config, device, measure):
    only_for(config, "packed-weight-without-state")
    saved = packed_layer(device).state_dict()
    layer = empty_layer()
    state = {name.removeprefix("weight."): part for name, part in saved.items() if name != "weight"}
    layer.weight = bnb.nn.Params4bit.from_prequantized(saved["weight"], state, device=device, module=layer)
    check(measure, layer, device)


@pytest.mark.workaround("share-the-parameter")
def test_share_the_parameter(config, device, measure):
    only_for(config, "packed-weight-without-state")
    layer = empty_layer()
    layer.weight = packed_layer(device).weight
    check(measure, layer, device)


@pytest.mark.workaround("copy-the-whole-layer")
def test_copy_the_whole_layer(config, device, measure):
    only_for(config, "packed-weight-without-state")
    check(measure, copy.deepcopy(packed_layer(device)), device)


@pytest.mark.dead_end("move-it-again")
def test_move_it_again(config, device):
    only_for(config, "assigned-on-meta", "packed-weight-without-state")
    layer = broken_layer(config, device).to(device)
    layer(inputs(device))


@pytest.mark.dead_end("set-compute-dtype")
def test_set_compute_dtype(config, device):
    layer = broken_layer(config, device, compute_dtype=torch.bfloat16)
    layer(inputs(device).bfloat16())


@pytest.mark.dead_end("cast-the-layer")
def test_cast_the_layer(config, device):
    only_for(config, "never-moved", "assigned-on-meta")
    broken_layer(config, device).half()(inputs(device).half())


@pytest.mark.dead_end("evaluation-mode")
def test_evaluation_mode(config, device):
    layer = broken_layer(config, device).eval().requires_grad_(False)
    with torch.inference_mode():
        layer(inputs(device))


def load_in_4bit(folder, device):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, device_map={"": device})


def unpacked_logits(model, folder, ids):
    """The same model in float32 with the unpacked weights."""
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            unpacked = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            twin.get_submodule(name).weight.data = unpacked.float().cpu()
    with torch.no_grad():
        return twin(input_ids=ids.cpu()).logits
