# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "numpy"]
# ///
"""Class numbers of another type than int64 as the target of a cross entropy.

`int32-labels` come from an int32 array and mark ignored samples with -100, `float-labels` are a column of a table of
floats, `uint8-mask` is a batch of segmentation masks as image files give them, and `binary-one-score` has a model with
one score for each sample and labels 0.0 and 1.0, which belongs to another loss.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.requires(torch=">=2.1")

SAMPLES, CLASSES, IGNORED = 12, 4, -100


@pytest.fixture(params=["int32-labels", "float-labels", "uint8-mask", "binary-one-score"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("the target has another type or meaning here")


def numbers(*shape, seed=1, device="cpu", dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def arrays(config):
    """Targets as a dataset holds them."""
    if config == "uint8-mask":
        return (np.arange(2 * 5 * 6).reshape(2, 5, 6) * 7 % CLASSES).astype(np.uint8)
    if config == "binary-one-score":
        return (np.arange(SAMPLES) % 3 == 0).astype(np.float32)
    labels = np.arange(SAMPLES, dtype=np.int32) * 5 % CLASSES
    if config == "int32-labels":
        labels[::4] = IGNORED
        return labels
    table = np.zeros((SAMPLES, 3), dtype=np.float32)
    table[:, 2] = labels
    return table[:, 2]


def targets(config, device):
    return torch.from_numpy(arrays(config)).to(device)


def model_of(config, device, dtype=torch.float32):
    torch.manual_seed(0)
    if config == "uint8-mask":
        return nn.Conv2d(3, CLASSES, kernel_size=1).to(device, dtype)
    return nn.Linear(8, 1 if config == "binary-one-score" else CLASSES).to(device, dtype)


def inputs(config, device, dtype=torch.float32):
    shape = (2, 3, 5, 6) if config == "uint8-mask" else (SAMPLES, 8)
    return numbers(*shape, device=device, dtype=dtype)


def gradients(config, device, target, loss=F.cross_entropy, convert=lambda scores: scores):
    model = model_of(config, device)
    loss(convert(model(inputs(config, device))), target).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def reference(config):
    """The formulas for the gradients in float64; pixels are samples here."""
    dtype = torch.float64
    model, values = model_of(config, "cpu", dtype), inputs(config, "cpu", dtype)
    if config == "uint8-mask":
        values = values.movedim(1, -1).reshape(-1, 3)
    labels = torch.tensor(arrays(config).astype(int).flatten().tolist())
    with torch.no_grad():
        scores = values @ model.weight.flatten(1).T + model.bias
        if config == "binary-one-score":
            error = (scores.sigmoid() - labels.unsqueeze(1)) / SAMPLES
        else:
            counted = labels != IGNORED
            wanted = F.one_hot(labels.clamp(min=0), CLASSES)
            error = (scores.softmax(dim=1) - wanted) * counted.unsqueeze(1) / counted.sum()
        return [(error.T @ values).reshape(model.weight.shape), error.sum(dim=0)]


@pytest.mark.reproduces
def test_reproduces(config, device):
    gradients(config, device, targets(config, device))


@pytest.mark.workaround("long")
def test_long(config, device, measure):
    only_for(config, "int32-labels", "float-labels", "uint8-mask")
    result = measure(lambda: gradients(config, device, targets(config, device).long()))
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.workaround("long-in-the-dataset")
def test_long_in_the_dataset(config, device, measure):
    only_for(config, "int32-labels", "float-labels", "uint8-mask")

    def step():
        dataset = torch.utils.data.TensorDataset(
            inputs(config, "cpu"), torch.from_numpy(arrays(config).astype(np.int64))
        )
        _, target = next(iter(torch.utils.data.DataLoader(dataset, batch_size=len(dataset))))
        return gradients(config, device, target.to(device))

    measure.compare(measure(step), reference(config), tolerance=1e-4)


@pytest.mark.workaround("binary-loss")
def test_binary_loss(config, device, measure):
    only_for(config, "binary-one-score")

    def loss(scores, target):
        return F.binary_cross_entropy_with_logits(scores.squeeze(1), target)

    result = measure(lambda: gradients(config, device, targets(config, device), loss))
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.dead_end("another-small-type")
def test_another_small_type(config, device):
    only_for(config, "float-labels", "uint8-mask")
    gradients(config, device, targets(config, device).int())


@pytest.mark.dead_end("byte")
@pytest.mark.fresh
def test_byte(config, device, measure):
    only_for(config, "int32-labels")
    measure.compare(gradients(config, device, targets(config, device).byte()), reference(config), tolerance=1e-4)


@pytest.mark.dead_end("cast-the-scores")
def test_cast_the_scores(config, device, measure):
    only_for(config, "int32-labels", "float-labels", "uint8-mask")
    target = targets(config, device)
    result = gradients(config, device, target, convert=lambda scores: scores.to(target.dtype))
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.dead_end("float-target")
def test_float_target(config, device):
    only_for(config, "int32-labels", "uint8-mask")
    gradients(config, device, targets(config, device).float())


@pytest.mark.dead_end("long-for-one-score")
@pytest.mark.fresh
def test_long_for_one_score(config, device, measure):
    only_for(config, "binary-one-score")
    result = gradients(config, device, targets(config, device).long())
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.dead_end("score-dimension-added")
def test_score_dimension_added(config, device, measure):
    only_for(config, "binary-one-score")
    result = gradients(config, device, targets(config, device).unsqueeze(1))
    measure.compare(result, reference(config), tolerance=1e-4)
