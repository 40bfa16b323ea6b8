# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""Queries, keys and values come to attention in different types.

One attention layer in bfloat16. `rotary-in-float32` turns queries and keys in float32 and leaves them there,
`cached-conditions` gets keys and values that were computed before in float16, and `adapter-in-float32` has a float32
low-rank adapter on the value projection.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.requires(torch=">=2.3")

HEADS, LENGTH, SIZE = 4, 8, 16
WIDTH = HEADS * SIZE


class Layer(nn.Module):
    """Attention with the option that each cause needs; `repaired` says the function at fault casts back."""

    def __init__(self, cause, repaired=False):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.down, self.up = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)
        self.cause, self.repaired = cause, repaired
        self.attend = scaled_dot_product_attention

    def finished(self, values, like):
        return values.to(like.dtype) if self.repaired else values

    def rotated(self, states):
        places = torch.arange(LENGTH, device=states.device)[:, None]
        angles = places / 100 ** (torch.arange(SIZE // 2, device=states.device) / (SIZE // 2))
        turn = torch.cat([angles, angles], -1).to(torch.promote_types(states.dtype, torch.float32))
        wide = states.to(turn.dtype)
        first, second = wide.chunk(2, -1)
        return self.finished(wide * turn.cos() + torch.cat([-second, first], -1) * turn.sin(), states)

    def adapted(self, hidden):
        values = self.value(hidden)
        return self.finished(values + self.up(self.down(hidden.to(self.up.weight.dtype))), values)

    def forward(self, hidden, conditions=None):
        query = split(self.query(hidden))
        if conditions is not None:
            key, value = conditions
        else:
            key = split(self.key(hidden))
            value = split(self.adapted(hidden) if self.cause == "adapter-in-float32" else self.value(hidden))
        if self.cause == "rotary-in-float32":
            query, key = self.rotated(query), self.rotated(key)
        return self.out(join(self.attend(query, key, value)).to(hidden.dtype))


def split(states):
    return states.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)


def join(states):
    return states.transpose(1, 2).flatten(-2)


def build(cause, device, repaired=False):
    layer = Layer(cause, repaired).to(device, torch.bfloat16).requires_grad_(False)
    if cause == "adapter-in-float32":
        layer.down.float(), layer.up.float()
    return layer


def inputs(device, dtype=torch.bfloat16):
    # Rounded first, so that every type holds the same numbers.
    values = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    return values.to(device, dtype)


def conditions(cause, device, dtype):
    """Keys and values of a text encoder, kept from before; None where the layer makes its own."""
    if cause != "cached-conditions":
        return None
    shape = (2, 2, HEADS, LENGTH, SIZE)
    kept = torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16().half()
    return tuple(kept.to(device, dtype))


def run(cause, device, repaired=False, dtype=torch.float16, attend=scaled_dot_product_attention):
    layer = build(cause, device, repaired)
    layer.attend = attend
    return layer(inputs(device), conditions(cause, device, dtype))


def reference(cause):
    layer = build(cause, "cpu", repaired=True).double()
    return layer(inputs("cpu", torch.float64), conditions(cause, "cpu", torch.float64))


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["rotary-in-float32", "cached-conditions", "adapter-in-float32"])
def config(request):
    """Which of the three has another type."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    run(config, device)


@pytest.mark.workaround("cast-before-the-call")
def test_cast_before_the_call(config, device, measure):
    def attend(query, key, value):
        dtype = torch.bfloat16  # the model's
        return scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype))

    result = measure(lambda: run(config, device, attend=attend))
    measure.compare(result, reference(config), tolerance=0.03)


@pytest.mark.workaround("cast-back-at-the-source")
def test_cast_back_at_the_source(config, device, measure):
    only_for(config, "rotary-in-float32", "adapter-in-float32")
    result = measure(lambda: run(config, device, repaired=True))
    measure.compare(result, reference(config), tolerance=0.03)


@pytest.mark.workaround("cache-in-the-models-type")
def test_cache_in_the_models_type(config, device, measure):
    only_for(config, "cached-conditions")
    result = measure(lambda: run(config, device, dtype=torch.bfloat16))
    measure.compare(result, reference(config), tolerance=0.03)


@pytest.mark.workaround("autocast")
def test_autocast(config, device, measure):
    def step():
        with torch.autocast(device, dtype=torch.bfloat16):
            return run(config, device)

    measure.compare(measure(step), reference(config), tolerance=0.03)


@pytest.mark.dead_end("another-backend")
def test_another_backend(config, device):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        run(config, device)


@pytest.mark.dead_end("eager-attention")
def test_eager_attention(config, device):
    def attend(query, key, value):
        return torch.softmax(query @ key.transpose(-1, -2) / SIZE**0.5, -1) @ value

    run(config, device, attend=attend)
