# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.57"]
# ///
"""Keys and values are written into a preallocated cache of another type.

`cache-in-another-type` hands a float32 tiny Llama a bfloat16 StaticCache, `autocast` lets it generate with a static
cache under autocast, and `own-cache` is an attention layer with buffers of its own.
"""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.4", transformers=">=4.57")

PROMPT, NEW = 5, 3


def prompt(device):
    return torch.randint(0, 64, (2, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)


def generate(model, **options):
    """Logits of the new tokens, `[step, batch, vocabulary]`."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    ids = prompt(model.device)
    output = model.eval().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        disable_compile=True,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    assert output.sequences.shape == (2, PROMPT + NEW)
    return torch.stack(output.logits)


def static_cache(model, dtype):
    import transformers

    cache = transformers.StaticCache(config=model.config, max_cache_len=16)
    heads = model.config.num_key_value_heads
    cache.early_initialization(batch_size=2, num_heads=heads, head_dim=8, dtype=dtype, device=model.device)
    return cache


class Attention(nn.Module):
    """One layer that keeps the keys and values of earlier tokens in buffers."""

    def __init__(self, cache_dtype, on_write=None, on_read=None):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(2, 16, 16, dtype=cache_dtype))
        self.on_write, self.on_read = on_write, on_read

    def write(self, buffer, positions, states):
        buffer.index_copy_(1, positions, states.to(self.on_write) if self.on_write else states)

    def read(self, buffer, length):
        return buffer[:, :length].to(self.on_read) if self.on_read else buffer[:, :length]

    def forward(self, hidden, positions):
        self.write(self.keys, positions, self.key(hidden))
        self.write(self.values, positions, self.value(hidden))
        seen = int(positions[-1]) + 1
        mask = torch.arange(seen, device=hidden.device)[None] <= positions[:, None]
        keys, values = self.read(self.keys, seen), self.read(self.values, seen)
        return nn.functional.scaled_dot_product_attention(self.query(hidden), keys, values, attn_mask=mask)


def decode(layer, device, dtype=torch.float32):
    """A prompt at once, then token by token."""
    hidden = torch.randn(2, PROMPT + NEW, 16, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    positions = torch.arange(PROMPT + NEW, device=device)
    with torch.no_grad():
        pieces = [layer(hidden[:, :PROMPT], positions[:PROMPT])]
        pieces += [layer(hidden[:, i : i + 1], positions[i : i + 1]) for i in range(PROMPT, PROMPT + NEW)]
    return torch.cat(pieces, 1)


def reference(config, tiny_llama):
    """In float64: generation with the ordinary cache, or the layer with a float64 one."""
    if config == "own-cache":
        return decode(Attention(torch.float64).double(), "cpu", torch.float64)
    return generate(tiny_llama(torch.float64))


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["cache-in-another-type", "autocast", "own-cache"])
def config(request):
    """Why the cache has another type than what is written."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, tiny_llama):
    if config == "own-cache":
        decode(Attention(torch.bfloat16).to(device), device)
        return
    model = tiny_llama().to(device)
    if config == "autocast":
        with torch.autocast(device, dtype=torch.bfloat16):
            generate(model, cache_implementation="static")
    else:
        generate(model, past_key_values=static_cache(model, torch.bfloat16))


@pytest.mark.workaround("cache-in-the-models-type")
def test_cache_in_the_models_type(config, device, tiny_llama, measure):
    only_for(config, "cache-in-another-type", "own-cache")
    if config == "own-cache":
        result = decode(Attention(torch.float32).to(device), device)
    else:
        model = tiny_llama().to(device)
        result = generate(model, past_key_values=static_cache(model, model.dtype))
    measure.compare(result, reference(config, tiny_llama), tolerance=1e-3)


@pytest.mark.workaround("one-type")
def test_one_type(config, device, tiny_llama, measure):
    only_for(config, "cache-in-another-type", "autocast")
    model = tiny_llama().to(device).to(torch.bfloat16)
    options = {"cache_implementation": "static"}
    if config == "cache-in-another-type":
        options = {"past_key_values": static_cache(model, torch.bfloat16)}
    measure.compare(generate(model, **options), reference(config, tiny_llama), tolerance=0.05)


@pytest.mark.workaround("autocast-off")
def test_autocast_off(config, device, tiny_llama, measure):
    only_for(config, "autocast")
    model = tiny_llama().to(device)
    with torch.autocast(device, dtype=torch.bfloat16), torch.autocast(device, enabled=False):
        result = generate(model, cache_implementation="static")
    measure.compare(result, reference(config, tiny_llama), tolerance=1e-3)


@pytest.mark.workaround("dynamic-cache")
def test_dynamic_cache(config, device, tiny_llama, measure):
    only_for(config, "cache-in-another-type", "autocast")
    model = tiny_llama().to(device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=config == "autocast"):
        result = generate(model)
    measure.compare(result, reference(config, tiny_llama), tolerance=0.05)


@pytest.mark.workaround("cast-on-write-and-read")
def test_cast_on_write_and_read(config, device, tiny_llama, measure):
    only_for(config, "own-cache")
    layer = Attention(torch.bfloat16, on_write=torch.bfloat16, on_read=torch.float32).to(device)
    measure.compare(decode(layer, device), reference(config, tiny_llama), tolerance=0.02)


@pytest.mark.dead_end("cast-on-write-only")
def test_cast_on_write_only(config, device):
    only_for(config, "own-cache")
    decode(Attention(torch.bfloat16, on_write=torch.bfloat16).to(device), device)


@pytest.mark.dead_end("cache-in-autocasts-type")
def test_cache_in_autocasts_type(config, device, tiny_llama):
    only_for(config, "cache-in-another-type", "autocast")
    model = tiny_llama().to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        generate(model, past_key_values=static_cache(model, torch.bfloat16))


@pytest.mark.dead_end("cache-in-the-weights-type")
def test_cache_in_the_weights_type(config, device, tiny_llama):
    only_for(config, "autocast")
    model = tiny_llama().to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        generate(model, past_key_values=static_cache(model, model.dtype))
