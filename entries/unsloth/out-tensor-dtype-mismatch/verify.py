# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "bitsandbytes>=0.47"]
# ///
"""Fused LoRA steps that write into existing buffers, over a 4-bit weight whose quant_state names another dtype.

unsloth itself needs a GPU. These steps do what its kernels do with the same weight, on bitsandbytes and torch alone:
an input gradient written over the saved activation, one accumulated in place, attention scores of one decoded token
written into a kept buffer, and the same scores as a plain product.
"""

from __future__ import annotations

from typing import NamedTuple

import bitsandbytes as bnb
import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.4", bitsandbytes=">=0.47")

STORED = torch.bfloat16
"""What the checkpoint's quant_state says, and so what a plain dequantization returns."""
WIDTH, RANK, ROWS, HEADS = 64, 4, 6, 4
SCALE = 0.5
TOLERANCE = 0.02


class Config(NamedTuple):
    """A step, the dtype that gradients and adapters have, and the dtype of the saved activation."""

    step: str
    wanted: torch.dtype
    saved: torch.dtype


@pytest.fixture(
    params=[
        pytest.param(Config("overwrite", STORED, torch.float32), id="float32-input-overwritten"),
        pytest.param(Config("overwrite", torch.float16, torch.float16), id="float16-input-overwritten"),
        pytest.param(Config("accumulate", torch.float16, torch.float16), id="float16-gradient-accumulated"),
        pytest.param(Config("decode", torch.float16, torch.float16), id="float16-decoding-buffer"),
        pytest.param(Config("batched", torch.float16, torch.float16), id="float16-batched-product"),
    ]
)
def config(request):
    return request.param


class Weight(NamedTuple):
    """A packed 4-bit matrix with the state needed to unpack it."""

    packed: torch.Tensor
    state: bnb.functional.QuantState


def quantized(device: str) -> Weight:
    values = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    return Weight(*bnb.functional.quantize_4bit(values.to(device, STORED), quant_type="nf4"))


def fast_dequantize(weight: Weight) -> torch.Tensor:
    """The matrix in the dtype its quant_state names, whatever the caller computes in."""
    return bnb.functional.dequantize_4bit(weight.packed, weight.state)


class Operands(NamedTuple):
    """Gradient, saved activation and adapters of one step."""

    grad: torch.Tensor
    saved: torch.Tensor
    lora_a: torch.Tensor
    lora_b: torch.Tensor

    def to(self, dtype: torch.dtype) -> Operands:
        return Operands(*(tensor.to(dtype) for tensor in self))


def operands(device: str, wanted: torch.dtype, saved: torch.dtype) -> Operands:
    numbers = torch.Generator().manual_seed(1)
    shapes = [(ROWS, WIDTH), (ROWS, WIDTH), (RANK, WIDTH), (WIDTH, RANK)]
    # Rounded to bfloat16 first, so that every dtype holds the same numbers.
    values = Operands(*(torch.randn(shape, generator=numbers).bfloat16().to(device) for shape in shapes))
    return values.to(wanted)._replace(saved=values.saved.to(saved))


def heads(matrix: torch.Tensor) -> torch.Tensor:
    """Rows of a projection as `[batch, heads, tokens, size]`."""
    return matrix.reshape(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)


def key_cache(x: Operands, matrix: torch.Tensor) -> torch.Tensor:
    """Keys that the prompt left behind, in the dtype of the matrix they were projected with."""
    return heads(x.saved.to(matrix.dtype) @ matrix.t())


