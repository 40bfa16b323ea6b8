# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""A mask of a type that attention does not take.

`tokenizer-mask` hands over the 0/1 integers that came with the token ids, `float64-bias` position biases in double
precision, and `other-half-mask` a causal mask made in bfloat16 for a float16 model.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.requires(torch=">=2.3")

BATCH, HEADS, LENGTH, SIZE = 2, 4, 6, 16
REAL = [6, 4]
"""Tokens of each text; the rest is padding on the right."""


def states(device, dtype):
    # Rounded first, so that every type holds the same numbers.
    numbers = torch.randn(3, BATCH, HEADS, LENGTH, SIZE, generator=torch.Generator().manual_seed(0)).half()
    return tuple(numbers.to(device, dtype))


def tokenizer_mask(device):
    """`[batch, length]`, 1 for a token and 0 for padding."""
    places = torch.arange(LENGTH)
    return torch.stack([(places < real).long() for real in REAL]).to(device)


def causal_bias(device, dtype):
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return torch.zeros(LENGTH, LENGTH, dtype=dtype).masked_fill(~seen, -float("inf")).to(device)


def distance_bias(device):
    """The further away, the less: one slope for each head."""
    places = torch.arange(LENGTH, dtype=torch.float64)
    slopes = 0.5 ** torch.arange(1, HEADS + 1, dtype=torch.float64)
    return (-(places[:, None] - places).abs() * slopes[:, None, None])[None].to(device)


def mask_of(config, device):
    if config == "tokenizer-mask":
        return tokenizer_mask(device)[:, None, None, :]
    return distance_bias(device) if config == "float64-bias" else causal_bias(device, torch.bfloat16)


def attend(device, mask, **options):
    return scaled_dot_product_attention(*states(device, torch.float16), attn_mask=mask, **options)


def reference(config):
    """In float64, written out; masked scores are left out of the softmax."""
    query, key, value = states("cpu", torch.float64)
    scores = query @ key.transpose(-1, -2) / SIZE**0.5
    if config == "tokenizer-mask":
        scores = scores.masked_fill(tokenizer_mask("cpu")[:, None, None, :] == 0, -float("inf"))
    else:
        scores = scores + (distance_bias("cpu") if config == "float64-bias" else causal_bias("cpu", torch.float64))
    return torch.softmax(scores, -1) @ value


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"does not apply to {config}")


@pytest.fixture(params=["tokenizer-mask", "float64-bias", "other-half-mask"])
def config(request):
    """What the mask is."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    attend(device, mask_of(config, device))


@pytest.mark.workaround("bool-mask")
def test_bool_mask(config, device, measure):
    only_for(config, "tokenizer-mask")
    result = measure(lambda: attend(device, tokenizer_mask(device).bool()[:, None, None, :]))
    measure.compare(result, reference(config), tolerance=0.01)


@pytest.mark.workaround("cast-additive-mask")
def test_cast_additive_mask(config, device, measure):
    only_for(config, "float64-bias", "other-half-mask")
    mask = mask_of(config, device)
    result = measure(lambda: attend(device, mask.to(torch.float16)))
    measure.compare(result, reference(config), tolerance=0.01)


@pytest.mark.workaround("is-causal")
def test_is_causal(config, device, measure):
    only_for(config, "other-half-mask")
    result = measure(lambda: attend(device, None, is_causal=True))
    measure.compare(result, reference(config), tolerance=0.01)


@pytest.mark.workaround("additive-from-the-tokenizer")
def test_additive_from_the_tokenizer(config, device, measure):
    only_for(config, "tokenizer-mask")
    dtype = torch.float16
    bias = (1 - tokenizer_mask(device)[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
    measure.compare(attend(device, bias), reference(config), tolerance=0.01)


@pytest.mark.dead_end("integer-to-float")
def test_integer_to_float(config, device, measure):
    only_for(config, "tokenizer-mask")
    measure.compare(attend(device, mask_of(config, device).half()), reference(config), tolerance=0.01)


@pytest.mark.dead_end("additive-to-bool")
def test_additive_to_bool(config, device, measure):
    only_for(config, "float64-bias", "other-half-mask")
    measure.compare(attend(device, mask_of(config, device).bool()), reference(config), tolerance=0.01)


@pytest.mark.dead_end("another-backend")
def test_another_backend(config, device):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        attend(device, mask_of(config, device))


@pytest.mark.dead_end("under-autocast")
def test_under_autocast(config, device):
    only_for(config, "tokenizer-mask", "float64-bias")
    with torch.autocast(device, dtype=torch.bfloat16):
        attend(device, mask_of(config, device))
