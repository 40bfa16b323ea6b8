# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A scatter writes values of one type into a tensor of another.

`routed-experts` is the end of a mixture-of-experts layer with float32 routing weights, `image-features` puts features
of a float32 tower among bfloat16 token embeddings, `float32-sums` adds results of autocast up by group.
"""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

TOKENS, WIDTH, EXPERTS, PATCHES = 12, 16, 3, 5


def numbers(shape, seed, dtype=torch.float32):
    # Rounded first, so that every type holds the same numbers.
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(dtype)


def groups():
    return torch.arange(TOKENS) % EXPERTS


def experts(device, dtype):
    torch.manual_seed(0)
    router, layers = nn.Linear(WIDTH, EXPERTS), nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS)])
    return (part.bfloat16().to(device, dtype).requires_grad_(False) for part in (router, layers))


def moe(device, dtype, prepare_weights=None, prepare_source=None, out_dtype=None, write=None):
    """Each token through its two best experts, summed with routing weights; the options are the fixes."""
    router, layers = experts(device, dtype)
    hidden = numbers((TOKENS, WIDTH), 1, dtype).to(device)
    logits = router(hidden)
    routing = torch.softmax(logits, -1, dtype=torch.promote_types(dtype, torch.float32))
    routing = prepare_weights(routing, hidden) if prepare_weights else routing
    # Which expert a token goes to must not depend on rounding.
    chosen = torch.stack([groups(), (groups() + 1) % EXPERTS], -1).to(device)
    final = torch.zeros_like(hidden, dtype=out_dtype)
    for number, expert in enumerate(layers):
        rows = (chosen == number).any(-1).nonzero().flatten()
        values = expert(hidden[rows]) * routing[rows, number, None]
        values = prepare_source(values, final) if prepare_source else values
        if write is None:
            final.index_add_(0, rows, values)
        else:
            write(final, rows, values)
    return final.to(dtype)


def image_mask(device):
    return ((torch.arange(TOKENS) >= 3) & (torch.arange(TOKENS) < 3 + PATCHES))[:, None].to(device)


def embeds_and_features(device):
    embeds = numbers((TOKENS, WIDTH), 2, torch.bfloat16)
    return embeds.to(device), numbers((PATCHES, WIDTH), 3).to(device)


def sums_and_values(device):
    """A float32 buffer, and what a projection gives under autocast."""
    torch.manual_seed(0)
    projection = nn.Linear(WIDTH, WIDTH).to(device).requires_grad_(False)
    with torch.autocast(device, dtype=torch.bfloat16):
        values = projection(numbers((TOKENS, WIDTH), 1).to(device))
    return torch.zeros(EXPERTS, WIDTH, device=device), values


def group_index(device):
    return groups()[:, None].expand(TOKENS, WIDTH).to(device)


def broken(config, device):
    if config == "routed-experts":
        return moe(device, torch.bfloat16)
    if config == "image-features":
        embeds, features = embeds_and_features(device)
        return embeds.masked_scatter(image_mask(device), features)
    sums, values = sums_and_values(device)
    return sums.scatter_add_(0, group_index(device), values)


def reference(config):
    """In float64."""
    if config == "routed-experts":
        return moe("cpu", torch.float64)
    if config == "image-features":
        embeds, features = (part.double() for part in embeds_and_features("cpu"))
        return torch.cat([embeds[:3], features, embeds[3 + PATCHES :]])
    torch.manual_seed(0)
    values = nn.Linear(WIDTH, WIDTH).double()(numbers((TOKENS, WIDTH), 1, torch.float64)).detach()
    return torch.stack([values[groups() == group].sum(0) for group in range(EXPERTS)])


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"does not apply to {config}")


@pytest.fixture(params=["routed-experts", "image-features", "float32-sums"])
def config(request):
    """What is scattered into what."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("cast-the-source")
def test_cast_the_source(config, device, measure):
    if config == "routed-experts":
        result = moe(device, torch.bfloat16, prepare_source=lambda values, final: values.to(final.dtype))
    elif config == "image-features":
        embeds, features = embeds_and_features(device)
        result = embeds.masked_scatter(image_mask(device), features.to(embeds.dtype))
    else:
        sums, values = sums_and_values(device)
        result = sums.scatter_add_(0, group_index(device), values.to(sums.dtype))
    measure.compare(result, reference(config), tolerance=0.03)


@pytest.mark.workaround("cast-routing-weights")
def test_cast_routing_weights(config, device, measure):
    only_for(config, "routed-experts")
    result = moe(device, torch.bfloat16, prepare_weights=lambda routing, hidden: routing.to(hidden.dtype))
    measure.compare(result, reference(config), tolerance=0.03)


@pytest.mark.workaround("destination-in-the-source-type")
def test_destination_in_the_source_type(config, device, measure):
    if config == "routed-experts":
        result = moe(device, torch.bfloat16, out_dtype=torch.float32)
    elif config == "image-features":
        embeds, features = embeds_and_features(device)
        result = embeds.to(features.dtype).masked_scatter(image_mask(device), features)
    else:
        sums, values = sums_and_values(device)
        result = sums.to(values.dtype).scatter_add_(0, group_index(device), values)
    measure.compare(result, reference(config), tolerance=0.03)


@pytest.mark.workaround("out-of-place-under-autocast")
@pytest.mark.requires(device="cuda")
def test_out_of_place_under_autocast(config, device, measure):
    only_for(config, "float32-sums")
    sums, values = sums_and_values(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = sums.scatter_add(0, group_index(device), values)
    assert result.dtype == torch.float32
    measure.compare(result, reference(config), tolerance=0.03)


@pytest.mark.dead_end("under-autocast")
def test_under_autocast(config, device):
    with torch.autocast(device, dtype=torch.bfloat16):
        broken(config, device)


def index_put(final, rows, values):
    final.index_put_((rows,), values, accumulate=True)


@pytest.mark.dead_end("another-way-to-write")
def test_another_way_to_write(config, device):
    if config == "routed-experts":
        moe(device, torch.bfloat16, write=index_put)
    elif config == "image-features":
        embeds, features = embeds_and_features(device)
        embeds[image_mask(device)[:, 0]] = features
    else:
        sums, values = sums_and_values(device)
        sums.index_add_(0, groups().to(device), values)
