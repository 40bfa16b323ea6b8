# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "bitsandbytes", "transformers>=4.56", "peft", "accelerate"]
# ///
"""No mismatch of weight and compute dtype makes a 4-bit layer or model fail; float16 overflows without a word."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import bitsandbytes as bnb
import peft
import pytest
import torch
import transformers

pytestmark = pytest.mark.requires(
    torch=">=2.1", bitsandbytes=">=0.47", transformers=">=4.56", peft=">=0.10", accelerate=">=1.0"
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MISMATCHES = list(itertools.permutations(DTYPES, 2))
OUT, IN, ROWS = 32, 64, 8
LAYER_TOLERANCE = 0.02
MODEL_TOLERANCE = 0.03
GRADIENT_TOLERANCE = 0.05
HUGE = 1e5
"""Within the range of bfloat16 and float32; float16 ends at 65504."""


class Config(NamedTuple):
    """What the claim calls incompatible. `inputs` is the dtype of the activations; None loads a whole model."""

    weights: str
    compute: str
    inputs: str | None


def every_mismatch() -> list:
    linear = [
        pytest.param(Config(weights, compute, inputs), id=f"linear4bit-{weights}-{compute}-{inputs}-input")
        for weights, compute in MISMATCHES
        for inputs in DTYPES
    ]
    models = [pytest.param(Config(*pair, None), id=f"llama-lora-{pair[0]}-{pair[1]}") for pair in MISMATCHES]
    return linear + models


@pytest.fixture(params=every_mismatch())
def config(request):
    return request.param


def quantized_layer(weights: str, compute: str, device: str) -> bnb.nn.Linear4bit:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=DTYPES[compute], quant_type="nf4")
    weight = (torch.randn(OUT, IN) / IN**0.5).to(DTYPES[weights])
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    return layer.to(device)


def dequantized(weight: bnb.nn.Params4bit) -> torch.Tensor:
    return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()


def layer_step(layer: bnb.nn.Linear4bit, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Forward and backward of one layer: its output and the gradient of its input."""
    x = inputs.clone().requires_grad_()
    output = layer(x)
    output.backward(torch.ones_like(output))
    return {"output": output, "input_gradient": x.grad}


def layer_reference(layer: bnb.nn.Linear4bit, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same in float32 with the dequantized weight."""
    weight = dequantized(layer.weight)
    gradient = torch.ones(len(inputs), OUT, device=inputs.device)
    return {"output": inputs.float() @ weight.t(), "input_gradient": gradient @ weight}


def run_layer(weights: str, compute: str, inputs: str, device: str, measure) -> None:
    layer = quantized_layer(weights, compute, device)
    x = torch.randn(ROWS, IN, generator=torch.Generator().manual_seed(1)).to(device, DTYPES[inputs])
    result = measure(lambda: layer_step(layer, x))
    assert result["output"].dtype == DTYPES[inputs]
    measure.compare(result, layer_reference(layer, x), tolerance=LAYER_TOLERANCE)


def tiny_checkpoint(folder, weights: str) -> None:
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(settings).to(DTYPES[weights]).save_pretrained(folder)


def load_with_lora(folder, weights: str, compute: str, device: str) -> peft.PeftModel:
    quantization_config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[compute]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPES[weights], quantization_config=quantization_config, device_map={"": device}
    )
    torch.manual_seed(1)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )


def float32_twin(model: peft.PeftModel, folder, device: str) -> transformers.PreTrainedModel:
    """The same network in float32: dequantized base weights with the adapters added to them."""
    base = model.base_model.model
    twin = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    for name, module in twin.named_modules():
        if getattr(module, "weight", None) is None:
            continue
        ours = base.get_submodule(name)
        weight = getattr(ours, "base_layer", ours).weight
        value = dequantized(weight) if isinstance(weight, bnb.nn.Params4bit) else weight.float()
        if hasattr(ours, "lora_A"):
            scale = ours.scaling["default"]
            value = value + scale * ours.lora_B["default"].weight.float() @ ours.lora_A["default"].weight.float()
        module.weight.data = value.detach()
    return twin


def model_step(model, ids: torch.Tensor):
    model.zero_grad()
    result = model(input_ids=ids, labels=ids)
    result.loss.backward()
    return result


def adapter_gradient(model: peft.PeftModel, twin: transformers.PreTrainedModel):
    """Gradient of the first q_proj's B matrix, and the one the float32 twin's weight gradient implies."""
    ours = model.base_model.model.model.layers[0].self_attn.q_proj
    implied = twin.model.layers[0].self_attn.q_proj.weight.grad @ ours.lora_A["default"].weight.float().t()
    return ours.lora_B["default"].weight.grad, implied * ours.scaling["default"]


def run_model(folder, weights: str, compute: str, device: str, measure) -> None:
    tiny_checkpoint(folder, weights)
    model = load_with_lora(folder, weights, compute, device)
    twin = float32_twin(model, folder, device)
    ids = torch.arange(16, device=device).reshape(1, -1)
    result = measure(lambda: model_step(model, ids))
    expected = model_step(twin, ids)
    measure.compare(result.logits, expected.logits, tolerance=MODEL_TOLERANCE)
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert gradients and all(g is not None and g.isfinite().all() and g.any() for g in gradients)
    measure.compare(*adapter_gradient(model, twin), tolerance=GRADIENT_TOLERANCE)
    generated = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 19)


def run(config: Config, weights: str, compute: str, device: str, folder, measure) -> None:
    """The configuration's program, with the dtypes an arm chooses."""
    if config.inputs is None:
        run_model(folder, weights, compute, device, measure)
    else:
        run_layer(weights, compute, config.inputs, device, measure)


@pytest.mark.refutes
def test_mismatch_runs(config, device, tmp_path, measure):
    run(config, config.weights, config.compute, device, tmp_path, measure)


@pytest.mark.workaround("compute-in-weight-dtype")
def test_compute_in_weight_dtype(config, device, tmp_path, measure):
    run(config, config.weights, config.weights, device, tmp_path, measure)


@pytest.mark.workaround("load-in-compute-dtype")
def test_load_in_compute_dtype(config, device, tmp_path, measure):
    run(config, config.compute, config.compute, device, tmp_path, measure)


@pytest.mark.dead_end("compute-in-float16")
def test_compute_in_float16(config, device, measure):
    if config.compute != "float16" or config.inputs in (None, "float16"):
        pytest.skip("needs float16 compute and inputs larger than float16 can hold")
    x = torch.randn(ROWS, IN, generator=torch.Generator().manual_seed(1)).mul(HUGE).to(device, DTYPES[config.inputs])
    wide = quantized_layer(config.weights, "bfloat16", device)
    measure.compare(wide(x), layer_reference(wide, x)["output"], tolerance=LAYER_TOLERANCE)
    narrow = quantized_layer(config.weights, config.compute, device)
    output = narrow(x)
    measure.record("non_finite_outputs", int((~output.isfinite()).sum()))
    measure.record("outputs", output.numel())
    measure.record("zeros_at_1e-8", int((narrow(x / HUGE * 1e-8) == 0).sum()))
    measure.compare(output, layer_reference(narrow, x)["output"], tolerance=LAYER_TOLERANCE)


@pytest.mark.dead_end("expect-an-exact-dtype-check")
def test_expect_an_exact_dtype_check(config, device, tmp_path, measure):
    run(config, config.weights, config.compute, device, tmp_path, measure)
    measure.record("exact_dtype_check", False)
