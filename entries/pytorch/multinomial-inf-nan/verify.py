# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.45"]
# ///
"""Sampling gets logits that are not numbers.

`fp16-overflow` is a tiny Llama whose activations exceed 65504, `broken-weights` one with a NaN in a matrix,
`filtered-to-nothing` a logits processor that forbids every token, and `masked-rows` attention with a mask of -inf over
a batch padded on the left. On CUDA the check runs on the GPU and prints an assertion, so there the broken programs run
in a process of their own.
"""

import inspect

import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.45")

ALLOWED = 7
"""The one token that the constraint of `filtered-to-nothing` should have left."""


def build(case, device, dtype):
    """A tiny Llama, with what is wrong with it."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    model = transformers.LlamaForCausalLM(settings).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    if case == "fp16-overflow":
        mlp = model.model.layers[0].mlp
        for matrix, factor in ((mlp.gate_proj, 20), (mlp.up_proj, 20), (mlp.down_proj, 3e5)):
            matrix.weight *= factor
    if case == "broken-weights":
        model.model.layers[1].self_attn.o_proj.weight[3, 5] = float("nan")
    return model.to(device, dtype)


def forbid(allowed):
    """A constraint that leaves the given tokens."""

    def processor(_ids, scores):
        kept = torch.full_like(scores, -float("inf"))
        kept[:, allowed] = scores[:, allowed]
        return kept

    return processor


def generate(case, model, allowed=(), **options):
    """One new token: its id and the model's logits for it."""
    import transformers

    ids = torch.randint(1, 64, (2, 6), generator=torch.Generator().manual_seed(1)).to(model.device)
    processors = [forbid(list(allowed))] if case == "filtered-to-nothing" else []
    options = {"do_sample": True, **options}
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=transformers.LogitsProcessorList(processors),
        **options,
    )
    return output.sequences[:, -1].cpu(), output.logits[0]


def attend(device, dtype, blocked=-float("inf"), side="left"):
    """Logits after two attention layers over a batch of two prompts, the second one short and padded."""
    import torch

    torch.manual_seed(0)
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0]], dtype=torch.bool)
    tokens = torch.randn(5, 16, dtype=torch.float64)
    hidden = torch.zeros(2, 5, 16, dtype=torch.float64)
    hidden[0], hidden[1, real[1]] = tokens, tokens[:3]
    weights = torch.randn(3, 2, 16, 16, dtype=torch.float64) / 4
    hidden, weights = hidden.to(device, dtype), weights.to(device, dtype)
    seen = (torch.ones(5, 5, dtype=torch.bool).tril() & real[:, None, :]).to(device)
    bias = torch.zeros(2, 5, 5, dtype=dtype, device=device).masked_fill_(~seen, blocked)
    for query, key, value in weights.transpose(0, 1):
        scores = (hidden @ query) @ (hidden @ key).transpose(1, 2) / 4 + bias
        hidden = hidden + torch.softmax(scores, -1) @ (hidden @ value)
    return hidden[:, -1]


def sample(logits):
    import torch

    return torch.multinomial(torch.softmax(logits.float(), -1), 1)


def broken(case, device, dtype=None, **options):
    """The program of each cause."""
    import torch

    if case == "masked-rows":
        print(sample(attend(device, torch.float32)))
    else:
        dtype = dtype or (torch.float16 if case == "fp16-overflow" else torch.float32)
        print(generate(case, build(case, device, dtype), **options)[0])


def run_broken(run_script, case, device, options=""):
    call = f"broken({case!r}, {device!r}, {options})"
    if device == "cpu":
        eval(call)
        return
    functions = (build, forbid, generate, attend, sample, broken)
    run_script("\n\n".join(["import torch", *map(inspect.getsource, functions), call]))


def reference(case):
    """Logits in float64 of the model as it was meant."""
    if case == "masked-rows":
        # Each prompt alone, so there is nothing to pad.
        return alone(torch.float64)
    meant = "right" if case == "broken-weights" else case
    return generate("right", build(meant, "cpu", torch.float64))[1]


