# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.56", "accelerate", "bitsandbytes>=0.47", "peft"]
# ///
"""A Trainer gets a quantized model in which it sees no adapters. A Llama of one layer, saved and loaded in 4 or 8 bits.

A fix passes if the first step starts from the loss of the same weights in float64, moves what is to be trained, and
leaves the quantized matrices alone.
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model, prepare_model_for_kbit_training
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

pytestmark = pytest.mark.requires(transformers=">=4.56", bitsandbytes=">=0.47", peft=">=0.10", accelerate=">=1.0")

ROWS = [{"input_ids": torch.arange(8) * 3 + row, "labels": torch.arange(8) * 3 + row} for row in range(4)]
LORA = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
TOLERANCES = {"four-bit": 1e-4, "eight-bit": 0.01}
"""Of the loss; in 8 bits the activations are rounded too."""


@pytest.fixture(params=["four-bit", "eight-bit", "merged-before", "injected-layers"])
def config(request):
    """No adapters, in two precisions; adapters merged away; LoRA layers in a model that is no PeftModel."""
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape)).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def quantized(config, checkpoint, device):
    bits = {"load_in_8bit": True} if config == "eight-bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=BitsAndBytesConfig(**bits), dtype=torch.float32, device_map={"": device}
    )


def with_adapters(model):
    torch.manual_seed(1)
    return get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(**LORA))


def build(config, checkpoint, device):
    model = quantized(config, checkpoint, device)
    if config == "merged-before":
        return with_adapters(model).merge_and_unload()
    return inject_adapter_in_model(LoraConfig(**LORA), model) if config == "injected-layers" else model


def trainer(model, folder):
    args = TrainingArguments(
        output_dir=str(folder / "runs"),
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return Trainer(model=model, args=args, train_dataset=ROWS)


def next_token_loss(model):
    """In float64, and written out."""
    ids = torch.stack([row["input_ids"] for row in ROWS]).to(model.device)
    logits = copy.deepcopy(model).double()(ids).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def check(config, measure, ready, base):
    """`base` holds the weights that the first step starts from, unquantized."""
    before = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    loss = ready.train().training_loss
    measure.compare(loss, next_token_loss(base), TOLERANCES.get(config, TOLERANCES["four-bit"]))
    changed = {name for name, p in ready.model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in ready.model.named_parameters() if p.requires_grad}
    assert trained, "nothing to train"
    assert changed <= trained
    assert changed == {name for name in trained if "lora_A" not in name}, "lora_A waits for the first change of lora_B"
    assert all(torch.isfinite(p).all() for p in ready.model.parameters() if p.is_floating_point())
    measure.record("trained parameters", sum(p.numel() for p in ready.model.parameters() if p.requires_grad))


@pytest.mark.reproduces
def test_reproduces(config, checkpoint, device, measure, tmp_path):
    model = build(config, checkpoint, device)
    try:
        trainer(model, tmp_path)
    finally:
        measure.recovers(lambda: trainer(with_adapters(quantized(config, checkpoint, device)), tmp_path))


@pytest.mark.workaround("attach-adapters")
def test_attach_adapters(config, checkpoint, device, measure, tmp_path):
    only_for(config, "four-bit", "eight-bit")
    model = prepare_model_for_kbit_training(quantized(config, checkpoint, device))
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    base = quantized(config, checkpoint, device).dequantize()
    check(config, measure, trainer(model, tmp_path), base)


@pytest.mark.workaround("add-adapter")
def test_add_adapter(config, checkpoint, device, measure, tmp_path):
    only_for(config, "four-bit", "eight-bit")
    model = quantized(config, checkpoint, device)
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"]))
    base = quantized(config, checkpoint, device).dequantize()
    check(config, measure, trainer(model, tmp_path), base)


@pytest.mark.workaround("no-merge")
def test_no_merge(config, checkpoint, device, measure, tmp_path):
    only_for(config, "merged-before")
    model = with_adapters(quantized(config, checkpoint, device))
    check(config, measure, trainer(model, tmp_path), quantized(config, checkpoint, device).dequantize())


@pytest.mark.workaround("installed-peft")
def test_installed_peft(config, checkpoint, device, measure, tmp_path):
    only_for(config, "injected-layers")
    model = get_peft_model(quantized(config, checkpoint, device), LoraConfig(**LORA))
    check(config, measure, trainer(model, tmp_path), quantized(config, checkpoint, device).dequantize())


@pytest.mark.workaround("full-precision")
def test_full_precision(config, checkpoint, device, measure, tmp_path):
    only_for(config, "four-bit", "eight-bit")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(device)
    base = copy.deepcopy(model)
    check("four-bit", measure, trainer(model, tmp_path), base)


@pytest.mark.dead_end("requires-grad")
def test_requires_grad(config, checkpoint, device, tmp_path):
    model = build(config, checkpoint, device)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    trainer(model, tmp_path)


@pytest.mark.dead_end("prepare-only")
def test_prepare_only(config, checkpoint, device, tmp_path):
    only_for(config, "four-bit", "eight-bit", "merged-before")
    trainer(prepare_model_for_kbit_training(build(config, checkpoint, device)), tmp_path)


@pytest.mark.dead_end("head-only")
def test_head_only(config, checkpoint, device, tmp_path):
    only_for(config, "four-bit", "eight-bit")
    model = quantized(config, checkpoint, device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("lm_head"))
    trainer(model, tmp_path)


@pytest.mark.dead_end("flag-off")
def test_flag_off(config, checkpoint, device, tmp_path):
    only_for(config, "four-bit", "eight-bit")
    model = quantized(config, checkpoint, device)
    model.is_quantized = False
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(model, tmp_path).train()
    same = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not same, f"the matrices were not trained: {', '.join(same)}"
