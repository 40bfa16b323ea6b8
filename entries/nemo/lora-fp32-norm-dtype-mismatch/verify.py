# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.4", "pytest"]
# ///
"""A norm kept in float32 feeds LoRA layers in bfloat16.

NeMo Automodel itself is not needed: the norm, the LoRA layer and the decoder below behave as its modules do, small
enough to run in milliseconds. The 4-bit configurations need bitsandbytes and are skipped without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.requires(torch=">=2.4")

WIDTH, HEADS, RANK, TOKENS, VOCABULARY = 64, 4, 8, 12, 96
# bfloat16 carries 8 significant bits, and a dozen products lie between the first layer's adapters and the loss.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Setup:
    """Which layers get LoRA, and what the base layers are made of."""

    targets: str
    quantized: bool = False
    bias: bool = False


class Norm(nn.Module):
    """RMSNorm computed in float32; the weight comes last, so its type becomes the type of the output."""

    returns_input_dtype = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype is torch.float64 else x.float()
        normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        output = self.weight * normalized.to(x.dtype)
        return output.to(x.dtype) if self.returns_input_dtype else output


class LinearLoRA(nn.Module):
    """A frozen layer, plain or 4-bit, plus a trainable low-rank product of the same input."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False, dtype=torch.bfloat16)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False, dtype=torch.bfloat16)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return self.base(x) + self.lora_B(self.lora_A(x))


# What tells this failure from any other in a Linear is the frame of NeMo's LoRA module in the traceback, so the frame
# of the layer that stands in for it carries that file's name.
LinearLoRA.forward.__code__ = LinearLoRA.forward.__code__.replace(
    co_filename="emulated/nemo_automodel/components/_peft/lora.py"
)


class CastToWeight(LinearLoRA):
    """The proposed one-line fix: the input in the type of the base weight."""

    def prepare(self, x: Tensor) -> Tensor:
        return x.to(self.base.weight.dtype)


class CastToAdapter(LinearLoRA):
    """The same idea with a type that a quantized base cannot spoil."""

    def prepare(self, x: Tensor) -> Tensor:
        return x.to(self.lora_A.weight.dtype)


class Block(nn.Module):
    """Attention and a gated feed-forward, each behind a norm."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=bias, dtype=torch.bfloat16))
        self.gate_proj = nn.Linear(WIDTH, 2 * WIDTH, bias=False, dtype=torch.bfloat16)
        self.up_proj = nn.Linear(WIDTH, 2 * WIDTH, bias=False, dtype=torch.bfloat16)
        self.down_proj = nn.Linear(2 * WIDTH, WIDTH, bias=False, dtype=torch.bfloat16)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.input_layernorm(hidden)
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        hidden = hidden + self.o_proj(attended)
        x = self.post_attention_layernorm(hidden)
        return hidden + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Decoder(nn.Module):
    """Two blocks between an embedding and a head. Everything is bfloat16 but the norms."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.bfloat16)
        self.layers = nn.Sequential(Block(bias), Block(bias))
        self.norm = Norm()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.bfloat16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.norm(self.layers(self.embed_tokens(tokens))))


SETUPS = {
    "q-v-bfloat16": Setup("q_proj v_proj"),
    "proj-bfloat16": Setup("*_proj"),
    "proj-bfloat16-bias": Setup("*_proj", bias=True),
    "all-linear-bfloat16": Setup("all"),
    "all-linear-bfloat16-bias": Setup("all", bias=True),
    "q-v-4bit": Setup("q_proj v_proj", quantized=True),
    "proj-4bit": Setup("*_proj", quantized=True),
    "all-linear-4bit": Setup("all", quantized=True),
}
NEEDS_BITSANDBYTES = pytest.mark.requires(bitsandbytes=">=0.47")


@pytest.fixture(
    params=[
        pytest.param(setup, id=name, marks=[NEEDS_BITSANDBYTES] if setup.quantized else [])
        for name, setup in SETUPS.items()
    ]
)
def config(request) -> Setup:
    return request.param


def wanted(targets: str, name: str) -> bool:
    if targets == "all":
        return True
    return name.endswith("_proj") if targets == "*_proj" else name in targets.split()


