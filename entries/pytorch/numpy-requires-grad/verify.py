# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "numpy"]
# ///
"""A tensor that is part of a graph is handed to NumPy.

`prediction` converts what a model in evaluation mode returns, `weights` converts a parameter, `loss-history` averages
the losses of an epoch with NumPy, and `loss-in-numpy` computes the loss itself there, through which gradients are
wanted.
"""

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")


@pytest.fixture(params=["prediction", "weights", "loss-history", "loss-in-numpy"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("the array is wanted for something else here")


def numbers(*shape, seed=1, device="cpu", dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def regression(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(6, 3).to(device, dtype)


def exact(inputs, model):
    """What the linear layer computes, in NumPy and float64, from numbers that went through Python lists."""
    weight, bias = np.array(model.weight.tolist()), np.array(model.bias.tolist())
    return np.array(inputs.tolist()) @ weight.T + bias


def squared_error(inputs, targets, model):
    return float(np.square(exact(inputs, model) - np.array(targets.tolist())).mean())


def prediction(device, convert):
    model, inputs = regression(device).eval(), numbers(8, 6, device=device)
    return torch.as_tensor(convert(model(inputs))), torch.as_tensor(exact(inputs, model))


def weights(device, convert):
    model = regression(device)
    return torch.as_tensor(convert(model.weight)), torch.tensor(model.weight.tolist(), dtype=torch.float64)


def loss_history(device, keep):
    """The mean loss of some steps of training, from what `keep` made of each."""
    model = regression(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history, expected = [], []
    for seed in range(3):
        inputs, targets = numbers(8, 6, seed=seed, device=device), numbers(8, 3, seed=9, device=device)
        expected.append(squared_error(inputs, targets, model))
        loss = (model(inputs) - targets).square().mean()
        history.append(keep(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(np.mean(history)), sum(expected) / len(expected)


def plain(tensor):
    return tensor.cpu().numpy()


def residual(values):
    """A part of the loss that exists in NumPy only."""
    return np.tanh(values) ** 2


class Residual(torch.autograd.Function):
    """The same as a function of torch, with its derivative written down."""

    @staticmethod
    def forward(ctx, values):
        array = values.detach().cpu().numpy()
        ctx.save_for_backward(values)
        return torch.from_numpy(residual(array)).to(values.device)

    @staticmethod
    def backward(ctx, gradient):
        (values,) = ctx.saved_tensors
        array = np.tanh(values.detach().cpu().numpy())
        return gradient * torch.from_numpy(2 * array * (1 - array**2)).to(values.device)


def fit(device, loss_of):
    model = regression(device)
    loss_of(model(numbers(8, 6, device=device))).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def fit_reference():
    model, inputs = regression("cpu", torch.float64), numbers(8, 6, dtype=torch.float64)
    with torch.no_grad():
        array = torch.tanh(model(inputs))
        slope = 2 * array * (1 - array.square()) / array.numel()
        return [slope.T @ inputs, slope.sum(dim=0)]


@pytest.mark.reproduces
def test_reproduces(config, device):
    if config == "prediction":
        prediction(device, plain)
    elif config == "weights":
        weights(device, lambda weight: np.asarray(weight.cpu()))
    elif config == "loss-history":
        loss_history(device, lambda loss: loss.cpu())
    else:
        fit(device, lambda output: torch.from_numpy(residual(plain(output))).mean())


@pytest.mark.workaround("detach")
def test_detach(config, device, measure):
    only_for(config, "prediction", "weights", "loss-history")
    program = {"prediction": prediction, "weights": weights, "loss-history": loss_history}[config]
    result, reference = measure(lambda: program(device, lambda tensor: tensor.detach().cpu().numpy()))
    measure.compare(result, reference, tolerance=1e-5)


@pytest.mark.workaround("no-graph")
def test_no_graph(config, device, measure):
    only_for(config, "prediction")

    def step():
        with torch.inference_mode():
            return prediction(device, plain)

    measure.compare(*measure(step), tolerance=1e-5)


@pytest.mark.workaround("item")
def test_item(config, device, measure):
    only_for(config, "loss-history")
    measure.compare(*measure(lambda: loss_history(device, lambda loss: loss.item())), tolerance=1e-5)


@pytest.mark.workaround("force")
def test_force(config, device, measure):
    only_for(config, "prediction", "weights")
    program = prediction if config == "prediction" else weights
    measure.compare(*measure(lambda: program(device, lambda tensor: tensor.numpy(force=True))), tolerance=1e-5)


@pytest.mark.workaround("stay-in-torch")
def test_stay_in_torch(config, device, measure):
    only_for(config, "loss-in-numpy")
    result = measure(lambda: fit(device, lambda output: torch.tanh(output).square().mean()))
    measure.compare(result, fit_reference(), tolerance=1e-4)


@pytest.mark.workaround("own-derivative")
def test_own_derivative(config, device, measure):
    only_for(config, "loss-in-numpy")
    result = measure(lambda: fit(device, lambda output: Residual.apply(output).mean()))
    measure.compare(result, fit_reference(), tolerance=1e-4)


@pytest.mark.dead_end("eval-mode")
def test_eval_mode(config, device):
    only_for(config, "prediction", "weights")
    model = regression(device).train(False)
    plain(model(numbers(8, 6, device=device)) if config == "prediction" else model.weight)


@pytest.mark.dead_end("cpu-or-clone")
def test_cpu_or_clone(config, device):
    only_for(config, "prediction", "weights", "loss-history")
    program = {"prediction": prediction, "weights": weights, "loss-history": loss_history}[config]
    program(device, lambda tensor: tensor.clone().cpu().numpy())


@pytest.mark.dead_end("detach-in-the-loss")
def test_detach_in_the_loss(config, device, measure):
    only_for(config, "loss-in-numpy")
    result = fit(device, lambda output: torch.from_numpy(residual(plain(output.detach()))).mean())
    measure.compare(result, fit_reference(), tolerance=1e-4)


@pytest.mark.dead_end("mark-the-result")
def test_mark_the_result(config, device, measure):
    only_for(config, "loss-in-numpy")
    result = fit(device, lambda output: torch.tensor(residual(plain(output.detach())), requires_grad=True).mean())
    measure.compare(result, fit_reference(), tolerance=1e-4)
