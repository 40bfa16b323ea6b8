# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.48"]
# ///
"""Decoder layers run without the rotary embeddings that the model now computes once for all of them.

`layers-one-by-one` is a tool that walks through a tiny Llama, `captured-inputs` a quantizer that keeps the arguments of
the first layer and calls every layer with them, `copied-forward` a Qwen2 whose loop was copied from an older release.
Right are the hidden states of the whole model in float64.
"""

from __future__ import annotations

import pytest
import torch
import transformers

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.48")

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.fixture(params=["layers-one-by-one", "captured-inputs", "copied-forward"])
def config(request):
    return request.param


def build(config: str, **options):
    torch.manual_seed(0)
    if config == "copied-forward":
        return transformers.Qwen2Model(transformers.Qwen2Config(**SHAPE, **HEADS, **options)).eval()
    return transformers.LlamaModel(transformers.LlamaConfig(**SHAPE, **HEADS, **options)).eval()


class Stop(Exception):  # noqa: N818
    """Thrown by the first layer once its arguments are known."""


def captured(net, ids: torch.Tensor, kept: tuple[str, ...] | None) -> tuple[torch.Tensor, dict]:
    """The hidden states that enter the first layer, and those of its keyword arguments that the tool keeps."""
    seen = {}

    def keep(_layer, arguments, options):
        seen["hidden"] = arguments[0] if arguments else options.pop("hidden_states")
        seen["options"] = {name: value for name, value in options.items() if kept is None or name in kept}
        raise Stop

    handle = net.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        net(ids, use_cache=False)
    except Stop:
        return seen["hidden"], seen["options"]
    finally:
        handle.remove()


@torch.no_grad()
def run(config: str, net, kept: tuple[str, ...] | None = ("attention_mask",), **options) -> torch.Tensor:
    """The last hidden states, from the layers called by hand."""
    ids = TOKENS.to(net.device)
    if config == "captured-inputs":
        hidden, known = captured(net, ids, kept)
        options = known | options
    else:
        hidden = net.embed_tokens(ids)
    for layer in net.layers:
        hidden = layer(hidden, **options)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return net.norm(hidden)


@torch.no_grad()
def reference(config: str) -> torch.Tensor:
    return build(config).double()(TOKENS).last_hidden_state


def position_ids(net) -> torch.Tensor:
    return torch.arange(TOKENS.shape[1], device=net.device)[None]


@pytest.mark.reproduces
def test_reproduces(config, device):
    run(config, build(config).to(device))


@pytest.mark.workaround("pass-position-embeddings")
def test_pass_position_embeddings(config, device, measure):
    net = build(config).to(device)

    def step():
        hidden = net.embed_tokens(TOKENS.to(device))
        return run(config, net, position_embeddings=net.rotary_emb(hidden, position_ids(net)))

    measure.compare(measure(step), reference(config), tolerance=1e-4)


@pytest.mark.workaround("keep-all-arguments")
def test_keep_all_arguments(config, device, measure):
    if config != "captured-inputs":
        pytest.skip("nothing is captured")
    net = build(config).to(device)
    measure.compare(measure(lambda: run(config, net, kept=None)), reference(config), tolerance=1e-4)


@pytest.mark.workaround("call-the-whole-model")
def test_call_the_whole_model(config, device, measure):
    net = build(config).to(device)
    states = {}

    def keep(index):
        def hook(_layer, _arguments, output):
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(net.layers)]
    with torch.no_grad():
        net(TOKENS.to(device), use_cache=False)
        last = net.norm(states[len(net.layers) - 1])
    for handle in handles:
        handle.remove()
    measure.compare(last, reference(config), tolerance=1e-4)


@pytest.mark.dead_end("pass-position-ids")
def test_pass_position_ids(config, device):
    net = build(config).to(device)
    run(config, net, position_ids=position_ids(net))


@pytest.mark.dead_end("put-rotary-back-into-the-layers")
def test_put_rotary_back_into_the_layers(config, device):
    net = build(config).to(device)
    for layer in net.layers:
        layer.self_attn.rotary_emb = net.rotary_emb
    run(config, net)


@pytest.mark.dead_end("eager-attention")
def test_eager_attention(config, device):
    run(config, build(config, attn_implementation="eager").to(device))
