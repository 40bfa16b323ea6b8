# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Elementwise operations on two tensors whose sizes differ in a dimension where neither is 1.

`positions` adds a table of 32 positions to 40 tokens, `odd-image` adds a skip connection to a feature map that was
halved and doubled, `cached-keys` masks the scores of a decoding step with the mask of the new tokens only,
`channel-axis` scales images by one number per channel, and `alpha-channel` normalises an RGBA image as if it were RGB.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

BATCH = 4
LIMIT, LENGTH = 32, 40
MEAN, STD = [0.48, 0.45, 0.40], [0.22, 0.23, 0.26]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions on a GPU in full float32, since results are compared with float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["positions", "odd-image", "cached-keys", "channel-axis", "alpha-channel"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("the sizes differ for another reason here")


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def waves(length, width):
    """Sinusoidal positions."""
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.max_length = LIMIT
        self.tokens, self.head = nn.Embedding(50, 16), nn.Linear(16, 5)
        self.register_buffer("positions", waves(self.max_length, 16))

    def forward(self, ids):
        return self.head(self.tokens(ids) + self.positions[: ids.shape[1]])


class UNet(nn.Module):
    """One level down and up again; `match` brings the two feature maps of a level together."""

    def __init__(self, match=None):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.match = match or (lambda hidden, _skip: F.interpolate(hidden, scale_factor=2))

    def forward(self, images):
        skip = self.enter(images).relu()
        return self.match(self.inner(F.max_pool2d(skip, 2)), skip) + skip


class Scaled(nn.Module):
    """Images times one learned number per channel."""

    def __init__(self, arrange=lambda scale: scale):
        super().__init__()
        self.scale = nn.Parameter(random(3))
        self.arrange = arrange

    def forward(self, images):
        return images * self.arrange(self.scale)


class Stem(nn.Module):
    """The normalisation of a dataset and the first convolution of a network."""

    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def forward(self, image):
        return self.conv(((image - self.mean.to(image.device)) / self.std.to(image.device))[None])


class Attention(nn.Module):
    """One decoding step: two new tokens, five in the cache."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Linear(8, 8)

    def forward(self, new, cached, mask):
        keys = torch.cat([cached, new], 1)
        scores = self.query(new) @ keys.transpose(1, 2)
        return scores.masked_fill(mask[:, None, :] == 0, float("-inf")).softmax(-1) @ keys


def program(config, batch=BATCH):
    """The model and its inputs."""
    if config == "positions":
        return Encoder(), [torch.arange(batch * LENGTH).view(batch, LENGTH) % 50]
    if config == "odd-image":
        return UNet(), [random(batch, 3, 21, 13)]
    if config == "cached-keys":
        return Attention(), [random(batch, 2, 8), random(batch, 5, 8, seed=2), torch.ones(batch, 2)]
    if config == "channel-axis":
        return Scaled(), [random(batch, 3, 6, 5)]
    return Stem(), [random(4, 8, 7)]


def past_mask(batch=BATCH):
    """Some of the cached positions are padding."""
    return (torch.arange(5) >= torch.arange(batch)[:, None]).float()


def broken(config, device, batch=BATCH):
    model, inputs = program(config, batch)
    return model.to(device)(*(value.to(device) for value in inputs))


def step(model, inputs):
    """Outputs and gradients of one training step."""
    model.zero_grad()
    outputs = model(*inputs)
    outputs.square().mean().backward()
    return [outputs.detach(), *(p.grad for p in model.parameters())]


def by_hand(model, inputs, forward):
    """The same in float64 on the CPU; `forward` gets the parameters by name."""
    p = {name: value.detach().double().cpu().requires_grad_() for name, value in model.named_parameters()}
    outputs = forward(p, *(value.double() if value.is_floating_point() else value for value in inputs))
    outputs.square().mean().backward()
    return [outputs.detach(), *(value.grad for value in p.values())]


def check(device, measure, model, inputs, forward, reference_inputs=None):
    model = model.to(device)
    result = measure(lambda: step(model, [value.to(device) for value in inputs]))
    measure.compare(result, by_hand(model, reference_inputs or inputs, forward), tolerance=1e-4)


def unet_by_hand(rows, columns):
    """The network with nearest-neighbour rows and columns picked by index."""

    def forward(p, images):
        skip = F.conv2d(images, p["enter.weight"], p["enter.bias"], padding=1).clamp(min=0)
        halved = skip.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
        hidden = F.conv2d(halved, p["inner.weight"], p["inner.bias"], padding=1)
        return hidden[:, :, rows][:, :, :, columns] + skip

    return forward


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("truncate")
def test_truncate(config, device, measure):
    only_for(config, "positions")
    model, (ids,) = program(config)

    def forward(p, ids):
        angle = [[t / 1e4 ** (2 * (i // 2) / 16) for i in range(16)] for t in range(LIMIT)]
        table = [[math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(row)] for row in angle]
        hidden = p["tokens.weight"][ids] + torch.tensor(table, dtype=torch.float64)
        return hidden @ p["head.weight"].T + p["head.bias"]

    check(device, measure, model, [ids[:, : model.max_length]], forward, [ids[:, :LIMIT]])


@pytest.mark.workaround("pad-to-a-multiple")
def test_pad_to_a_multiple(config, device, measure):
    only_for(config, "odd-image")
    model, (images,) = program(config)
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % 2, 0, -height % 2))
    model = model.to(device)

    def run():
        model.zero_grad()
        outputs = model(padded.to(device))[..., :height, :width]
        outputs.square().mean().backward()
        return [outputs.detach(), *(p.grad for p in model.parameters())]

    framed = torch.zeros(BATCH, 3, 22, 14)
    framed[:, :, :21, :13] = images
    whole = unet_by_hand(torch.arange(22) // 2, torch.arange(14) // 2)
    reference = by_hand(model, [framed], lambda p, values: whole(p, values)[:, :, :21, :13])
    measure.compare(measure(run), reference, tolerance=1e-4)


@pytest.mark.workaround("upsample-to-the-skip")
def test_upsample_to_the_skip(config, device, measure):
    only_for(config, "odd-image")
    _, inputs = program(config)
    model = UNet(lambda hidden, skip: F.interpolate(hidden, size=skip.shape[-2:]))
    check(device, measure, model, inputs, unet_by_hand(torch.arange(21) * 10 // 21, torch.arange(13) * 6 // 13))


@pytest.mark.workaround("mask-for-all-keys")
def test_mask_for_all_keys(config, device, measure):
    only_for(config, "cached-keys")
    model, (new, cached, mask) = program(config)
    whole = torch.cat([past_mask(), mask], dim=1)

    def forward(p, new, cached, mask):
        rows = []
        for sample in range(BATCH):
            keys = torch.cat([cached[sample], new[sample]])[mask[sample] == 1]
            scores = (new[sample] @ p["query.weight"].T + p["query.bias"]) @ keys.T
            rows.append(scores.exp() @ keys / scores.exp().sum(-1, keepdim=True))
        return torch.stack(rows)

    check(device, measure, model, [new, cached, whole], forward)


@pytest.mark.workaround("name-the-axis")
def test_name_the_axis(config, device, measure):
    only_for(config, "channel-axis")
    _, inputs = program(config)
    model = Scaled(lambda scale: scale[:, None, None])
    check(device, measure, model, inputs, lambda p, images: torch.einsum("bchw,c->bchw", images, p["scale"]))


@pytest.mark.workaround("convert-to-rgb")
def test_convert_to_rgb(config, device, measure):
    only_for(config, "alpha-channel")
    model, (image,) = program(config)

    def forward(p, image):
        channels = [(image[c] - MEAN[c]) / STD[c] for c in range(3)]
        return F.conv2d(torch.stack(channels)[None], p["conv.weight"], p["conv.bias"])

    check(device, measure, model, [image[:3]], forward)


@pytest.mark.dead_end("another-batch-size")
def test_another_batch_size(config, device):
    only_for(config, "positions", "odd-image", "cached-keys", "channel-axis")
    broken(config, device, batch=1)


@pytest.mark.dead_end("raise-the-limit-only")
def test_raise_the_limit_only(config, device):
    only_for(config, "positions")
    model, inputs = program(config)
    model.max_length = 64
    model.to(device)(*(value.to(device) for value in inputs))


@pytest.mark.dead_end("unsqueeze-in-front")
def test_unsqueeze_in_front(config, device):
    only_for(config, "channel-axis")
    _, (images,) = program(config)
    Scaled(lambda scale: scale.unsqueeze(0)).to(device)(images.to(device))


@pytest.mark.dead_end("statistics-for-four-channels")
def test_statistics_for_four_channels(config, device):
    only_for(config, "alpha-channel")
    _, (image,) = program(config)
    Stem([*MEAN, 0.5], [*STD, 0.5]).to(device)(image.to(device))
