# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "peft>=0.14"]
# ///
"""An adapter of rank zero or less.

`off-switch` is an option where 0 was to mean no LoRA, `computed` a share of the width that rounds to 0, `negative` a
-1 that was to mean "choose for me", `one-layer` a rank per layer that is 0 for one of them. A fix is right if the
wanted layers learn with the wanted rank, or, where no adapter was wanted, if the whole model learns.
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1", peft=">=0.14")

WIDTH = 32
TOLERANCE = 1e-4


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.v_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs):
        return torch.tanh(self.q_proj(inputs)) * self.v_proj(inputs)


@pytest.fixture(params=["off-switch", "computed", "negative", "one-layer"])
def config(request):
    return request.param


def build(device):
    torch.manual_seed(0)
    return Attention().to(device)


def ranks(config):
    """What the options come to."""
    if config == "one-layer":
        return {"r": 4, "rank_pattern": {"v_proj": 0}}
    return {"r": {"off-switch": 0, "computed": int(0.01 * WIDTH), "negative": -1}[config]}


def lora(**settings):
    return LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **settings})


def train(model, device, steps=3):
    """A few training steps; the loss before the last of them."""
    inputs, targets = torch.randn(2, 16, WIDTH, generator=torch.Generator().manual_seed(1)).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.003)
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def adapter_ranks(model):
    return {n.split(".")[-4]: p.shape[0] for n, p in model.named_parameters() if ".lora_A" in n}


def check(measure, model, wanted, device):
    """The adapters have the wanted ranks and learn; together they do what their merged weights do in float64."""
    assert adapter_ranks(model) == wanted
    before = train(model, device, steps=1)
    assert measure(lambda: train(model, device)) < before
    inputs = torch.randn(4, WIDTH, device=device)
    merged = copy.deepcopy(model).double().merge_and_unload()
    with torch.no_grad():
        measure.compare(model(inputs), merged(inputs.double()), TOLERANCE)


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    model = build(device)
    try:
        get_peft_model(model, lora(**ranks(config)))
    finally:
        # The same model again, as in the next cell of a notebook.
        measure.recovers(lambda: adapter_ranks(get_peft_model(model, lora(r=4))) == {"q_proj": 4, "v_proj": 4})


@pytest.mark.workaround("give-a-positive-rank")
def test_give_a_positive_rank(config, device, measure):
    wanted = {"r": 8}
    if config == "computed":
        wanted = {"r": max(1, ranks(config)["r"])}
    elif config == "one-layer":
        wanted = {"r": 4, "rank_pattern": {"v_proj": 1}}
    model = get_peft_model(build(device), lora(**wanted))
    check(measure, model, {"q_proj": wanted["r"], "v_proj": 1 if config == "one-layer" else wanted["r"]}, device)


@pytest.mark.workaround("skip-lora-when-zero")
def test_skip_lora_when_zero(config, device, measure):
    if config != "off-switch":
        pytest.skip("an adapter is wanted here")
    model, rank = build(device), ranks(config)["r"]
    model = get_peft_model(model, lora(r=rank)) if rank > 0 else model
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = train(model, device, steps=1)
    assert measure(lambda: train(model, device)) < before


@pytest.mark.workaround("leave-layers-out")
def test_leave_layers_out(config, device, measure):
    if config != "one-layer":
        pytest.skip("no layer has a positive rank here")
    model = get_peft_model(build(device), lora(exclude_modules=["v_proj"], **ranks(config)))
    check(measure, model, {"q_proj": 4}, device)


@pytest.mark.dead_end("alpha-zero-too")
def test_alpha_zero_too(config, device):
    get_peft_model(build(device), lora(lora_alpha=0, **ranks(config)))


@pytest.mark.dead_end("none-for-off")
def test_none_for_off(config, device):
    settings = {"r": 4, "rank_pattern": {"v_proj": None}} if config == "one-layer" else {"r": None}
    get_peft_model(build(device), lora(**settings))


@pytest.mark.dead_end("fraction")
def test_fraction(config, device):
    settings = {"r": 4, "rank_pattern": {"v_proj": 0.5}} if config == "one-layer" else {"r": 0.01 * WIDTH}
    get_peft_model(build(device), lora(**settings))


@pytest.mark.dead_end("other-variant")
def test_other_variant(config, device):
    get_peft_model(build(device), lora(use_rslora=True, use_dora=True, init_lora_weights=False, **ranks(config)))