def quantize(layer: nn.Linear) -> nn.Linear:
    """The layer in NF4, still on the CPU: moving it to the device quantizes it."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    packed = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, torch.bfloat16, quant_type="nf4")
    packed.weight = Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
    if layer.bias is not None:
        packed.bias = layer.bias
    return packed


def make(setup: Setup, device: str, lora: type[LinearLoRA] = LinearLoRA) -> tuple[Decoder, Tensor]:
    """The model of a configuration, frozen but for its adapters, and a batch."""
    torch.manual_seed(0)
    model = Decoder(setup.bias).requires_grad_(False)
    layers = [(m, n, c) for m in model.modules() for n, c in m.named_children() if isinstance(c, nn.Linear)]
    for parent, name, layer in layers:
        # As quantizers do, the head stays as it is.
        base = quantize(layer) if setup.quantized and name != "lm_head" else layer
        setattr(parent, name, lora(base) if wanted(setup.targets, name) else base)
    return model.to(device), torch.randint(VOCABULARY, (2, TOKENS)).to(device)


def train(model: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """One forward and backward: the logits and the gradient of every adapter, by name."""
    model.zero_grad(set_to_none=True)
    logits = model(tokens)
    wide = logits.double() if logits.dtype is torch.float64 else logits.float()
    F.cross_entropy(wide[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def exact(setup: Setup, device: str) -> dict[str, Tensor]:
    """The same step in float64 throughout, on the weights that the 4-bit layers really stand for."""
    model, tokens = make(setup, device)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer).__name__ == "Linear4bit":
                setattr(parent, name, dequantize(layer))
    return train(model.double(), tokens)


def dequantize(packed: nn.Linear) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    layer = nn.Linear(packed.in_features, packed.out_features, bias=False)
    layer.weight.data = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
    return layer.requires_grad_(False)


def norms(model: nn.Module) -> list[Norm]:
    return [module for module in model.modules() if isinstance(module, Norm)]


@pytest.mark.reproduces
def test_reproduces(config, device):
    model, tokens = make(config, device)
    train(model, tokens)


@pytest.mark.workaround("return-input-dtype-from-norm")
def test_return_input_dtype_from_norm(config, device, measure):
    model, tokens = make(config, device)
    for norm in norms(model):
        norm.returns_input_dtype = True
    measure.compare(measure(lambda: train(model, tokens)), exact(config, device), TOLERANCE)


@pytest.mark.workaround("norm-weights-in-model-dtype")
def test_norm_weights_in_model_dtype(config, device, measure):
    model, tokens = make(config, device)
    for norm in norms(model):
        norm.to(torch.bfloat16)
    measure.compare(measure(lambda: train(model, tokens)), exact(config, device), TOLERANCE)


@pytest.mark.workaround("autocast-forward")
def test_autocast_forward(config, device, measure):
    model, tokens = make(config, device)

    def run():
        with torch.autocast(device, dtype=torch.bfloat16):
            return train(model, tokens)

    measure.compare(measure(run), exact(config, device), TOLERANCE)


@pytest.mark.workaround("cast-in-lora-forward")
def test_cast_in_lora_forward(config, device, measure):
    if config.targets != "all" or config.quantized:
        pytest.skip("claimed only where every Linear is a LoRA layer over an unquantized base")
    model, tokens = make(config, device, lora=CastToWeight)
    measure.compare(measure(lambda: train(model, tokens)), exact(config, device), TOLERANCE)


@pytest.mark.workaround("cast-to-adapter-dtype")
def test_cast_to_adapter_dtype(config, device, measure):
    if config.targets != "all":
        pytest.skip("claimed only where every Linear is a LoRA layer")
    model, tokens = make(config, device, lora=CastToAdapter)
    measure.compare(measure(lambda: train(model, tokens)), exact(config, device), TOLERANCE)


@pytest.mark.dead_end("cast-in-lora-forward-some-layers")
def test_cast_in_lora_forward_some_layers(config, device):
    if config.targets == "all" or config.quantized:
        pytest.skip("about plain Linear layers that are left beside the LoRA layers of an unquantized base")
    model, tokens = make(config, device, lora=CastToWeight)
    train(model, tokens)


@pytest.mark.dead_end("cast-in-lora-forward-4bit")
def test_cast_in_lora_forward_4bit(config, device):
    if not config.quantized:
        pytest.skip("about a 4-bit base")
    model, tokens = make(config, device, lora=CastToWeight)
    train(model, tokens)
