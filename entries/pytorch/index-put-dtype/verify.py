# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""An assignment by mask or by index tensor whose two sides differ in type.

`float32-features` puts the output of a float32 vision tower into bfloat16 token embeddings, `autocast-features` that of
a projector under autocast into float32 ones, and `accumulated` adds float32 parts to a bfloat16 sum.
"""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

TOKENS, PATCHES, WIDTH = 12, 5, 16
FIRST = 3
"""Where the image stands in the text; its tokens are neighbours."""
ROWS = [4, 1, 4, 0, 1]
"""Rows that the parts of a sum belong to; some come twice."""


def layers(device):
    torch.manual_seed(0)
    return nn.Embedding(32, WIDTH).to(device), nn.Linear(8, WIDTH).to(device)


def inputs(device):
    numbers = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 32, (TOKENS,), generator=numbers).to(device)
    return ids, torch.randn(PATCHES, 8, generator=numbers).to(device)


def image_mask(device):
    places = torch.arange(TOKENS, device=device)
    return (places >= FIRST) & (places < FIRST + PATCHES)


def sides(config, device):
    """Destination, and what is to be written into it."""
    embedding, projector = layers(device)
    ids, patches = inputs(device)
    if config == "accumulated":
        return embedding(ids).detach().bfloat16(), projector(patches).detach()
    if config == "float32-features":
        return embedding(ids).detach().bfloat16(), projector(patches).detach()
    with torch.autocast(device, dtype=torch.bfloat16):
        return embedding(ids).detach(), projector(patches).detach()


def assign(config, destination, source):
    """The statement that all this is about."""
    if config == "accumulated":
        rows = torch.tensor(ROWS, device=destination.device)
        return destination.index_put_((rows,), source, accumulate=True)
    destination[image_mask(destination.device)] = source
    return destination


def reference(config):
    embedding, projector = (layer.double() for layer in layers("cpu"))
    ids, patches = inputs("cpu")
    result, source = embedding(ids).detach(), projector(patches.double()).detach()
    if config == "accumulated":
        for row, part in zip(ROWS, source, strict=True):
            result[row] += part
    else:
        result[FIRST : FIRST + PATCHES] = source
    return result


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"does not apply to {config}")


@pytest.fixture(params=["float32-features", "autocast-features", "accumulated"])
def config(request):
    """Where the two types come from."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    assign(config, *sides(config, device))


@pytest.mark.workaround("cast-the-source")
def test_cast_the_source(config, device, measure):
    destination, source = sides(config, device)
    result = assign(config, destination, source.to(destination.dtype))
    measure.compare(result, reference(config), tolerance=0.02)


@pytest.mark.workaround("destination-in-the-source-type")
def test_destination_in_the_source_type(config, device, measure):
    destination, source = sides(config, device)
    result = assign(config, destination.to(source.dtype), source)
    measure.compare(result, reference(config), tolerance=0.02)


@pytest.mark.workaround("assign-to-a-slice")
def test_assign_to_a_slice(config, device, measure):
    only_for(config, "float32-features", "autocast-features")
    destination, source = sides(config, device)
    destination[FIRST : FIRST + PATCHES] = source
    measure.compare(destination, reference(config), tolerance=0.02)


@pytest.mark.dead_end("under-autocast")
def test_under_autocast(config, device):
    destination, source = sides(config, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assign(config, destination, source)


@pytest.mark.dead_end("other-half-type")
def test_other_half_type(config, device):
    only_for(config, "float32-features", "accumulated")
    destination, source = sides(config, device)
    assign(config, destination, source.half())


@pytest.mark.dead_end("masked-scatter")
def test_masked_scatter(config, device):
    only_for(config, "float32-features", "autocast-features")
    destination, source = sides(config, device)
    destination.masked_scatter_(image_mask(device)[:, None], source)


@pytest.mark.dead_end("plus-equals")
def test_plus_equals(config, device, measure):
    only_for(config, "accumulated")
    destination, source = sides(config, device)
    destination[torch.tensor(ROWS, device=device)] += source
    measure.compare(destination, reference(config), tolerance=0.02)
