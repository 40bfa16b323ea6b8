# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Matrix products whose inner dimensions differ, and what brings the two sides together.

`image-size` feeds larger images to a classifier whose Linear was sized for small ones, `unflattened` leaves the
flatten out. In `channels-first`, `channels-first-vector` and `attention-scores` the shared axis is there, but not
where the product looks for it. `other-encoder` hands the states of one text encoder to a network that was trained
with another, and `packed-weight` takes the weight of a 4-bit layer for a matrix.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

BATCH = 4
CAUSES = {
    "image-size": "layer-sized-for-other-input",
    "unflattened": "not-flattened",
    "channels-first": "shared-axis-elsewhere",
    "channels-first-vector": "shared-axis-elsewhere",
    "attention-scores": "shared-axis-elsewhere",
    "other-encoder": "parts-of-different-models",
    "packed-weight": "packed-weight",
}
PARAMS = [
    pytest.param(name, marks=pytest.mark.requires(bitsandbytes=">=0.46") if name == "packed-weight" else ())
    for name in CAUSES
]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions on a GPU in full float32, since results are compared with float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=PARAMS)
def config(request):
    return request.param


def only_for(config, *causes):
    if CAUSES[config] not in causes:
        pytest.skip("the shapes differ for another reason here")


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Classifier(nn.Module):
    """A convolution and a Linear head; `between` is what stands between them."""

    def __init__(self, features, between):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(features, 3)
        self.between = between

    def features(self, images):
        return self.between(F.max_pool2d(self.body(images).relu(), 2))

    def forward(self, images):
        return self.head(self.features(images))


def flat(hidden):
    return torch.flatten(hidden, 1)


def untouched(hidden):
    return hidden


class Tagger(nn.Module):
    """A Conv1d over a signal and a Linear over its channels."""

    def __init__(self, arrange):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv1d(2, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)
        self.arrange = arrange

    def forward(self, signal):
        return self.head(self.arrange(self.body(signal)))


class Pooled(Tagger):
    """The same with one learned vector in place of the Linear."""

    def __init__(self, arrange):
        super().__init__(arrange)
        self.head = None
        self.vector = nn.Parameter(random(8))

    def forward(self, signal):
        return self.arrange(self.body(signal)) @ self.vector


class Scores(nn.Module):
    """The scores of an attention: queries times keys."""

    def __init__(self, arrange):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.arrange = arrange

    def forward(self, hidden):
        split = (*hidden.shape[:2], 2, 4)
        query, key = (part(hidden).view(split).transpose(1, 2) for part in (self.query, self.key))
        return query @ self.arrange(key)


class Conditioned(nn.Module):
    """A text encoder of some width, and a network that takes states of 24."""

    def __init__(self, width, bridge=None):
        super().__init__()
        torch.manual_seed(width)
        self.encoder = nn.Sequential(nn.Embedding(50, width), nn.Linear(width, width))
        torch.manual_seed(0)
        self.context = nn.Linear(24, 5)
        self.bridge = bridge or nn.Identity()

    def forward(self, tokens):
        return self.context(self.bridge(self.encoder(tokens)))


def four_bit_layer(device):
    import bitsandbytes as bnb

    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    original = layer.weight.detach().clone().double()
    return layer.to(device), original


def inputs_for(config, batch=BATCH):
    if config in ("image-size", "unflattened"):
        return random(batch, 3, 12, 12)
    if config.startswith("channels-first"):
        return random(batch, 2, 7)
    if config == "attention-scores":
        return random(batch, 6, 8)
    if config == "other-encoder":
        return torch.arange(batch * 6).view(batch, 6)
    return random(batch, 64)


def last(values):
    return values.transpose(-2, -1)


def broken_model(config):
    if config == "image-size":
        return Classifier(4 * 4 * 4, flat)  # sized for images of 8x8
    if config == "unflattened":
        return Classifier(4 * 6 * 6, untouched)
    if config == "attention-scores":
        return Scores(untouched)
    if config == "other-encoder":
        return Conditioned(16)
    return (Tagger if config == "channels-first" else Pooled)(untouched)


def broken(config, device, batch=BATCH):
    values = inputs_for(config, batch).to(device)
    if config == "packed-weight":
        layer, _ = four_bit_layer(device)
        return F.linear(values, layer.weight)
    return broken_model(config).to(device)(values)


def step(model, values):
    """Outputs and gradients of one training step."""
    model.zero_grad()
    outputs = model(values)
    outputs.square().mean().backward()
    return [outputs.detach(), *(p.grad for p in model.parameters())]


def by_hand(config, model, values):
    """The same step in float64 on the CPU, with every product spelled out over named axes."""
    p = {name: value.detach().double().cpu().requires_grad_() for name, value in model.named_parameters()}
    if config in ("image-size", "unflattened"):
        hidden = F.conv2d(values.double(), p["body.weight"], p["body.bias"], padding=1).clamp(min=0)
        hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
        if model.between is pooled:
            hidden = windows(hidden)
        head = p["head.weight"].view(3, *hidden.shape[1:])
        outputs = torch.einsum("bchw,ochw->bo", hidden, head) + p["head.bias"]
    elif config == "other-encoder":
        states = p["encoder.0.weight"][values] @ p["encoder.1.weight"].T + p["encoder.1.bias"]
        outputs = torch.einsum("bti,oi->bto", states, p["context.weight"]) + p["context.bias"]
    elif config == "attention-scores":
        rows = [values.double() @ p[f"{name}.weight"].T + p[f"{name}.bias"] for name in ("query", "key")]
        query, key = (part.view(*values.shape[:2], 2, 4) for part in rows)
        outputs = torch.einsum("bihd,bjhd->bhij", query, key)
    else:
        hidden = F.conv1d(values.double(), p["body.weight"], p["body.bias"], padding=1)
        if config == "channels-first":
            outputs = torch.einsum("bct,oc->bto", hidden, p["head.weight"]) + p["head.bias"]
        else:
            outputs = torch.einsum("bct,c->bt", hidden, p["vector"])
    outputs.square().mean().backward()
    return [outputs.detach(), *(value.grad for value in p.values())]