def matmul_lora(step: str, x: Operands, matrix: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """One step with a dequantized base matrix and the adapters A and B."""
    if step == "overwrite":
        gradient = torch.matmul(x.grad, matrix, out=x.saved.clone())
        return gradient.addmm_(x.grad @ x.lora_b, x.lora_a, alpha=SCALE)
    if step == "accumulate":
        gradient = SCALE * (x.grad @ x.lora_b) @ x.lora_a
        return gradient.addmm_(x.grad, matrix)
    query = heads(x.grad[:1])
    if step == "decode":
        scores = torch.empty(1, HEADS, 1, ROWS, dtype=query.dtype, device=query.device)
        return torch.matmul(query, keys.transpose(2, 3), out=scores)
    return torch.bmm(query[0], keys[0].transpose(1, 2))


def run(config: Config, x: Operands, matrix: torch.Tensor) -> torch.Tensor:
    return matmul_lora(config.step, x, matrix, key_cache(x, matrix))


def reference(config: Config, device: str, weight: Weight) -> torch.Tensor:
    """The step in float64."""
    return run(config, operands(device, torch.float64, torch.float64), fast_dequantize(weight).double())


def skip_float32_activations(config: Config, reason: str) -> None:
    if config.saved == torch.float32:
        pytest.skip(reason)


@pytest.mark.reproduces
def test_reproduces(config, device):
    run(config, operands(device, config.wanted, config.saved), fast_dequantize(quantized(device)))


@pytest.mark.workaround("set-quant-state-dtype")
def test_set_quant_state_dtype(config, device, measure):
    skip_float32_activations(config, "the weight has the right dtype here, the saved activation has not")
    weight = quantized(device)
    expected = reference(config, device, weight)
    weight.state.dtype = config.wanted
    x = operands(device, config.wanted, config.saved)
    result = measure(lambda: run(config, x, fast_dequantize(weight)))
    assert result.dtype == config.wanted
    measure.compare(result, expected, tolerance=TOLERANCE)


@pytest.mark.workaround("cast-after-dequantize")
def test_cast_after_dequantize(config, device, measure):
    skip_float32_activations(config, "the weight has the right dtype here, the saved activation has not")
    weight = quantized(device)
    expected = reference(config, device, weight)
    x = operands(device, config.wanted, config.saved)

    def step() -> torch.Tensor:
        matrix = fast_dequantize(weight)
        if matrix.dtype != x.grad.dtype:
            matrix = matrix.to(x.grad.dtype)
        return run(config, x, matrix)

    result = measure(step)
    assert result.dtype == config.wanted
    measure.compare(result, expected, tolerance=TOLERANCE)


@pytest.mark.workaround("train-in-checkpoint-dtype")
def test_train_in_checkpoint_dtype(config, device, measure):
    skip_float32_activations(config, "the model already runs in the checkpoint's dtype here")
    weight = quantized(device)
    expected = reference(config, device, weight)
    x = operands(device, weight.state.dtype, weight.state.dtype)
    result = measure(lambda: run(config, x, fast_dequantize(weight)))
    measure.compare(result, expected, tolerance=TOLERANCE)


@pytest.mark.workaround("cast-activations-to-weight-dtype")
def test_cast_activations_to_weight_dtype(config, device, measure):
    weight = quantized(device)
    expected = reference(config, device, weight)
    x = operands(device, config.wanted, config.saved)

    def step() -> torch.Tensor:
        matrix = fast_dequantize(weight)
        return run(config, x.to(matrix.dtype), matrix).to(config.saved)

    result = measure(step)
    assert result.dtype == config.saved
    measure.compare(result, expected, tolerance=TOLERANCE)


@pytest.mark.dead_end("wrap-in-autocast")
def test_wrap_in_autocast(config, device):
    if config.step == "batched":
        pytest.skip("a product that makes its own output is the one kind that autocast does cover")
    matrix = fast_dequantize(quantized(device))
    x = operands(device, config.wanted, config.saved)
    keys = key_cache(x, matrix)
    with torch.autocast(device, dtype=config.wanted):
        matmul_lora(config.step, x, matrix, keys)


@pytest.mark.dead_end("set-compute-dtype")
def test_set_compute_dtype(config, device):
    layer = bnb.nn.Linear4bit(WIDTH, WIDTH, bias=False, compute_dtype=config.saved, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(layer.weight.data.to(STORED), requires_grad=False, quant_type="nf4", module=layer)
    layer.to(device)
    matrix = fast_dequantize(Weight(layer.weight.data, layer.weight.quant_state))
    run(config, operands(device, config.wanted, config.saved), matrix)


@pytest.mark.dead_end("request-dtype-at-load")
@pytest.mark.requires(transformers=">=4.56", accelerate=">=1.0")
def test_request_dtype_at_load(config, device, tmp_path):
    import transformers

    checkpoint = quantized_checkpoint(tmp_path, device)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=config.wanted, device_map={"": device})
    layer = model.model.layers[0].self_attn.q_proj
    matrix = fast_dequantize(Weight(layer.weight.data, layer.weight.quant_state))
    run(config, operands(device, config.wanted, config.saved), matrix)


def quantized_checkpoint(folder, device: str):
    """A tiny Llama saved in 4 bits, as pre-quantized models are."""
    import transformers

    settings = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
    )
    transformers.LlamaForCausalLM(settings).to(STORED).save_pretrained(folder / "whole")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "whole",
        dtype=STORED,
        quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        device_map={"": device},
    )
    model.save_pretrained(folder / "packed")
    return folder / "packed"
