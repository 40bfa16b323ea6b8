# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "peft>=0.17"]
# ///
"""peft finds no module under the names it was given.

A tiny GPT-2 stands for an architecture that calls its layers differently (and builds them from `Conv1D`), a tiny Llama
for the one that most scripts were written for. `four-bit-scan` looks for bitsandbytes layers in a model that is not
quantized, `joined-string` is a command-line option that was never split, `wrapped-names` were listed on a wrapper and
used on the model inside. A fix is right if the layers it names are trained, nothing else is, and the result equals the
same adapter merged into the weights in float64.
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40", peft=">=0.17")

LLAMA_NAMES = ["q_proj", "v_proj"]
TOLERANCE = 1e-4


@pytest.fixture(
    params=[
        "other-architecture",
        pytest.param("four-bit-scan", marks=pytest.mark.requires(bitsandbytes=">=0.41")),
        "pattern-in-list",
        "joined-string",
        "wrapped-names",
    ]
)
def config(request):
    return request.param


def build(config, device):
    torch.manual_seed(0)
    if config == "other-architecture":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, **shape)).to(device)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    settings = LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=4, **shape)
    return LlamaForCausalLM(settings).to(device)


def scan(model, kinds):
    """Last parts of the names of all layers of these kinds, the output layer left out."""
    return {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, kinds)} - {"lm_head"}


def wrong_names(config, model):
    if config == "four-bit-scan":
        import bitsandbytes

        return scan(model, bitsandbytes.nn.Linear4bit)
    if config == "pattern-in-list":
        return [r".*\.self_attn\.(q|v)_proj"]
    if config == "joined-string":
        return "q_proj,v_proj"
    if config == "wrapped-names":
        wrapper = nn.ModuleDict({"policy": model})
        return [name for name, _ in wrapper.named_modules() if name.endswith(("q_proj", "v_proj"))]
    return LLAMA_NAMES


def train(model, device, steps=3):
    """A few training steps on one batch of random tokens; the loss before the last of them."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.003)
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1)).to(device)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def logits(model, device):
    return model(input_ids=torch.arange(3, 15, device=device)[None]).logits


def check(measure, adapted, wanted, device):
    """The wanted layers have adapters that learn; together they do what their merged weights do in float64."""
    layers = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    assert {name.split(".")[-1] for name in layers} == set(wanted)
    assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)
    before = train(adapted, device, steps=1)
    assert measure(lambda: train(adapted, device)) < before
    merged = copy.deepcopy(adapted).double().merge_and_unload()
    measure.compare(logits(adapted, device), logits(merged, device), TOLERANCE)
    measure.record("trained parameters", sum(p.numel() for p in adapted.parameters() if p.requires_grad))


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    model = build(config, device)
    try:
        get_peft_model(model, LoraConfig(r=4, target_modules=wrong_names(config, model)))
    finally:
        measure.recovers(lambda: get_peft_model(model, LoraConfig(r=4)))


@pytest.mark.workaround("look-names-up")
def test_look_names_up(config, device, measure):
    model = build(config, device)
    names = {name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    names -= {"lm_head"}
    wanted = names & {"q_proj", "v_proj", "c_attn"}
    check(measure, get_peft_model(model, LoraConfig(r=4, target_modules=wanted)), wanted, device)


@pytest.mark.workaround("leave-the-choice-to-peft")
def test_leave_the_choice_to_peft(config, device, measure):
    model = build(config, device)
    default = {"c_attn"} if config == "other-architecture" else {"q_proj", "v_proj"}
    check(measure, get_peft_model(model, LoraConfig(r=4)), default, device)


@pytest.mark.workaround("all-linear")
def test_all_linear(config, device, measure):
    model = build(config, device)
    wanted = scan(model, (nn.Linear, Conv1D))
    check(measure, get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")), wanted, device)


@pytest.mark.workaround("correct-the-scan")
def test_correct_the_scan(config, device, measure):
    if config != "four-bit-scan":
        pytest.skip("the names do not come from a scan here")
    import bitsandbytes

    # One test for quantized and plain models: the classes of bitsandbytes derive from nn.Linear.
    assert issubclass(bitsandbytes.nn.Linear4bit, nn.Linear)
    assert issubclass(bitsandbytes.nn.Linear8bitLt, nn.Linear)
    model = build(config, device)
    wanted = scan(model, (nn.Linear, Conv1D))
    check(measure, get_peft_model(model, LoraConfig(r=4, target_modules=wanted)), wanted, device)


@pytest.mark.workaround("pattern-as-string")
def test_pattern_as_string(config, device, measure):
    pattern, wanted = r".*\.self_attn\.(q|v)_proj", LLAMA_NAMES
    if config == "other-architecture":
        pattern, wanted = r".*\.attn\.c_(attn|proj)", ["c_attn", "c_proj"]
    model = build(config, device)
    check(measure, get_peft_model(model, LoraConfig(r=4, target_modules=pattern)), wanted, device)


@pytest.mark.workaround("split-the-option")
def test_split_the_option(config, device, measure):
    if config != "joined-string":
        pytest.skip("the names are not one string here")
    model = build(config, device)
    names = [name.strip() for name in wrong_names(config, model).split(",")]
    check(measure, get_peft_model(model, LoraConfig(r=4, target_modules=names)), LLAMA_NAMES, device)


@pytest.mark.dead_end("wildcard-in-list")
def test_wildcard_in_list(config, device):
    stem = "attn.c_attn" if config == "other-architecture" else "self_attn.q_proj"
    get_peft_model(build(config, device), LoraConfig(r=4, target_modules=[f"*.{stem}"]))


@pytest.mark.dead_end("names-of-a-saved-adapter")
def test_names_of_a_saved_adapter(config, device):
    model = build(config, device)
    tensors = get_peft_model(copy.deepcopy(model), LoraConfig(r=4)).state_dict()
    names = [name.split(".lora_A")[0] for name in tensors if ".lora_A" in name]
    get_peft_model(model, LoraConfig(r=4, target_modules=names))


@pytest.mark.dead_end("scan-for-linear-only")
def test_scan_for_linear_only(config, device):
    if config != "other-architecture":
        pytest.skip("every layer is an nn.Linear here")
    model = build(config, device)
    get_peft_model(model, LoraConfig(r=4, target_modules=scan(model, nn.Linear)))


@pytest.mark.dead_end("task-type")
def test_task_type(config, device):
    model = build(config, device)
    get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=wrong_names(config, model)))
