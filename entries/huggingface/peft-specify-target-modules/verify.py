# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "peft>=0.17"]
# ///
"""A configuration without target modules, where peft has no default to fall back to.

`unmapped-architecture` is a tiny Phi-3, which transformers has and peft's table of defaults has not; `own-module` a
network that is no transformers model; `other-method` a StableLM, known to LoRA but not to IA3, whose table is shorter.
A fix is right if the layers it names learn, the others stay, and the result equals the adapter merged into the weights
in float64.
"""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM, StableLmConfig, StableLmForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40", peft=">=0.17")

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOLERANCE = 1e-4


@pytest.fixture(params=["unmapped-architecture", "own-module", "other-method"])
def config(request):
    return request.param


def build(config, device):
    torch.manual_seed(0)
    if config == "own-module":
        model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))
    elif config == "other-method":
        model = StableLmForCausalLM(StableLmConfig(vocab_size=64, num_key_value_heads=4, **SHAPE))
    else:
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        model = Phi3ForCausalLM(Phi3Config(vocab_size=64, num_key_value_heads=4, **SHAPE, **tokens))
    return model.to(device)


def adapt(config, model, **settings):
    """The adapter that the configuration is about: IA3, or LoRA."""
    if config == "other-method":
        return get_peft_model(model, IA3Config(**settings))
    return get_peft_model(model, LoraConfig(r=4, **settings))


def logits(model, ids):
    answer = model(ids)
    return answer if torch.is_tensor(answer) else answer.logits


def train(model, ids, steps=3):
    """A few training steps; the loss before the last of them."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.003)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(logits(model, ids).flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def check(measure, adapted, wanted, device):
    """The wanted layers have adapters that learn; together they do what their merged weights do in float64."""
    marks = (".lora_A", ".ia3_l")
    layers = {n.split(mark)[0] for n, _ in adapted.named_parameters() for mark in marks if mark in n}
    assert {name.split(".")[-1] for name in layers} == set(wanted)
    assert all("lora_" in n or "ia3_" in n for n, p in adapted.named_parameters() if p.requires_grad)
    ids = torch.arange(3, 27).reshape(2, 12).to(device)
    before = train(adapted, ids, steps=1)
    assert measure(lambda: train(adapted, ids)) < before
    merged = copy.deepcopy(adapted).double().merge_and_unload()
    measure.compare(logits(adapted, ids), logits(merged, ids), TOLERANCE)
    measure.record("trained parameters", sum(p.numel() for p in adapted.parameters() if p.requires_grad))


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    model = build(config, device)
    try:
        adapt(config, model)
    finally:
        measure.recovers(lambda: get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")))


@pytest.mark.workaround("name-the-modules")
def test_name_the_modules(config, device, measure):
    model = build(config, device)
    if config == "other-method":
        names = ["k_proj", "v_proj", "down_proj"]
        adapted = adapt(config, model, target_modules=names, feedforward_modules=["down_proj"])
    else:
        names = ["1", "3"] if config == "own-module" else ["qkv_proj", "o_proj"]
        adapted = adapt(config, model, target_modules=names)
    check(measure, adapted, names, device)


@pytest.mark.workaround("all-linear")
def test_all_linear(config, device, measure):
    model = build(config, device)
    names = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)} - {"lm_head"}
    extra = {"feedforward_modules": ["down_proj"]} if config == "other-method" else {}
    check(measure, adapt(config, model, target_modules="all-linear", **extra), names, device)


@pytest.mark.dead_end("task-type")
def test_task_type(config, device):
    adapt(config, build(config, device), task_type="CAUSAL_LM")


@pytest.mark.dead_end("empty-list")
def test_empty_list(config, device):
    extra = {"feedforward_modules": []} if config == "other-method" else {}
    adapt(config, build(config, device), target_modules=[], **extra)


@pytest.mark.dead_end("other-model-type")
def test_other_model_type(config, device):
    if config == "own-module":
        pytest.skip("the network has no model type")
    model = build(config, device)
    model.config.model_type = "llama"
    adapt(config, model)
