# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.46", "peft>=0.17"]
# ///
"""The names given to peft hit a module that it has no adapter layer for.

On a tiny Llama `block-name` hits a whole MLP, `wide-pattern` an activation, `norm-layer` a layer norm, and
`number-name`, gathered from a projector made of `nn.Sequential`, a decoder layer. `wrapped-linear` is a tiny Gemma 4,
whose vision tower hides its linear layers in a class of its own, and `packed-linear` has int8 weights in a class that
peft does not know. A fix is right if the adapters sit where they were wanted, only they learn, and the outputs are
those of the merged weights in float64.
"""

import copy

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.46", peft=">=0.17")

MLP = ["gate_proj", "up_proj", "down_proj"]
RANK = 4
TOLERANCE = 1e-3

# What the broken program asks for, and the last parts of the names that were meant.
ASKED = {
    "block-name": ["q_proj", "mlp"],
    "wide-pattern": r".*\.(self_attn\.q_proj|mlp\..*)",
    "norm-layer": ["q_proj", "input_layernorm"],
    "number-name": ["q_proj", "0", "2"],
    "wrapped-linear": ["q_proj"],
    "packed-linear": ["q_proj"],
}
MEANT = {
    "block-name": {"q_proj", *MLP},
    "wide-pattern": {"q_proj", *MLP},
    "norm-layer": {"q_proj", "input_layernorm"},
    "number-name": {"q_proj", "0", "2"},
}


class PackedLinear(nn.Module):
    """A linear layer with int8 weights and a scale for each row."""

    def __init__(self, plain):
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        scale = plain.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("qweight", (plain.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    @property
    def unpacked(self):
        return self.qweight.to(self.scale.dtype) * self.scale

    def forward(self, values):
        return nn.functional.linear(values, self.unpacked)


class WithProjector(nn.Module):
    """A language model that gets features of a picture through a small network."""

    def __init__(self, language):
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32))
        self.language = language

    def forward(self, input_ids, labels=None):
        picture = self.projector(torch.ones(1, 8, device=input_ids.device, dtype=self.projector[0].weight.dtype))
        words = self.language.get_input_embeddings()(input_ids)
        return self.language(inputs_embeds=words + picture, labels=labels)


def llama():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=4, **shape))


def gemma4():
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    text = {"vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "global_head_dim": 16}
    text |= {"num_hidden_layers": 2, "num_key_value_heads": 1, "num_kv_shared_layers": 0, **shape}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = {"num_hidden_layers": 1, "num_key_value_heads": 2, **shape}
    settings = Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    return Gemma4ForConditionalGeneration(settings)


def build(config, device):
    torch.manual_seed(0)
    if config == "wrapped-linear":
        return gemma4().to(device)
    model = llama()
    if config == "number-name":
        model = WithProjector(model)
    if config == "packed-linear":
        for layer in model.model.layers:
            layer.self_attn.q_proj = PackedLinear(layer.self_attn.q_proj)
    return model.to(device)


def unpack(model):
    """The same weights in `nn.Linear`."""
    for layer in model.model.layers:
        packed = layer.self_attn.q_proj
        plain = nn.Linear(packed.in_features, packed.out_features, bias=False)
        plain.weight.data = packed.unpacked
        layer.self_attn.q_proj = plain
    return model


def ids(device):
    return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1)).to(device)


def train(model, device, steps=3):
    """A few steps on one batch of random tokens; the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.003)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids(device), labels=ids(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model, device):
    return model(input_ids=ids(device)).logits


def adapted_layers(adapted):
    return {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}


def last_parts(names):
    return {name.split(".")[-1] for name in names}


def merged(adapted):
    return copy.deepcopy(adapted).double().merge_and_unload()


def check(measure, adapted, wanted, device, reference=merged, learned="lora_"):
    """The wanted layers have adapters, nothing else learns, and what was learned is what comes out."""
    layers = adapted_layers(adapted)
    assert last_parts(layers) == set(wanted)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert all(learned in name or "lora_" in name for name in trained)
    losses = train(adapted, device)
    assert losses[-1] < losses[0]
    adapted.eval()
    result = measure(lambda: logits(adapted, device))
    measure.compare(result, logits(reference(adapted), device), TOLERANCE)
    measure.record("adapted layers", len(layers))


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(
    params=[
        "block-name",
        "wide-pattern",
        "norm-layer",
        "number-name",
        pytest.param("wrapped-linear", marks=pytest.mark.requires(transformers=">=5.5")),
        "packed-linear",
    ]
)
def config(request):
    """What the names hit."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        get_peft_model(build(config, device), LoraConfig(r=RANK, target_modules=ASKED[config]))
    finally:
        measure.recovers(lambda: get_peft_model(llama(), LoraConfig(r=RANK)))


