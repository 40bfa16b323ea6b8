# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A classification loss gets more or fewer rows of scores than it gets targets.

`folded-batch` flattens feature maps with a wrong number, so that pieces of images become rows, and `per-position` has
scores for every token and one label for each text. In `one-hot` the targets are flattened vectors. `prefix` puts
learned tokens in front of a language model's input, and `answer-only` has labels for the answer alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.requires(torch=">=2.1")

BATCH, LENGTH, PREFIX, ANSWER = 4, 7, 3, 2
CLASSES = 5


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions on a GPU in full float32, since results are compared with float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["folded-batch", "per-position", "one-hot", "prefix", "answer-only"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("the numbers differ for another reason here")


def generator():
    return torch.Generator().manual_seed(1)


def data(config, samples=BATCH):
    """Inputs, and targets as a data set would have them."""
    if config == "folded-batch":
        inputs, shape = torch.randn(samples, 3, 8, 8, generator=generator()), (samples,)
    elif config == "one-hot":
        inputs, shape = torch.randn(samples, 6, generator=generator()), (samples,)
    else:
        inputs = torch.randint(20, (samples, LENGTH), generator=generator())
        shape = {"per-position": (samples,), "prefix": (samples, LENGTH), "answer-only": (samples, ANSWER)}[config]
    targets = torch.randint(CLASSES, shape, generator=generator())
    return inputs, F.one_hot(targets, CLASSES) if config == "one-hot" else targets


class Images(nn.Module):
    def __init__(self, features=16, flatten=lambda hidden: hidden.view(-1, 16)):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(features, CLASSES)
        self.flatten = flatten

    def forward(self, images):
        return self.head(self.flatten(F.max_pool2d(self.body(images).relu(), 2)))


class Texts(nn.Module):
    """Scores for each position; with a prefix there are more positions than tokens."""

    def __init__(self, prefix=0):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, CLASSES)
        self.prefix = nn.Parameter(torch.randn(prefix, 8)) if prefix else None

    def forward(self, ids):
        hidden = self.tokens(ids)
        if self.prefix is not None:
            hidden = torch.cat([self.prefix.expand(len(ids), -1, -1), hidden], 1)
        return self.head(hidden.cumsum(1))


def network(config):
    if config == "folded-batch":
        return Images()
    if config == "one-hot":
        torch.manual_seed(0)
        return nn.Linear(6, CLASSES)
    return Texts(PREFIX if config == "prefix" else 0)


def shifted(scores, labels):
    """The loss of a language model: each position is scored on the next label."""
    return scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def rows(config, scores, targets):
    """What the broken programs hand to the loss."""
    if config == "per-position":
        return scores.flatten(0, 1), targets
    if config == "one-hot":
        return scores, targets.view(-1)
    if config in ("prefix", "answer-only"):
        return shifted(scores, targets)
    return scores, targets


def broken(config, device, inputs, targets):
    scores = network(config).to(device)(inputs.to(device))
    return F.cross_entropy(*rows(config, scores, targets.to(device)))


def step(model, loss_of, inputs):
    model.zero_grad()
    loss = loss_of(model(inputs))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def check(device, measure, model, loss_of, inputs, pairs):
    """Against a sum in float64 over `pairs(scores)`: one row of scores and its class each."""
    model = model.to(device)
    result = measure(lambda: step(model, loss_of, inputs.to(device)))
    measure.compare(result, by_pairs(model, inputs, pairs), tolerance=1e-4)


def by_pairs(model, inputs, pairs):
    def mean_of_pairs(scores):
        terms = [row.logsumexp(0) - row[target] for row, target in pairs(scores)]
        return sum(terms) / len(terms)

    exact = type(model)(6, CLASSES) if isinstance(model, nn.Linear) else type(model)(**arguments_of(model))
    exact = exact.double()
    exact.load_state_dict({name: value.detach().double().cpu() for name, value in model.state_dict().items()})
    return step(exact, mean_of_pairs, inputs.double() if inputs.is_floating_point() else inputs)