def alone(dtype):
    torch.manual_seed(0)
    tokens = torch.randn(5, 16, dtype=torch.float64)
    weights = (torch.randn(3, 2, 16, 16, dtype=torch.float64) / 4).to(dtype)
    last = []
    for hidden in (tokens.to(dtype), tokens[:3].to(dtype)):
        unseen = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
        for query, key, value in weights.transpose(0, 1):
            scores = ((hidden @ query) @ (hidden @ key).T / 4).masked_fill(unseen, -float("inf"))
            hidden = hidden + torch.softmax(scores, -1) @ (hidden @ value)
        last.append(hidden[-1])
    return torch.stack(last)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["fp16-overflow", "broken-weights", "filtered-to-nothing", "masked-rows"])
def config(request):
    """Where the logits stop being numbers."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, run_script):
    run_broken(run_script, config, device)


@pytest.mark.workaround("bfloat16")
def test_bfloat16(config, device, measure):
    only_for(config, "fp16-overflow")
    _, logits = generate(config, build(config, device, torch.bfloat16))
    measure.compare(logits, reference(config), tolerance=0.05)


@pytest.mark.workaround("float32")
def test_float32(config, device, measure):
    only_for(config, "fp16-overflow")
    _, logits = generate(config, build(config, device, torch.float32))
    measure.compare(logits, reference(config), tolerance=1e-3)


@pytest.mark.workaround("other-checkpoint")
def test_other_checkpoint(config, device, measure):
    only_for(config, "broken-weights")
    model = build(config, device, torch.float32)
    bad = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    assert bad == ["model.layers.1.self_attn.o_proj.weight"]
    model.load_state_dict(build("right", device, torch.float32).state_dict())
    measure.compare(generate(config, model)[1], reference(config), tolerance=1e-3)


@pytest.mark.workaround("keep-one-token")
def test_keep_one_token(config, device, measure):
    only_for(config, "filtered-to-nothing")
    token, logits = generate(config, build(config, device, torch.float32), allowed=[ALLOWED])
    assert token.tolist() == [ALLOWED, ALLOWED]
    measure.compare(logits, reference(config), tolerance=1e-3)


@pytest.mark.workaround("finite-mask")
def test_finite_mask(config, device, measure):
    only_for(config, "masked-rows")
    logits = attend(device, torch.float32, blocked=torch.finfo(torch.float32).min)
    assert sample(logits).shape == (2, 1)
    measure.compare(logits, reference(config), tolerance=1e-3)


@pytest.mark.dead_end("greedy")
def test_greedy(config, device, measure):
    only_for(config, "fp16-overflow", "broken-weights")
    dtype = torch.float16 if config == "fp16-overflow" else torch.float32
    _, logits = generate(config, build(config, device, dtype), do_sample=False)
    measure.compare(logits, reference(config), tolerance=0.05)


@pytest.mark.dead_end("replace-nan")
def test_replace_nan(config, device, measure):
    only_for(config, "fp16-overflow", "broken-weights", "filtered-to-nothing")
    dtype = torch.float16 if config == "fp16-overflow" else torch.float32
    _, logits = generate(config, build(config, device, dtype), remove_invalid_values=True)
    measure.compare(logits, reference(config), tolerance=0.05)


@pytest.mark.dead_end("milder-sampling")
def test_milder_sampling(config, device, run_script):
    only_for(config, "fp16-overflow", "broken-weights", "filtered-to-nothing")
    run_broken(run_script, config, device, "temperature=0.7, top_p=0.9, top_k=20")


@pytest.mark.dead_end("another-dtype")
def test_another_dtype(config, device, run_script):
    only_for(config, "broken-weights", "filtered-to-nothing")
    run_broken(run_script, config, device, "dtype=torch.bfloat16")


@pytest.mark.dead_end("pad-on-the-right")
def test_pad_on_the_right(config, device, measure):
    only_for(config, "masked-rows")
    measure.compare(attend(device, torch.float32, side="right"), reference(config), tolerance=1e-3)
