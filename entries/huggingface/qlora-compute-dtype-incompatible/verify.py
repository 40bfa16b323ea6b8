# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "bitsandbytes>=0.47", "transformers>=4.56", "peft>=0.10", "accelerate>=1.0"]
# ///
"""QLoRA trains with float16 and bfloat16 mixed; the page's own code dies of another error on transformers 5."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import bitsandbytes as bnb
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.requires(
    torch=">=2.1", bitsandbytes=">=0.47", transformers=">=4.56", peft=">=0.10", accelerate=">=1.0"
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
HALVES = ("bfloat16", "float16")
TOLERANCE = 0.03
EIGHT_BIT_TOLERANCE = 0.1
STEPS = 6


class Config(NamedTuple):
    """Dtypes of the loaded weights, of the 4-bit products, and of adapters and optimizer state."""

    weights: str
    compute: str
    adapters: str


def every_mix() -> list:
    """All choices in which both 16-bit types occur."""
    mixes = [Config(*choice) for choice in itertools.product(HALVES, HALVES, DTYPES) if set(HALVES) <= set(choice)]
    return [pytest.param(mix, id="{}-weights-{}-compute-{}-adapters".format(*mix)) for mix in mixes]


@pytest.fixture(params=every_mix())
def config(request):
    return request.param


@pytest.fixture
def checkpoint(config, tmp_path):
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(settings).to(DTYPES[config.weights]).save_pretrained(tmp_path)
    return tmp_path


def tokens(device: str) -> torch.Tensor:
    return torch.arange(16, device=device).reshape(1, -1)


def load_qlora(checkpoint, dtypes: Config, device: str) -> peft.PeftModel:
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[dtypes.compute]
    )
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=DTYPES[dtypes.weights],
        quantization_config=quantization_config,
        device_map={"": device},
    )
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(DTYPES[dtypes.adapters])
    return model


def float32_logits(model: peft.PeftModel, checkpoint, device: str) -> torch.Tensor:
    """What the network computes in float32: dequantized base weights with the adapters added to them."""
    base = model.base_model.model
    twin = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(device)
    for name, module in twin.named_modules():
        if getattr(module, "weight", None) is None:
            continue
        ours = base.get_submodule(name)
        weight = getattr(ours, "base_layer", ours).weight
        value = weight.float()
        if isinstance(weight, bnb.nn.Params4bit):
            value = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        if hasattr(ours, "lora_A"):
            a, b = ours.lora_A["default"].weight.float(), ours.lora_B["default"].weight.float()
            value = value + ours.scaling["default"] * b @ a
        module.weight.data = value.detach()
    with torch.no_grad():
        return twin(input_ids=tokens(device)).logits


def train(model: peft.PeftModel, device: str) -> list[float]:
    """Losses of a few optimizer steps on one batch."""
    ids = tokens(device)
    # In float16 AdamW's usual epsilon rounds to zero.
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, eps=1e-4)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def qlora_step(checkpoint, dtypes: Config, device: str, measure) -> None:
    """Load, compare with float32, train, and see the loss fall."""
    model = load_qlora(checkpoint, dtypes, device)
    adapters = {p.dtype for p in model.parameters() if p.requires_grad}
    assert adapters == {DTYPES[dtypes.adapters]}
    with torch.no_grad():
        logits = measure(lambda: model(input_ids=tokens(device)).logits)
    measure.compare(logits, float32_logits(model, checkpoint, device), tolerance=TOLERANCE)
    losses = train(model, device)
    measure.record("losses", losses)
    assert all(torch.isfinite(torch.tensor(losses))) and losses[-1] < losses[0]


def page_code(checkpoint, **extra):
    """The page's example; its broken and its fixed version differ in `extra` alone."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, load_in_8bit=True, device_map="auto", **extra)


@pytest.mark.refutes
def test_mixed_dtypes_train(config, checkpoint, device, measure):
    qlora_step(checkpoint, config, device, measure)


@pytest.mark.refutes
@pytest.mark.requires(transformers="<5")
def test_page_code_runs_on_transformers_4(config, checkpoint, device, measure):
    broken = page_code(checkpoint)
    fixed = page_code(checkpoint, torch_dtype=torch.float16)
    ids = tokens(str(broken.device))
    with torch.no_grad():
        losses = [model(input_ids=ids, labels=ids).loss for model in (broken, fixed)]
    measure.record("losses", [loss.item() for loss in losses])
    measure.compare(losses[0], losses[1], tolerance=TOLERANCE)


@pytest.mark.workaround("one-dtype-throughout")
def test_one_dtype_throughout(config, checkpoint, device, measure):
    qlora_step(checkpoint, Config(config.weights, config.weights, config.weights), device, measure)


@pytest.mark.workaround("use-float16-compute")
def test_use_float16_compute(config, checkpoint, device, measure):
    qlora_step(checkpoint, config._replace(compute="float16"), device, measure)


@pytest.mark.workaround("catch-and-reload")
def test_catch_and_reload(config, checkpoint, device, measure):
    caught = False
    try:
        qlora_step(checkpoint, config, device, measure)
    except RuntimeError:
        caught = True
        qlora_step(checkpoint, Config("float16", "float16", "float16"), device, measure)
    measure.record("handler_ran", caught)


@pytest.mark.workaround("pass-quantization-config")
def test_pass_quantization_config(config, checkpoint, device, measure):
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=DTYPES[config.weights],
        device_map={"": device},
    )
    whole = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(device)
    with torch.no_grad():
        logits = measure(lambda: model(input_ids=tokens(device)).logits)
        expected = whole(input_ids=tokens(device)).logits
    measure.compare(logits, expected, tolerance=EIGHT_BIT_TOLERANCE)


@pytest.mark.dead_end("load-in-8bit-keyword")
@pytest.mark.requires(transformers=">=5")
def test_load_in_8bit_keyword(config, checkpoint, device):
    page_code(checkpoint)


@pytest.mark.dead_end("load-in-8bit-keyword-with-torch-dtype")
@pytest.mark.requires(transformers=">=5")
def test_load_in_8bit_keyword_with_torch_dtype(config, checkpoint, device):
    page_code(checkpoint, torch_dtype=torch.float16)
