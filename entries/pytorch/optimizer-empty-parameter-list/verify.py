# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""An optimizer that is handed no parameter at all, though the network has some.

`frozen` filters by `requires_grad` after everything was frozen. `layers-in-list` and `parameters-in-list` keep their
weights in a plain list, where the module does not see them. `used-generator` hands over an iterator that something else
has read to its end.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

WIDTH, DEPTH, STEPS = 16, 3, 5


class Layers(nn.Module):
    """A small network whose layers lie in a container of the caller's choice."""

    def __init__(self, container):
        super().__init__()
        self.layers = container([nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])

    def forward(self, inputs):
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs))
        return inputs


class Weights(nn.Module):
    """The same with bare weights."""

    def __init__(self, container):
        super().__init__()
        self.weights = container([nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(DEPTH)])

    def forward(self, inputs):
        for weight in self.weights:
            inputs = torch.tanh(inputs @ weight)
        return inputs


def build(config, registered):
    """The network of a configuration, the same numbers every time, its weights registered or in a plain list."""
    torch.manual_seed(0)
    if config == "parameters-in-list":
        return Weights(nn.ParameterList if registered else list)
    return Layers(nn.ModuleList if registered else list)


def broken(config, device):
    """The network as each cause leaves it, and what its optimizer is handed."""
    model = build(config, registered=not config.endswith("-in-list"))
    for weight in trained(model):
        weight.data = weight.data.to(device)  # `model.to` does not reach a plain list
    parameters = model.parameters()
    if config == "frozen":
        model.requires_grad_(False)
        parameters = filter(lambda parameter: parameter.requires_grad, model.parameters())
    if config == "used-generator":
        assert sum(parameter.numel() for parameter in parameters) > 0
    return model, parameters


def train(model, optimizer):
    """A few steps; returns every weight after them."""
    first = trained(model)[0]
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(2, 32, WIDTH, generator=generator, dtype=torch.float64)
    inputs, targets = inputs.to(first), targets.to(first)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return torch.cat([weight.detach().double().flatten().cpu() for weight in trained(model)])


def trained(model):
    """Every weight that the network computes with, registered or not."""
    if isinstance(model, Weights):
        return list(model.weights)
    return [parameter for layer in model.layers for parameter in layer.parameters()]


def start(config):
    return torch.cat([weight.detach().double().flatten() for weight in trained(build(config, registered=True))])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def wanted(config):
    """How far the same steps move each weight in float64; of the frozen network only the last layer is trained."""
    model = build(config, registered=True).double()
    if config == "frozen":
        model.layers[:-1].requires_grad_(False)
    moved = train(model, sgd([weight for weight in trained(model) if weight.requires_grad])) - start(config)
    assert moved.abs().max() > 1e-3
    return moved


def check(measure, config, weights):
    measure.compare(weights - start(config), wanted(config), tolerance=1e-3)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["frozen", "layers-in-list", "parameters-in-list", "used-generator"])
def config(request):
    """Why the optimizer is handed nothing."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    model, parameters = broken(config, device)
    train(model, sgd(parameters))


@pytest.mark.workaround("register-weights")
def test_register_weights(config, device, measure):
    only_for(config, "layers-in-list", "parameters-in-list")

    def step():
        model = build(config, registered=True).to(device)
        return train(model, sgd(model.parameters()))

    check(measure, config, measure(step))


@pytest.mark.workaround("unfreeze-what-trains")
def test_unfreeze_what_trains(config, device, measure):
    only_for(config, "frozen")

    def step():
        model, _ = broken(config, device)
        model.layers[-1].requires_grad_(True)
        return train(model, sgd([parameter for parameter in model.parameters() if parameter.requires_grad]))

    check(measure, config, measure(step))


@pytest.mark.workaround("parameters-as-list-once")
def test_parameters_as_list_once(config, device, measure):
    only_for(config, "used-generator")

    def step():
        model = build(config, registered=True).to(device)
        parameters = list(model.parameters())
        assert sum(parameter.numel() for parameter in parameters) > 0
        return train(model, sgd(parameters))

    check(measure, config, measure(step))


@pytest.mark.workaround("hand-over-by-hand")
def test_hand_over_by_hand(config, device, measure):
    only_for(config, "layers-in-list", "parameters-in-list")

    def step():
        model, _ = broken(config, device)
        if config == "parameters-in-list":
            return train(model, sgd(model.weights))
        return train(model, sgd(itertools.chain.from_iterable(layer.parameters() for layer in model.layers)))

    check(measure, config, measure(step))


@pytest.mark.dead_end("list-around-it")
def test_list_around_it(config, device):
    model, parameters = broken(config, device)
    train(model, sgd(list(parameters)))


@pytest.mark.dead_end("other-optimizer")
def test_other_optimizer(config, device):
    model, parameters = broken(config, device)
    train(model, torch.optim.AdamW(parameters, lr=0.01))


@pytest.mark.dead_end("dict-around-it")
def test_dict_around_it(config, device, measure):
    """The optimizer accepts an empty group and then trains nothing."""
    model, parameters = broken(config, device)
    check(measure, config, train(model, sgd([{"params": parameters}])))


@pytest.mark.dead_end("dummy-parameter")
def test_dummy_parameter(config, device, measure):
    """The optimizer is content with a parameter that nothing computes with."""
    model, parameters = broken(config, device)
    dummy = nn.Parameter(torch.zeros(1, device=device))
    check(measure, config, train(model, sgd([*parameters, dummy])))


@pytest.mark.dead_end("without-filter")
def test_without_filter(config, device):
    """The optimizer takes frozen parameters, and then there is no gradient to step along."""
    only_for(config, "frozen")
    model, _ = broken(config, device)
    train(model, sgd(model.parameters()))
