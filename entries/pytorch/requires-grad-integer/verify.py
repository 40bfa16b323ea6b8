# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A tensor of integers is told to require gradients.

`whole-numbers` writes its start values without a point, `packed-weight` makes a parameter of int8 weights and
`data-replaced` puts them into a layer that is there, `unfreeze-everything` sets the flag on all parameters of a model
with such weights, `token-ids` wants the gradient of a text's ids, and `argmax` trains on predicted classes. A fix is
right if the gradients are those that float64 gives by another way.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.requires(torch=">=2.1")

TOLERANCE = 1e-4
START = [1, -1, 2]


def plain_weight():
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


def codes():
    """int8 weights with one scale."""
    scale = plain_weight().abs().max() / 127
    return (plain_weight() / scale).round().to(torch.int8), scale


class Packed(nn.Module):
    """A layer with int8 weights, which are not trained, and a bias, which is."""

    def __init__(self, wrap):
        super().__init__()
        weight, scale = codes()
        self.weight = wrap(weight)
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, values):
        return functional.linear(values, self.weight.to(values.dtype) * self.scale, self.bias)


def inputs(device):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(device)


def frozen(weight):
    return nn.Parameter(weight, requires_grad=False)


def unfreeze_all(model):
    for parameter in model.parameters():
        parameter.requires_grad = True


def packed_gradient(model, device):
    model(inputs(device)).square().mean().backward()
    return model.bias.grad


def packed_reference():
    """The gradient of the bias, written out in float64."""
    weight, scale = codes()
    output = inputs("cpu").double() @ (weight.double() * scale.double()).T
    return 2 * output.sum(dim=0) / output.numel()


def text_model(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.ModuleDict({"table": nn.Embedding(20, 8), "head": nn.Linear(8, 5)}).to(device, dtype)


def token_ids(device):
    return torch.tensor([[3, 7, 1], [2, 2, 9]], device=device)


def classes(device):
    return torch.tensor([0, 3], device=device)


def scores(model, ids):
    return model["head"](model["table"](ids).mean(dim=1).tanh())


def curve(values):
    return values.square().sum() - values.prod()


def broken(config, device):
    """The program of each cause up to its gradient."""
    if config == "whole-numbers":
        values = torch.tensor(START, device=device, requires_grad=True)
        curve(values).backward()
    elif config == "packed-weight":
        packed_gradient(Packed(nn.Parameter).to(device), device)
    elif config == "data-replaced":
        layer = nn.Linear(8, 4).to(device)
        layer.weight.data = codes()[0].to(device)
    elif config == "unfreeze-everything":
        model = Packed(frozen).to(device)
        unfreeze_all(model)
        packed_gradient(model, device)
    elif config == "token-ids":
        ids = token_ids(device).requires_grad_()
        functional.cross_entropy(scores(text_model(device), ids), classes(device)).backward()
    else:
        predicted = scores(text_model(device), token_ids(device)).argmax(dim=1).requires_grad_()
        (predicted != classes(device)).float().mean().backward()


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(
    params=["whole-numbers", "packed-weight", "data-replaced", "unfreeze-everything", "token-ids", "argmax"]
)
def config(request):
    """Which integers were to have gradients."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        broken(config, device)
    finally:
        measure.recovers(lambda: torch.ones(2, device=device, requires_grad=True).sum().item() == 2)


@pytest.mark.workaround("numbers-with-a-point")
def test_numbers_with_a_point(config, device, measure):
    only_for(config, "whole-numbers")
    values = torch.tensor(START, dtype=torch.float32, device=device, requires_grad=True)
    curve(values).backward()
    a, b, c = (float(number) for number in START)
    wanted = torch.tensor([2 * a - b * c, 2 * b - a * c, 2 * c - a * b], dtype=torch.float64)
    measure.compare(values.grad, wanted, TOLERANCE)


@pytest.mark.workaround("parameter-without-gradient")
def test_parameter_without_gradient(config, device, measure):
    only_for(config, "packed-weight", "data-replaced")
    if config == "data-replaced":
        model = Packed(lambda weight: nn.Linear(8, 4).weight).to(device)
        model.weight.requires_grad_(False)
        model.weight.data = codes()[0].to(device)
    else:
        model = Packed(frozen).to(device)
    assert model.weight.dtype == torch.int8
    measure.compare(packed_gradient(model, device), packed_reference(), TOLERANCE)


@pytest.mark.workaround("unfreeze-floats-only")
def test_unfreeze_floats_only(config, device, measure):
    only_for(config, "unfreeze-everything")
    model = Packed(frozen).to(device)
    for parameter in model.parameters():
        parameter.requires_grad = parameter.is_floating_point()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["bias"]
    measure.compare(packed_gradient(model, device), packed_reference(), TOLERANCE)


@pytest.mark.workaround("gradient-of-the-embeddings")
def test_gradient_of_the_embeddings(config, device, measure):
    only_for(config, "token-ids")
    model, ids = text_model(device), token_ids(device)
    embedded = model["table"](ids).detach().requires_grad_()
    functional.cross_entropy(model["head"](embedded.mean(dim=1).tanh()), classes(device)).backward()
    exact = text_model("cpu", torch.float64)
    chosen = functional.one_hot(token_ids("cpu"), 20).double().requires_grad_()
    mixed = (chosen @ exact["table"].weight).mean(dim=1).tanh()
    functional.cross_entropy(exact["head"](mixed), classes("cpu")).backward()
    measure.compare(embedded.grad @ model["table"].weight.T, chosen.grad, TOLERANCE)


@pytest.mark.workaround("loss-of-the-scores")
def test_loss_of_the_scores(config, device, measure):
    only_for(config, "argmax")
    model = text_model(device)
    functional.cross_entropy(scores(model, token_ids(device)), classes(device)).backward()
    measure.compare(model["head"].bias.grad, scores_reference(), TOLERANCE)


def scores_reference():
    """The gradient of the head's bias under cross entropy, written out in float64."""
    exact = text_model("cpu", torch.float64)
    with torch.no_grad():
        off = scores(exact, token_ids("cpu")).softmax(dim=1) - functional.one_hot(classes("cpu"), 5)
    return off.mean(dim=0)


@pytest.mark.dead_end("grad-mode")
def test_grad_mode(config, device):
    with torch.no_grad():
        broken(config, device)


@pytest.mark.dead_end("cast-afterwards")
def test_cast_afterwards(config, device):
    only_for(config, "whole-numbers")
    curve(torch.tensor(START, device=device, requires_grad=True).float()).backward()


@pytest.mark.dead_end("default-type")
def test_default_type(config, device):
    only_for(config, "whole-numbers")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        broken(config, device)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.dead_end("cast-and-set-the-flag")
def test_cast_and_set_the_flag(config, device, measure):
    only_for(config, "token-ids", "argmax")
    model = text_model(device)
    if config == "token-ids":
        ids = token_ids(device).float().requires_grad_()
        functional.cross_entropy(scores(model, ids), classes(device)).backward()
        return
    predicted = scores(model, token_ids(device)).argmax(dim=1).float().requires_grad_()
    (predicted - classes(device)).abs().mean().backward()
    bias = model["head"].bias
    measure.compare(torch.zeros_like(bias) if bias.grad is None else bias.grad, scores_reference(), TOLERANCE)
