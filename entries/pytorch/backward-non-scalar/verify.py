# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A backward pass is started from a tensor of more than one number, or from a complex one.

`per-sample` weights the losses of single samples (`reduction="none"`), `replicas` gets one loss from each replica of a
model that computes its loss itself, as `nn.DataParallel` returns it (replicas are run one after the other here, so no
second GPU is needed), `network-output` wants the derivative of a network by its input, and `complex-loss` adds up
products of complex numbers.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.requires(torch=">=2.1")

SAMPLES, CLASSES, REPLICAS = 12, 5, 3


@pytest.fixture(params=["per-sample", "replicas", "network-output", "complex-loss"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("this backward pass starts from something else")


def numbers(*shape, seed=1, device="cpu", dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def labels(device="cpu"):
    return (torch.arange(SAMPLES) % CLASSES).to(device)


def weights(device="cpu", dtype=torch.float32):
    return torch.linspace(0.1, 2, SAMPLES, device=device, dtype=dtype)


class Classifier(nn.Module):
    """Returns its loss, like many models that are wrapped in `nn.DataParallel`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, CLASSES)

    def forward(self, inputs, targets=None, reduction="mean"):
        scores = self.layer(inputs)
        return scores if targets is None else F.cross_entropy(scores, targets, reduction=reduction)


def classifier(device):
    torch.manual_seed(0)
    return Classifier().to(device)


def replicated(model, *batch):
    """What `nn.DataParallel` returns: results along the batch joined, scalars one after the other in a vector."""
    results = [model(*part) for part in zip(*(tensor.chunk(REPLICAS) for tensor in batch), strict=True)]
    return torch.stack(results) if results[0].dim() == 0 else torch.cat(results)


def losses(config, model, device):
    inputs, targets = numbers(SAMPLES, 8, device=device), labels(device)
    if config == "replicas":
        return replicated(model, inputs, targets)
    return weights(device) * model(inputs, targets, reduction="none")


def train(config, device, start):
    """Gradients of the model after `start` has begun the backward pass from the losses."""
    model = classifier(device)
    start(losses(config, model, device))
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def train_reference(config):
    """The formula for the gradient of a softmax classifier, in float64."""
    layer, inputs = classifier("cpu").layer.double(), numbers(SAMPLES, 8, dtype=torch.float64)
    share = torch.ones(SAMPLES).double() if config == "replicas" else weights(dtype=torch.float64)
    with torch.no_grad():
        error = layer(inputs).softmax(dim=1) - F.one_hot(labels(), CLASSES)
        error = error * share.unsqueeze(1) / (SAMPLES if config == "replicas" else share.sum())
        return [error.T @ inputs, error.sum(dim=0)]


def field(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).to(device, dtype)


def slope(device, **options):
    """Derivative of the field by its coordinates, at each of several points."""
    points = numbers(SAMPLES, 2, device=device).requires_grad_()
    (result,) = torch.autograd.grad(field(device)(points), points, **options)
    return result


def slope_with_ones(device):
    points = numbers(SAMPLES, 2, device=device).requires_grad_()
    values = field(device)(points)
    (result,) = torch.autograd.grad(values, points, grad_outputs=torch.ones_like(values), create_graph=True)
    return result.detach()


def slope_reference():
    first, _, second = field("cpu", torch.float64)
    with torch.no_grad():
        hidden = torch.tanh(first(numbers(SAMPLES, 2, dtype=torch.float64)))
        return (1 - hidden.square()) * second.weight[0] @ first.weight


def spectral(device, reduce):
    signal = numbers(SAMPLES, device=device).requires_grad_()
    error = torch.fft.fft(signal - numbers(SAMPLES, seed=2, device=device))
    reduce(error).backward()
    return signal.grad


def spectral_reference():
    """By Parseval's theorem the squares of the spectrum add up to those of the signal, times its length."""
    return 2 * SAMPLES * (numbers(SAMPLES, dtype=torch.float64) - numbers(SAMPLES, seed=2, dtype=torch.float64))


@pytest.mark.reproduces
def test_reproduces(config, device):
    if config == "network-output":
        slope(device)
    elif config == "complex-loss":
        spectral(device, lambda error: (error * error.conj()).sum())
    else:
        train(config, device, lambda loss: loss.backward())


@pytest.mark.workaround("reduce")
def test_reduce(config, device, measure):
    only_for(config, "per-sample", "replicas")
    if config == "replicas":
        result = measure(lambda: train(config, device, lambda loss: loss.mean().backward()))
    else:
        total = weights(device).sum()
        result = measure(lambda: train(config, device, lambda loss: (loss.sum() / total).backward()))
    measure.compare(result, train_reference(config), tolerance=1e-4)


@pytest.mark.workaround("loss-outside-the-wrapper")
def test_loss_outside_the_wrapper(config, device, measure):
    only_for(config, "replicas")
    model = classifier(device)

    def step():
        model.zero_grad()
        scores = replicated(model, numbers(SAMPLES, 8, device=device))
        F.cross_entropy(scores, labels(device)).backward()
        return [p.grad for p in model.parameters()]

    measure.compare(measure(step), train_reference(config), tolerance=1e-4)


@pytest.mark.workaround("grad-outputs")
def test_grad_outputs(config, device, measure):
    only_for(config, "network-output", "per-sample")
    if config == "network-output":
        measure.compare(measure(lambda: slope_with_ones(device)), slope_reference(), tolerance=1e-4)
    else:
        share = torch.full((SAMPLES,), 1 / weights().sum().item(), device=device)
        result = measure(lambda: train(config, device, lambda loss: loss.backward(gradient=share)))
        measure.compare(result, train_reference(config), tolerance=1e-4)


@pytest.mark.workaround("real-loss")
def test_real_loss(config, device, measure):
    only_for(config, "complex-loss")
    result = measure(lambda: spectral(device, lambda error: error.abs().square().sum()))
    measure.compare(result, spectral_reference(), tolerance=1e-4)


@pytest.mark.dead_end("ones-for-a-mean")
def test_ones_for_a_mean(config, device, measure):
    only_for(config, "per-sample", "replicas")
    result = train(config, device, lambda loss: loss.backward(torch.ones_like(loss)))
    measure.compare(result, train_reference(config), tolerance=1e-4)


@pytest.mark.dead_end("scalar-gradient")
def test_scalar_gradient(config, device, measure):
    only_for(config, "per-sample", "replicas", "network-output")
    one = torch.tensor(1.0, device=device)
    if config == "network-output":
        measure.compare(slope(device, grad_outputs=one), slope_reference(), tolerance=1e-4)
    else:
        result = train(config, device, lambda loss: loss.backward(one))
        measure.compare(result, train_reference(config), tolerance=1e-4)


@pytest.mark.dead_end("first-element")
def test_first_element(config, device, measure):
    only_for(config, "per-sample", "replicas")
    result = train(config, device, lambda loss: loss[0].backward())
    measure.compare(result, train_reference(config), tolerance=1e-4)


@pytest.mark.dead_end("new-tensor")
def test_new_tensor(config, device, measure):
    only_for(config, "per-sample", "replicas")

    def start(loss):
        torch.tensor(loss.mean().item(), device=device, requires_grad=True).backward()

    measure.compare(train(config, device, start), train_reference(config), tolerance=1e-4)


@pytest.mark.dead_end("retain-graph")
def test_retain_graph(config, device):
    if config == "network-output":
        slope(device, retain_graph=True)
    elif config == "complex-loss":
        spectral(device, lambda error: (error * error.conj()).sum().squeeze())
    else:
        train(config, device, lambda loss: loss.squeeze().backward(retain_graph=True))
