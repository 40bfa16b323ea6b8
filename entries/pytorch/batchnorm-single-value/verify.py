# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A norm is to compute a variance from a single value.

`last-batch` trains on nine samples in batches of four, `predicting` forgets `eval()`, and `one-per-device` is a
segmentation network in training with one image, whose image-level branch pools to 1x1 before a batch norm. In
`tiny-map` an instance norm meets feature maps that strides have brought down to 1x1.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

pytestmark = pytest.mark.requires(torch=">=2.1")

BATCH, CHANNELS = 4, 8


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions on a GPU in full float32, since results are compared with float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["last-batch", "predicting", "one-per-device", "tiny-map"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("a single value comes about otherwise here")


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Classifier(nn.Module):
    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(6, CHANNELS), norm(CHANNELS), nn.Linear(CHANNELS, 3)
        settle(self.norm)

    def forward(self, values):
        return self.head(self.norm(self.body(values)).relu())


class Segmenter(nn.Module):
    """A map of features, and its mean over the image added everywhere."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Conv2d(3, CHANNELS, 3), norm(CHANNELS), nn.Conv2d(CHANNELS, 2, 1)
        settle(self.norm)

    def forward(self, images):
        hidden = self.body(images)
        return self.head(hidden + self.norm(F.adaptive_avg_pool2d(hidden, 1)).relu())


class Encoder(nn.Module):
    """A convolution with strides and an instance norm; made for images of 12x12."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm = nn.Conv2d(3, 4, 4, stride=4, bias=False), nn.InstanceNorm2d(4, affine=True)

    def forward(self, images):
        return self.norm(self.body(images))


def settle(norm):
    """Running statistics as after some training."""
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean.copy_(random(CHANNELS, seed=2))
        norm.running_var.copy_(random(CHANNELS, seed=3).square() + 0.5)


def network(config):
    return {"one-per-device": Segmenter, "tiny-map": Encoder}.get(config, Classifier)()


def inputs_for(config, samples=1):
    if config == "tiny-map":
        return random(BATCH, 3, 4, 4)
    return random(samples, 3, 5, 5) if config == "one-per-device" else random(samples, 6)


def step(model, values):
    model.zero_grad()
    outputs = model(values)
    F.softplus(outputs).mean().backward()
    return [outputs.detach(), *(p.grad for p in model.parameters())]


def run_epoch(model, device, **options):
    """One epoch over nine samples; the weights afterwards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(list(random(9, 6)), batch_size=BATCH, **options):
        step(model, batch.to(device))
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def broken(config, device, **options):
    model = network(config).to(device)
    if config == "last-batch":
        return run_epoch(model, device, **options)
    if config == "one-per-device":
        batches = DataLoader(list(inputs_for(config, 3)), batch_size=1, **options)
        return [step(model, batch.to(device)) for batch in batches]
    return model(inputs_for(config).to(device))


def normalised(values, mean, variance, p):
    shape = (-1,) + (1,) * (values.ndim - 2)
    scaled = (values - mean) / (variance + 1e-5).sqrt()
    return scaled * p["norm.weight"].view(shape) + p["norm.bias"].view(shape)


def by_batch(hidden, p):
    axes = [axis for axis in range(hidden.ndim) if axis != 1]
    return normalised(hidden, hidden.mean(axes, keepdim=True), hidden.var(axes, correction=0, keepdim=True), p)


def by_running(hidden, p):
    shape = (-1,) + (1,) * (hidden.ndim - 2)
    mean, variance = random(CHANNELS, seed=2).double(), random(CHANNELS, seed=3).double().square() + 0.5
    return normalised(hidden, mean.view(shape), variance.view(shape), p)


def by_groups(hidden, p):
    parts = hidden.unflatten(1, (2, -1))
    axes = list(range(2, parts.ndim))
    scaled = (parts - parts.mean(axes, keepdim=True)) / (parts.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
    shape = (-1,) + (1,) * (hidden.ndim - 2)
    return scaled.flatten(1, 2) * p["norm.weight"].view(shape) + p["norm.bias"].view(shape)


def by_sample(hidden, p):
    return normalised(hidden, hidden.mean((2, 3), keepdim=True), hidden.var((2, 3), correction=0, keepdim=True), p)


def exact(model, values, norm):
    """Outputs and gradients in float64, with the norm written out."""
    p = {name: value.detach().double().cpu().requires_grad_() for name, value in model.named_parameters()}
    outputs = exact_forward(model, p, values.double(), norm)
    grads = torch.autograd.grad(F.softplus(outputs).mean(), list(p.values()))
    return [outputs.detach(), *grads]


def exact_forward(model, p, values, norm):
    if isinstance(model, Classifier):
        hidden = norm(values @ p["body.weight"].T + p["body.bias"], p).clamp(min=0)
        return hidden @ p["head.weight"].T + p["head.bias"]
    if isinstance(model, Encoder):
        return norm(F.conv2d(values, p["body.weight"], stride=4), p)
    hidden = F.conv2d(values, p["body.weight"], p["body.bias"])
    pooled = norm(hidden.mean((2, 3), keepdim=True), p).clamp(min=0)
    outputs = torch.einsum("bchw,oc->bohw", hidden + pooled, p["head.weight"].flatten(1))
    return outputs + p["head.bias"][:, None, None]


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("drop-the-last-batch")
def test_drop_the_last_batch(config, device, measure):
    only_for(config, "last-batch")
    result = measure(lambda: run_epoch(network(config).to(device), device, drop_last=True))
    model = network(config)
    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    for start in (0, BATCH):
        values = random(9, 6)[start : start + BATCH].double()
        loss = F.softplus(exact_forward(model, p, values, by_batch)).mean()
        grads = torch.autograd.grad(loss, list(p.values()))
        p = {name: (p[name] - 0.1 * grad).detach().requires_grad_() for name, grad in zip(p, grads, strict=True)}
    measure.compare(result, list(p.values()), tolerance=1e-4)


@pytest.mark.workaround("eval-mode")
def test_eval_mode(config, device, measure):
    only_for(config, "predicting")
    model = network(config).eval().to(device)
    with torch.no_grad():
        result = measure(lambda: model(inputs_for(config).to(device)))
    measure.compare(result, exact(model, inputs_for(config), by_running)[0], tolerance=1e-4)


@pytest.mark.workaround("two-per-device")
def test_two_per_device(config, device, measure):
    only_for(config, "one-per-device")
    values = inputs_for(config, 2)
    result = measure(lambda: step(network(config).to(device), values.to(device)))
    measure.compare(result, exact(network(config), values, by_batch), tolerance=1e-2)


@pytest.mark.workaround("freeze-the-norm")
def test_freeze_the_norm(config, device, measure):
    only_for(config, "one-per-device")

    def frozen():
        model = network(config).to(device).train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return step(model, inputs_for(config).to(device))

    measure.compare(measure(frozen), exact(network(config), inputs_for(config), by_running), tolerance=1e-4)


@pytest.mark.workaround("group-norm")
def test_group_norm(config, device, measure):
    only_for(config, "one-per-device", "last-batch")
    norm = lambda channels: nn.GroupNorm(2, channels)  # noqa: E731
    kind = Segmenter if config == "one-per-device" else Classifier
    values = inputs_for(config)
    result = measure(lambda: step(kind(norm).to(device), values.to(device)))
    measure.compare(result, exact(kind(norm), values, by_groups), tolerance=1e-4)


@pytest.mark.workaround("larger-images")
def test_larger_images(config, device, measure):
    only_for(config, "tiny-map")
    images = random(BATCH, 3, 12, 12)
    result = measure(lambda: step(network(config).to(device), images.to(device)))
    measure.compare(result, exact(network(config), images, by_sample), tolerance=1e-4)


@pytest.mark.dead_end("drop-last-with-batches-of-one")
def test_drop_last_with_batches_of_one(config, device):
    only_for(config, "one-per-device")
    broken(config, device, drop_last=True)


@pytest.mark.dead_end("repeat-the-sample")
def test_repeat_the_sample(config, device, measure):
    only_for(config, "last-batch", "predicting", "one-per-device")
    values = inputs_for(config)
    result = network(config).to(device)(torch.cat([values, values]).to(device))[:1]
    measure.compare(result, exact(network(config), values, by_running)[0], tolerance=1e-2)


@pytest.mark.dead_end("sync-batch-norm-in-one-process")
def test_sync_batch_norm_in_one_process(config, device):
    only_for(config, "last-batch", "one-per-device")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network(config)).to(device)
    step(model, inputs_for(config).to(device))


@pytest.mark.dead_end("without-running-statistics")
def test_without_running_statistics(config, device):
    only_for(config, "predicting")
    norm = lambda channels: nn.BatchNorm1d(channels, track_running_stats=False)  # noqa: E731
    Classifier(norm).eval().to(device)(inputs_for(config).to(device))