def windows(hidden):
    """Means over the windows in which adaptive pooling brings 6x6 to 4x4."""
    spans = [(i * 6 // 4, -(-(i + 1) * 6 // 4)) for i in range(4)]
    rows = [[hidden[:, :, a:b, c:d].mean((2, 3)) for c, d in spans] for a, b in spans]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def pooled(hidden):
    return torch.flatten(F.adaptive_avg_pool2d(hidden, 4), 1)


def check(config, device, measure, model):
    values = inputs_for(config)
    model = model.to(device)
    result = measure(lambda: step(model, values.to(device)))
    measure.compare(result, by_hand(config, model, values), tolerance=1e-4)


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("fit-the-layer")
def test_fit_the_layer(config, device, measure):
    only_for(config, "layer-sized-for-other-input")
    net = broken_model(config)
    with torch.no_grad():
        features = net.features(torch.zeros(1, 3, 12, 12)).shape[1]
    net.head = nn.Linear(features, 3)
    lazy = nn.LazyLinear(3)
    lazy(net.features(inputs_for(config)))
    assert lazy.in_features == features
    check(config, device, measure, net)


@pytest.mark.workaround("resize-the-input")
def test_resize_the_input(config, device, measure):
    only_for(config, "layer-sized-for-other-input")
    net = broken_model(config).to(device)
    large = random(BATCH, 3, 8, 8).repeat_interleave(2, -1).repeat_interleave(2, -2)
    resized = F.interpolate(large.to(device), size=(8, 8), mode="area")
    result = measure(lambda: step(net, resized))
    measure.compare(result, by_hand(config, net, large[:, :, ::2, ::2]), tolerance=1e-4)


@pytest.mark.workaround("pool-to-a-fixed-size")
def test_pool_to_a_fixed_size(config, device, measure):
    only_for(config, "layer-sized-for-other-input")
    check(config, device, measure, Classifier(4 * 4 * 4, pooled))


@pytest.mark.workaround("flatten-all-but-the-batch")
def test_flatten_all_but_the_batch(config, device, measure):
    only_for(config, "not-flattened")
    check(config, device, measure, Classifier(4 * 6 * 6, nn.Flatten(1)))


@pytest.mark.workaround("move-the-shared-axis")
def test_move_the_shared_axis(config, device, measure):
    only_for(config, "shared-axis-elsewhere")
    model = {"channels-first": Tagger, "channels-first-vector": Pooled, "attention-scores": Scores}[config]
    check(config, device, measure, model(last))


@pytest.mark.workaround("parts-that-belong-together")
def test_parts_that_belong_together(config, device, measure):
    only_for(config, "parts-of-different-models")
    check(config, device, measure, Conditioned(24))


@pytest.mark.workaround("call-the-layer")
def test_call_the_layer(config, device, measure):
    only_for(config, "packed-weight")
    import bitsandbytes as bnb

    layer, original = four_bit_layer(device)
    values = inputs_for(config)
    result = measure(lambda: layer(values.to(device)))
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.allclose(F.linear(values.to(device), weight), result, atol=1e-4)
    measure.compare(result, values.double() @ original.T, tolerance=0.15)


@pytest.mark.dead_end("reshape-until-it-fits")
def test_reshape_until_it_fits(config, device, measure):
    if config == "unflattened":
        pytest.skip("here a reshape to (batch, features) is the flatten that is missing")
    values = inputs_for(config).to(device)
    if config == "packed-weight":
        layer, original = four_bit_layer(device)
        result, expected = F.linear(values, layer.weight.reshape(32, -1)), values.double() @ original.T
    elif config == "other-encoder":
        model = Conditioned(16).to(device)
        result = model.context(model.encoder(values).reshape(-1, 24))
        expected = by_hand(config, Conditioned(24), inputs_for(config))[0]
    else:
        if config == "image-size":
            forced = Classifier(4 * 4 * 4, lambda hidden: hidden.reshape(-1, 4 * 4 * 4))
            expected = by_hand(config, Classifier(4 * 4 * 4, pooled), inputs_for(config))[0]
        else:
            kind = {"channels-first": Tagger, "channels-first-vector": Pooled, "attention-scores": Scores}[config]
            forced = kind(lambda hidden: hidden.reshape(*hidden.shape[:-2], hidden.shape[-1], hidden.shape[-2]))
            expected = by_hand(config, forced, inputs_for(config))[0]
        result = forced.to(device)(values)
    measure.compare(result, expected, tolerance=1e-2)


@pytest.mark.dead_end("another-batch-size")
def test_another_batch_size(config, device):
    broken(config, device, batch=1)


@pytest.mark.dead_end("untrained-projection")
def test_untrained_projection(config, device, measure):
    only_for(config, "parts-of-different-models")
    result = Conditioned(16, bridge=nn.Linear(16, 24)).to(device)(inputs_for(config).to(device))
    measure.compare(result, by_hand(config, Conditioned(24), inputs_for(config))[0], tolerance=1e-2)
