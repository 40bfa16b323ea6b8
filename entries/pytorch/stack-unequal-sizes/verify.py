# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A batch is made of samples that do not have the same shape.

`sequences` are of different lengths; `sequences-in-worker` are the same with the longest first and a worker process,
which words the failure otherwise, and `nested-lists` the same as Python lists. `images` have different sizes,
`gray-image` is one of one channel among those of three, and `empty-sample` is a sequence without rows.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

pytestmark = pytest.mark.requires(torch=">=2.1")

LENGTHS = {
    "sequences": (3, 5, 2),
    "sequences-in-worker": (5, 3, 2),
    "nested-lists": (3, 5, 2),
    "empty-sample": (4, 4, 0),
}
SIZES = {"images": [(3, 6, 8), (3, 9, 5), (3, 8, 8)], "gray-image": [(3, 6, 6), (1, 6, 6), (3, 6, 6)]}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions on a GPU in full float32, since results are compared with float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(
    params=[
        "sequences",
        pytest.param("sequences-in-worker", marks=pytest.mark.requires(os="linux")),
        "nested-lists",
        "images",
        "gray-image",
        "empty-sample",
    ]
)
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("the samples differ in another way here")


def samples(config):
    generator = torch.Generator().manual_seed(1)
    shapes = SIZES.get(config) or [(length, 4) for length in LENGTHS[config]]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [value.tolist() for value in values] if config == "nested-lists" else values


def loader(config, dataset=None, **options):
    if config == "sequences-in-worker":
        options = {"num_workers": 1, "multiprocessing_context": "fork"} | options
    return DataLoader(samples(config) if dataset is None else dataset, **({"batch_size": 3} | options))


def network(config):
    torch.manual_seed(0)
    return nn.Conv2d(3, 2, 3) if config in SIZES else nn.Linear(4, 2)


def score(model, sample):
    """Scores of one sample of any size: the mean over its positions."""
    return model(sample).flatten(1).mean(1) if sample.ndim == 3 else model(sample).mean(0)


def gradients(model, losses):
    model.zero_grad()
    torch.stack(losses).mean().backward()
    return [p.grad for p in model.parameters()]


def reference(config, values):
    """One sample after the other in float64."""
    model = network(config).double()
    return gradients(model, [score(model, value.double()).square().sum() for value in values])


def compare(config, measure, run, values):
    measure.compare(measure(run), reference(config, values), tolerance=1e-4)


def padded(batch):
    rows = [torch.as_tensor(sample) for sample in batch]
    return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def as_list(batch):
    return [torch.as_tensor(sample) for sample in batch]


def concatenated(batch):
    return torch.cat(as_list(batch))


def in_one_size(image):
    return F.interpolate(image[None], size=(7, 7), mode="nearest")[0]


def in_three_channels(image):
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]


@pytest.mark.reproduces
def test_reproduces(config):
    next(iter(loader(config)))


@pytest.mark.workaround("pad-in-the-collate-function")
def test_pad_in_the_collate_function(config, device, measure):
    only_for(config, "sequences", "sequences-in-worker", "nested-lists")
    model = network(config).to(device)

    def run():
        rows, lengths = (part.to(device) for part in next(iter(loader(config, collate_fn=padded))))
        real = torch.arange(rows.shape[1], device=device) < lengths[:, None]
        sums = (model(rows) * real[:, :, None]).sum(1)
        return gradients(model, list((sums / lengths[:, None]).square().sum(1)))

    compare(config, measure, run, as_list(samples(config)))


@pytest.mark.workaround("keep-a-list")
def test_keep_a_list(config, device, measure):
    only_for(config, "sequences", "sequences-in-worker", "nested-lists", "images")
    model = network(config).to(device)

    def run():
        batch = next(iter(loader(config, collate_fn=as_list)))
        return gradients(model, [score(model, sample.to(device)).square().sum() for sample in batch])

    compare(config, measure, run, as_list(samples(config)))


@pytest.mark.workaround("one-image-size")
def test_one_image_size(config, device, measure):
    only_for(config, "images")
    model = network(config).to(device)

    def run():
        batch = next(iter(loader(config, [in_one_size(image) for image in samples(config)]))).to(device)
        return gradients(model, list(model(batch).flatten(2).mean(2).square().sum(1)))

    def picked(image):
        rows, columns = (torch.arange(7) * size // 7 for size in image.shape[1:])
        return image[:, rows][:, :, columns]

    compare(config, measure, run, [picked(image) for image in samples(config)])


@pytest.mark.workaround("one-number-of-channels")
def test_one_number_of_channels(config, device, measure):
    only_for(config, "gray-image")
    model = network(config).to(device)

    def run():
        batch = next(iter(loader(config, [in_three_channels(image) for image in samples(config)]))).to(device)
        return gradients(model, list(model(batch).flatten(2).mean(2).square().sum(1)))

    first, gray, last = samples(config)
    compare(config, measure, run, [first, torch.cat([gray, gray, gray]), last])


@pytest.mark.workaround("leave-empty-samples-out")
def test_leave_empty_samples_out(config, device, measure):
    only_for(config, "empty-sample")
    model = network(config).to(device)

    def run():
        batch = next(iter(loader(config, [sample for sample in samples(config) if sample.numel()]))).to(device)
        return gradients(model, list(model(batch).mean(1).square().sum(1)))

    compare(config, measure, run, samples(config)[:2])


@pytest.mark.workaround("batches-of-one")
def test_batches_of_one(config, device, measure):
    only_for(config, "sequences", "sequences-in-worker", "images")
    model = network(config).to(device)

    def run():
        model.zero_grad()
        batches = list(loader(config, batch_size=1))
        for batch in batches:
            (score(model, batch[0].to(device)).square().sum() / len(batches)).backward()
        return [p.grad for p in model.parameters()]

    compare(config, measure, run, samples(config))


@pytest.mark.dead_end("no-workers")
def test_no_workers(config):
    only_for(config, "sequences-in-worker")
    next(iter(loader(config, num_workers=0, multiprocessing_context=None)))


@pytest.mark.dead_end("clone-the-samples")
def test_clone_the_samples(config):
    if config == "nested-lists":
        pytest.skip("lists cannot be cloned")
    next(iter(loader(config, [sample.clone().contiguous() for sample in samples(config)])))


@pytest.mark.dead_end("drop-last")
def test_drop_last(config):
    next(iter(loader(config, drop_last=True)))


@pytest.mark.dead_end("concatenate-instead")
def test_concatenate_instead(config, device, measure):
    only_for(config, "sequences", "sequences-in-worker", "nested-lists", "images", "gray-image")
    batch = next(iter(loader(config, collate_fn=concatenated)))
    model = network(config).to(device)
    result = gradients(model, [score(model, batch.to(device)).square().sum()])
    measure.compare(result, reference(config, as_list(samples(config))), tolerance=1e-2)
