# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "numpy", "torch>=2.1"]
# ///
"""A loss is given a prediction and a target of different types.

`float64-target` and `integer-labels` bring their targets from NumPy and from a list, `squared-error` is the first of
them with the loss that raised it most until it learned to promote, `float64-prediction` multiplies the output of the
model by a NumPy array, and in `bfloat16-prediction` the model ran under autocast and the loss does not. A fix is
right if the gradients of the weights are those of the same step in float64.
"""

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.requires(torch=">=2.1")

SQUARES = ("float64-target", "float64-prediction", "squared-error")
BINARY = ("integer-labels", "bfloat16-prediction")


def arrays():
    """Inputs, targets between 0 and 1, and a factor for each column, as NumPy makes them: float64."""
    source = numpy.random.default_rng(0)
    return source.normal(size=(16, 8)), source.uniform(size=(16, 3)), source.uniform(1, 2, size=3)


def labels():
    return [[row % 2, row % 3 == 0, row % 5 == 0] for row in range(16)]


def build(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).to(device, dtype)


def no_cast(tensor):
    return tensor


def predictions(config, model, device, as_tensor=torch.from_numpy, autocast=True, activate=torch.sigmoid):
    """What goes into the loss: for the binary ones, probabilities."""
    values, _, factor = arrays()
    values = torch.as_tensor(values, dtype=model[0].weight.dtype, device=device)
    if config == "bfloat16-prediction":
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return activate(model(values))
    result = model(values)
    if config == "float64-prediction":
        return result * as_tensor(factor).to(device)
    return activate(result) if config == "integer-labels" else result


def targets(config, device, as_tensor=torch.from_numpy):
    if config == "integer-labels":
        return torch.tensor(labels(), device=device).long()
    target = as_tensor(arrays()[1]).to(device)
    return target.float() if config in ("float64-prediction", "bfloat16-prediction") else target


def loss_of(config):
    if config == "squared-error":
        return functional.mse_loss
    return functional.huber_loss if config in SQUARES else functional.binary_cross_entropy


def gradients(model, loss):
    loss.backward()
    return [p.grad for p in model.parameters()]


def reference(config):
    """The same step in float64 from the start, with losses written out."""
    model = build("cpu", torch.float64)
    predicted = predictions(config, model, "cpu", autocast=False)
    target = targets(config, "cpu").double()
    if config == "bfloat16-prediction" or config == "float64-prediction":
        target = target.float().double()
    if config == "squared-error":
        loss = (predicted - target).square().mean()
    elif config in SQUARES:
        off = (predicted - target).abs()
        loss = torch.where(off < 1, off.square() / 2, off - 0.5).mean()
    else:
        loss = -(target * predicted.log() + (1 - target) * (1 - predicted).log()).mean()
    return gradients(model, loss)


def tolerance(config):
    return 0.05 if config == "bfloat16-prediction" else 1e-3


def check(measure, config, device, step):
    """`step(model)` gives the loss."""

    def trained():
        model = build(device)
        return gradients(model, step(model))

    measure.compare(measure(trained), reference(config), tolerance(config))


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(
    params=[
        "float64-target",
        "float64-prediction",
        pytest.param("squared-error", marks=pytest.mark.requires(torch=">=2.1,<2.11")),
        *BINARY,
    ]
)
def config(request):
    """Which side has another type, and why."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    model = build(device)
    try:
        loss_of(config)(predictions(config, model, device), targets(config, device)).backward()
    finally:
        measure.recovers(lambda: torch.ones(2, device=device).sum().item() == 2)


@pytest.mark.workaround("cast-the-target")
def test_cast_the_target(config, device, measure):
    only_for(config, "float64-target", "squared-error", "integer-labels")

    def step(model):
        predicted, target = predictions(config, model, device), targets(config, device)
        return loss_of(config)(predicted, target.to(predicted.dtype))

    check(measure, config, device, step)


@pytest.mark.workaround("float32-from-numpy")
def test_float32_from_numpy(config, device, measure):
    only_for(config, *SQUARES)

    def float32(array):
        return torch.as_tensor(array, dtype=torch.float32)

    def step(model):
        return loss_of(config)(predictions(config, model, device, float32), targets(config, device, float32))

    check(measure, config, device, step)


@pytest.mark.workaround("loss-in-float32")
def test_loss_in_float32(config, device, measure):
    def step(model):
        return loss_of(config)(predictions(config, model, device).float(), targets(config, device).float())

    check(measure, config, device, step)


@pytest.mark.workaround("logits-loss")
def test_logits_loss(config, device, measure):
    only_for(config, *BINARY)

    def step(model):
        logits = predictions(config, model, device, activate=no_cast)
        with torch.autocast(device, torch.bfloat16, enabled=config == "bfloat16-prediction"):
            return functional.binary_cross_entropy_with_logits(logits, targets(config, device).float())

    check(measure, config, device, step)


@pytest.mark.workaround("promoting-loss")
def test_promoting_loss(config, device, measure):
    only_for(config, "float64-target", "float64-prediction")

    def step(model):
        predicted, target = predictions(config, model, device), targets(config, device)
        return functional.smooth_l1_loss(predicted, target, beta=1.0)

    check(measure, config, device, step)


@pytest.mark.dead_end("cast-the-loss")
def test_cast_the_loss(config, device):
    model = build(device)
    loss = loss_of(config)(predictions(config, model, device), targets(config, device))
    loss.float().backward()


@pytest.mark.dead_end("default-type")
def test_default_type(config, device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        model = build(device)
        loss_of(config)(predictions(config, model, device), targets(config, device)).backward()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.dead_end("cast-the-model")
def test_cast_the_model(config, device):
    model = build(device).float()
    loss_of(config)(predictions(config, model, device), targets(config, device)).backward()


@pytest.mark.dead_end("logits-loss-with-integers")
def test_logits_loss_with_integers(config, device):
    only_for(config, "integer-labels")
    logits = predictions(config, build(device), device, activate=no_cast)
    functional.binary_cross_entropy_with_logits(logits, targets(config, device)).backward()