@pytest.mark.workaround("linear-layers-only")
def test_linear_layers_only(config, device, measure):
    """Full names of the linear layers among what was meant; a list matches from the right, so they hit nothing else."""
    only_for(config, "block-name", "wide-pattern", "norm-layer", "number-name")
    model = build(config, device)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] in MEANT[config]]
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=names))
    check(measure, adapted, MEANT[config] - {"input_layernorm"}, device)


@pytest.mark.workaround("all-linear")
def test_all_linear(config, device, measure):
    only_for(config, "block-name", "wide-pattern", "number-name", "wrapped-linear")
    model = build(config, device)
    head = {"language.lm_head"} if config == "number-name" else {"lm_head"}
    wanted = {name for name, m in model.named_modules() if isinstance(m, nn.Linear)} - head
    leave_out = ["lm_head"] if config == "number-name" else None
    settings = LoraConfig(r=RANK, target_modules="all-linear", exclude_modules=leave_out)
    adapted = get_peft_model(model, settings)
    assert adapted_layers(adapted) == {f"base_model.model.{name}" for name in wanted}
    check(measure, adapted, last_parts(wanted), device)


@pytest.mark.workaround("train-norms-whole")
def test_train_norms_whole(config, device, measure):
    only_for(config, "norm-layer")
    settings = LoraConfig(r=RANK, target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    adapted = get_peft_model(build(config, device), settings)
    before = {n: p.detach().clone() for n, p in adapted.named_parameters() if "modules_to_save" in n}
    check(measure, adapted, {"q_proj"}, device, learned="modules_to_save")
    after = dict(adapted.named_parameters())
    assert before and all(not torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.workaround("exclude-by-pattern")
def test_exclude_by_pattern(config, device, measure):
    only_for(config, "wrapped-linear")
    settings = LoraConfig(r=RANK, target_modules=["q_proj"], exclude_modules=r".*vision_tower.*")
    adapted = get_peft_model(build(config, device), settings)
    assert not any("vision_tower" in name for name in adapted_layers(adapted))
    check(measure, adapted, {"q_proj"}, device)


@pytest.mark.workaround("name-the-inner-linear")
def test_name_the_inner_linear(config, device, measure):
    only_for(config, "wrapped-linear")
    pattern = r".*language_model.*\.q_proj|.*vision_tower.*\.q_proj\.linear"
    adapted = get_peft_model(build(config, device), LoraConfig(r=RANK, target_modules=pattern))
    check(measure, adapted, {"q_proj", "linear"}, device)


@pytest.mark.workaround("register-a-layer")
def test_register_a_layer(config, device, measure):
    only_for(config, "packed-linear")
    settings = LoraConfig(r=RANK, target_modules=ASKED[config])
    settings._register_custom_module({PackedLinear: lora.Linear})
    adapted = get_peft_model(build(config, device), settings)

    def reference(trained):
        """The trained adapter on the same weights in `nn.Linear`, in float64."""
        other = get_peft_model(unpack(build(config, "cpu")), LoraConfig(r=RANK, target_modules=ASKED[config]))
        learned = {name: value for name, value in trained.state_dict().items() if "lora_" in name}
        assert not other.load_state_dict(learned, strict=False).unexpected_keys
        return other.to(device).double().eval()

    check(measure, adapted, {"q_proj"}, device, reference)


@pytest.mark.workaround("load-unquantized")
def test_load_unquantized(config, device, measure):
    only_for(config, "packed-linear")
    model = unpack(build(config, device))
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=ASKED[config]))
    check(measure, adapted, {"q_proj"}, device)


@pytest.mark.dead_end("second-try-on-the-same-model")
def test_second_try_on_the_same_model(config, device, measure):
    """A notebook: the cell fails, the names are put right, and the cell runs again. What is not to learn does."""
    only_for(config, "block-name", "norm-layer")
    model = build(config, device)
    with pytest.raises(ValueError, match="is not supported"):
        get_peft_model(model, LoraConfig(r=RANK, target_modules=ASKED[config]))
    frozen = model.model.embed_tokens.weight.detach().clone()
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"]))
    train(adapted, device)
    measure.compare(model.model.embed_tokens.weight, frozen, tolerance=1e-6)


@pytest.mark.dead_end("exclude-by-bare-name")
def test_exclude_by_bare_name(config, device):
    only_for(config, "wrapped-linear", "block-name")
    tower = "vision_tower" if config == "wrapped-linear" else "layers"
    settings = LoraConfig(r=RANK, target_modules=ASKED[config], exclude_modules=[tower])
    get_peft_model(build(config, device), settings)


@pytest.mark.dead_end("another-method")
def test_another_method(config, device):
    asked = ASKED[config]
    if config in ("block-name", "wide-pattern"):
        settings = IA3Config(target_modules=asked, feedforward_modules=[])
    elif config in ("norm-layer", "number-name"):
        settings = AdaLoraConfig(target_modules=asked, total_step=100)
    else:
        settings = LoraConfig(r=RANK, target_modules=asked, use_dora=True)
    get_peft_model(build(config, device), settings)