def arguments_of(model):
    if isinstance(model, Images):
        return {"features": model.head.in_features, "flatten": lambda hidden: hidden.reshape(len(hidden), -1)}
    return {"prefix": 0 if model.prefix is None else len(model.prefix)}


def next_tokens(labels, first):
    """Pairs of a position and the label after it, from the label `first` on; position `t` holds the token `t`."""

    def pairs(scores):
        offset = scores.shape[1] - labels.shape[1]
        return [
            (scores[sample, offset + place - 1], int(labels[sample, place]))
            for sample in range(len(labels))
            for place in range(first, labels.shape[1])
        ]

    return pairs


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device, *data(config))


@pytest.mark.workaround("flatten-from-dimension-1")
def test_flatten_from_dimension_1(config, device, measure):
    only_for(config, "folded-batch")
    inputs, targets = data(config)
    model = Images(4 * 4 * 4, lambda hidden: torch.flatten(hidden, 1))
    wanted = targets.to(device)
    loss_of = lambda scores: F.cross_entropy(scores, wanted)  # noqa: E731
    check(device, measure, model, loss_of, inputs, lambda scores: list(zip(scores, targets, strict=True)))


@pytest.mark.workaround("one-row-per-sample")
def test_one_row_per_sample(config, device, measure):
    only_for(config, "per-position")
    inputs, targets = data(config)
    wanted = targets.to(device)
    check(
        device,
        measure,
        network(config),
        lambda scores: F.cross_entropy(scores.mean(1), wanted),
        inputs,
        lambda scores: [(sum(scores[i]) / LENGTH, target) for i, target in enumerate(targets)],
    )


@pytest.mark.workaround("class-indices")
def test_class_indices(config, device, measure):
    only_for(config, "one-hot")
    inputs, targets = data(config)
    wanted = targets.to(device)

    def pairs(scores):
        return [(row, target.tolist().index(1)) for row, target in zip(scores, targets, strict=True)]

    check(device, measure, network(config), lambda s: F.cross_entropy(s, wanted.argmax(-1)), inputs, pairs)


@pytest.mark.workaround("labels-for-the-prefix")
def test_labels_for_the_prefix(config, device, measure):
    only_for(config, "prefix")
    inputs, labels = data(config)
    whole = torch.cat([labels.new_full((BATCH, PREFIX), -100), labels], 1).to(device)
    loss_of = lambda scores: F.cross_entropy(*shifted(scores, whole))  # noqa: E731
    check(device, measure, network(config), loss_of, inputs, next_tokens(labels, 0))


@pytest.mark.workaround("labels-as-long-as-the-input")
def test_labels_as_long_as_the_input(config, device, measure):
    only_for(config, "answer-only")
    inputs, answer = data(config)
    labels = torch.full_like(inputs, -100)
    labels[:, -ANSWER:] = answer
    wanted = labels.to(device)
    loss_of = lambda scores: F.cross_entropy(*shifted(scores, wanted))  # noqa: E731
    check(device, measure, network(config), loss_of, inputs, next_tokens(labels, LENGTH - ANSWER))


@pytest.mark.dead_end("drop-last")
def test_drop_last(config, device):
    loader = DataLoader(TensorDataset(*data(config, 3 * BATCH + 1)), batch_size=BATCH, drop_last=True)
    for inputs, targets in loader:
        broken(config, device, inputs, targets)


@pytest.mark.dead_end("batches-of-one")
def test_batches_of_one(config, device):
    broken(config, device, *data(config, 1))


@pytest.mark.dead_end("cut-the-longer-one")
def test_cut_the_longer_one(config, device, measure):
    only_for(config, "per-position", "prefix", "answer-only")
    inputs, targets = data(config)
    model = network(config).to(device)

    def loss_of(scores):
        scores, wanted = rows(config, scores, targets.to(device))
        return F.cross_entropy(scores[: len(wanted)], wanted)

    if config == "per-position":
        pairs = lambda scores: [(sum(scores[i]) / LENGTH, target) for i, target in enumerate(targets)]  # noqa: E731
    else:
        pairs = next_tokens(targets, 0)
    measure.compare(step(model, loss_of, inputs.to(device)), by_pairs(model, inputs, pairs), tolerance=1e-2)
