# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "numpy", "transformers>=4.40"]
# ///
"""Something else than int64 or int32 is looked up in an embedding table.

`float-ids` are categories out of a table of floats, `empty-piece` puts a prompt together of which one piece has no
tokens, `uint8-ids` come from a compact file, and `cast-batch` casts a whole batch to the type of the model. In
`vectors-for-ids` a language model is given vectors where it expects ids.
"""

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40")

ROWS, WIDTH = 1024, 6
LISTS = {
    "float-ids": [[3, 7, 2], [7, 7, 901]],
    "empty-piece": [[5, 9, 17, 5]],
    "uint8-ids": [[3, 255, 2], [128, 7, 0]],
    "cast-batch": [[257, 301, 998], [5, 515, 999]],
    "vectors-for-ids": [[3, 9, 27, 41]],
}


@pytest.fixture(params=list(LISTS))
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("these ids are no integers for another reason")


def table(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Embedding(ROWS, WIDTH).to(device, dtype)


def ids_of(config, device):
    """Ids as the broken program makes them."""
    if config == "float-ids":
        return torch.from_numpy(np.array(LISTS[config], dtype=np.float32)).to(device)
    if config == "empty-piece":
        (tokens,) = LISTS[config]
        return torch.cat([torch.tensor([]), torch.tensor(tokens)]).unsqueeze(0).to(device)
    if config == "uint8-ids":
        return torch.from_numpy(np.array(LISTS[config], dtype=np.uint8)).to(device)
    return cast_everything(batch(config), device)["input_ids"]


def batch(config):
    ids = torch.tensor(LISTS[config])
    return {"input_ids": ids, "pixel_values": torch.ones(len(ids), 4)}


def cast_everything(inputs, device):
    return {name: tensor.to(device, torch.bfloat16) for name, tensor in inputs.items()}


def look_up(ids, device, dtype=torch.float32):
    """The vectors, and the gradient of a loss on them."""
    embedding = table(device, dtype)
    vectors = embedding(ids)
    vectors.square().sum().backward()
    return [vectors.detach(), embedding.weight.grad]


def reference(config):
    """By a product with one-hot rows instead of a lookup, in float64."""
    weight = table("cpu", torch.float64).weight.detach()
    chosen = torch.zeros(*np.shape(LISTS[config]), ROWS, dtype=torch.float64)
    for row, ids in enumerate(LISTS[config]):
        for column, number in enumerate(ids):
            chosen[row, column, number] = 1
    return [chosen @ weight, 2 * chosen.sum(dim=(0, 1)).unsqueeze(1) * weight]


def language_model(tiny_llama, device):
    model = tiny_llama().eval().to(device)
    vectors = model.get_input_embeddings()(torch.tensor(LISTS["vectors-for-ids"], device=device)).detach()
    return model, vectors


def broken(config, device, tiny_llama):
    if config == "vectors-for-ids":
        model, vectors = language_model(tiny_llama, device)
        model(vectors)
    else:
        look_up(ids_of(config, device), device)


@pytest.mark.reproduces
def test_reproduces(config, device, tiny_llama):
    broken(config, device, tiny_llama)


@pytest.mark.workaround("long")
def test_long(config, device, measure):
    only_for(config, "float-ids", "uint8-ids", "empty-piece")
    result = measure(lambda: look_up(ids_of(config, device).long(), device))
    measure.compare(result, reference(config), tolerance=1e-5)


@pytest.mark.workaround("integers-from-the-start")
def test_integers_from_the_start(config, device, measure):
    only_for(config, "float-ids", "empty-piece")

    def step():
        if config == "float-ids":
            return look_up(torch.tensor(LISTS[config], dtype=torch.long, device=device), device)
        pieces = [torch.tensor(piece, dtype=torch.long) for piece in ([], *LISTS[config])]
        return look_up(torch.cat(pieces).unsqueeze(0).to(device), device)

    measure.compare(measure(step), reference(config), tolerance=1e-5)


@pytest.mark.workaround("cast-floats-only")
def test_cast_floats_only(config, device, measure):
    only_for(config, "cast-batch")

    def step():
        inputs = {
            name: tensor.to(device, torch.bfloat16 if tensor.is_floating_point() else None)
            for name, tensor in batch(config).items()
        }
        assert inputs["pixel_values"].dtype == torch.bfloat16
        return look_up(inputs["input_ids"], device)

    measure.compare(measure(step), reference(config), tolerance=1e-5)


@pytest.mark.workaround("inputs-embeds")
def test_inputs_embeds(config, device, measure, tiny_llama):
    only_for(config, "vectors-for-ids")
    model, vectors = language_model(tiny_llama, device)

    def step():
        with torch.no_grad():
            return model(inputs_embeds=vectors).logits

    with torch.no_grad():
        expected = tiny_llama(torch.float64).eval()(input_ids=torch.tensor(LISTS[config])).logits
    measure.compare(measure(step), expected, tolerance=1e-4)


@pytest.mark.dead_end("long-after-the-cast")
def test_long_after_the_cast(config, device, measure):
    only_for(config, "cast-batch")
    measure.compare(look_up(ids_of(config, device).long(), device), reference(config), tolerance=1e-5)


@pytest.mark.dead_end("type-of-the-weights")
def test_type_of_the_weights(config, device):
    only_for(config, "float-ids", "cast-batch", "empty-piece")
    ids = ids_of(config, device)
    look_up(ids, device, ids.dtype)


@pytest.mark.dead_end("smaller-integers")
def test_smaller_integers(config, device):
    only_for(config, "float-ids", "uint8-ids", "empty-piece")
    look_up(ids_of(config, device).short(), device)


@pytest.mark.dead_end("vectors-to-long")
@pytest.mark.fresh
def test_vectors_to_long(config, device, measure, tiny_llama):
    only_for(config, "vectors-for-ids")
    model, vectors = language_model(tiny_llama, device)
    with torch.no_grad():
        expected = tiny_llama(torch.float64).eval()(input_ids=torch.tensor(LISTS[config])).logits
        measure.compare(model(vectors.long()).logits, expected, tolerance=1e-4)
