# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""`view` on tensors whose memory is not laid out in the order of their dimensions.

`merged-heads` joins attention heads after a transpose, `sliced` flattens a part of the features, `layout-kept` is the
top-k accuracy of many training scripts, where a comparison keeps the layout of a transposed operand, and
`channels-last` flattens feature maps in that memory format. `in-backward` has the view in a backward pass of its own,
and `written-to` changes scores through a flat view of their transpose.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

BATCH, LENGTH, HEADS, WIDTH = 3, 5, 2, 4
CHOSEN = (1, 4, 9)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions on a GPU in full float32, since results are compared with float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=["merged-heads", "sliced", "layout-kept", "channels-last", "in-backward", "written-to"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("the view stands elsewhere here")


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(values, *shape):
    return values.view(*shape)


def reshape(values, *shape):
    return values.reshape(*shape)


def contiguous_view(values, *shape):
    return values.contiguous().view(*shape)


def clone_view(values, *shape):
    return values.clone().view(*shape)


def contiguous_in_vain(values, *shape):
    values.contiguous()
    return values.view(*shape)


class Projection(torch.autograd.Function):
    """A linear layer whose backward pass flattens the incoming gradient."""

    @staticmethod
    def forward(ctx, values, weight, reshape_as):
        ctx.save_for_backward(values, weight)
        ctx.reshape_as = reshape_as
        return values @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        values, weight = ctx.saved_tensors
        flat = ctx.reshape_as(gradient, -1, gradient.shape[-1])
        return gradient @ weight, flat.T @ values.reshape(-1, values.shape[-1]), None


class Network(nn.Module):
    def __init__(self, config, reshape_as=view, layout=torch.channels_last):
        super().__init__()
        torch.manual_seed(0)
        self.config, self.reshape_as, self.layout = config, reshape_as, layout
        images = config == "channels-last"
        self.body = nn.Conv2d(3, WIDTH, 3) if images else nn.Linear(HEADS * WIDTH, HEADS * WIDTH)
        self.head = nn.Linear({"sliced": LENGTH * 6, "channels-last": WIDTH * 16}.get(config, HEADS * WIDTH), 2)

    def forward(self, values):
        if self.config == "channels-last":
            hidden = self.body(values.to(memory_format=self.layout)).relu()
            return self.head(self.reshape_as(hidden, BATCH, -1))
        if self.config == "in-backward":
            scores = Projection.apply(self.body(values), self.head.weight, self.reshape_as) + self.head.bias
            return scores.transpose(0, 1) * torch.arange(1.0, LENGTH + 1, device=values.device)[:, None, None]
        hidden = self.body(values)
        if self.config == "sliced":
            return self.head(self.reshape_as(hidden[:, :, :6], BATCH, -1))
        heads = hidden.view(BATCH, LENGTH, HEADS, WIDTH).transpose(1, 2)
        mixed = (heads @ heads.transpose(-2, -1)).softmax(-1) @ heads
        return self.head(self.reshape_as(mixed.transpose(1, 2), BATCH, LENGTH, HEADS * WIDTH))


def inputs_for(config):
    return random(BATCH, 3, 6, 6) if config == "channels-last" else random(BATCH, LENGTH, HEADS * WIDTH)


def step(model, values):
    model.zero_grad()
    outputs = model(values)
    outputs.square().mean().backward()
    return [outputs.detach(), *(p.grad for p in model.parameters())]


def by_hand(config, model):
    """The same step in float64, with sums over named axes instead of views."""
    p = {name: value.detach().double().cpu().requires_grad_() for name, value in model.named_parameters()}
    values, head = inputs_for(config).double(), p["head.weight"]
    if config == "channels-last":
        hidden = F.conv2d(values, p["body.weight"], p["body.bias"]).clamp(min=0)
        outputs = torch.einsum("bchw,ochw->bo", hidden, head.unflatten(1, hidden.shape[1:])) + p["head.bias"]
    else:
        hidden = torch.einsum("bti,oi->bto", values, p["body.weight"]) + p["body.bias"]
        if config == "sliced":
            outputs = torch.einsum("bti,oti->bo", hidden[..., :6], head.unflatten(1, (LENGTH, 6))) + p["head.bias"]
        elif config == "in-backward":
            scores = torch.einsum("bti,oi->tbo", hidden, head) + p["head.bias"]
            outputs = torch.stack([scores[time] * (time + 1) for time in range(LENGTH)])
        else:
            parts = hidden.split(WIDTH, -1)
            mixed = [torch.einsum("bij,bjd->bid", (h @ h.mT).softmax(-1), h) for h in parts]
            outputs = torch.einsum("bti,oi->bto", torch.cat(mixed, -1), head) + p["head.bias"]
    outputs.square().mean().backward()
    return [outputs.detach(), *(value.grad for value in p.values())]


def accuracy(scores, targets, reshape_as):
    """How many of the targets are among the three best classes."""
    best = scores.topk(3, dim=1).indices.t()
    correct = best.eq(targets.view(1, -1).expand_as(best))
    return reshape_as(correct[:3], -1).float().sum()


def zero_some(scores, reshape_as):
    """Zero some scores, counted in the order of the transpose."""
    reshape_as(scores.t(), -1)[list(CHOSEN)] = 0.0
    return scores


def without_view(config):
    """The reference of the two programs that are no networks."""
    if config == "layout-kept":
        scores, targets = random(16, 6).tolist(), torch.arange(16) % 6
        return float(
            sum(sorted(row, reverse=True).index(row[target]) < 3 for row, target in zip(scores, targets, strict=True))
        )
    wanted = random(3, 5).double()
    for position in CHOSEN:
        wanted[position % 3, position // 3] = 0.0
    return wanted


def run(config, device, reshape_as):
    if config == "layout-kept":
        return accuracy(random(16, 6).to(device), (torch.arange(16) % 6).to(device), reshape_as)
    if config == "written-to":
        return zero_some(random(3, 5).to(device), reshape_as)
    return step(Network(config, reshape_as).to(device), inputs_for(config).to(device))


def reference(config):
    return without_view(config) if config in ("layout-kept", "written-to") else by_hand(config, Network(config))


@pytest.mark.reproduces
def test_reproduces(config, device):
    run(config, device, view)


@pytest.mark.workaround("reshape")
def test_reshape(config, device, measure):
    only_for(config, "merged-heads", "sliced", "layout-kept", "channels-last")
    measure.compare(measure(lambda: run(config, device, reshape)), reference(config), tolerance=1e-4)


@pytest.mark.workaround("contiguous-before-the-view")
def test_contiguous_before_the_view(config, device, measure):
    only_for(config, "merged-heads", "sliced", "layout-kept", "channels-last")
    measure.compare(measure(lambda: run(config, device, contiguous_view)), reference(config), tolerance=1e-4)


@pytest.mark.workaround("reshape-in-backward")
def test_reshape_in_backward(config, device, measure):
    only_for(config, "in-backward")
    measure.compare(measure(lambda: run(config, device, reshape)), reference(config), tolerance=1e-4)


@pytest.mark.workaround("contiguous-format")
def test_contiguous_format(config, device, measure):
    only_for(config, "channels-last")
    model = Network(config, layout=torch.contiguous_format).to(device)
    result = measure(lambda: step(model, inputs_for(config).to(device)))
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.workaround("index-instead-of-a-view")
def test_index_instead_of_a_view(config, device, measure):
    only_for(config, "written-to")

    def zeroed():
        scores, chosen = random(3, 5).to(device), torch.tensor(CHOSEN, device=device)
        scores.t()[chosen // 3, chosen % 3] = 0.0
        return scores

    measure.compare(measure(zeroed), reference(config), tolerance=1e-6)


@pytest.mark.dead_end("contiguous-not-kept")
def test_contiguous_not_kept(config, device):
    run(config, device, contiguous_in_vain)


@pytest.mark.dead_end("clone-before-the-view")
def test_clone_before_the_view(config, device):
    only_for(config, "merged-heads", "layout-kept", "channels-last", "in-backward")
    run(config, device, clone_view)


@pytest.mark.dead_end("view-without-the-transpose")
def test_view_without_the_transpose(config, device, measure):
    only_for(config, "merged-heads")
    result = run(config, device, lambda mixed, *shape: mixed.transpose(1, 2).view(*shape))
    measure.compare(result, reference(config), tolerance=1e-2)


@pytest.mark.dead_end("write-through-reshape")
def test_write_through_reshape(config, device, measure):
    only_for(config, "written-to")
    measure.compare(run(config, device, reshape), reference(config), tolerance=1e-6)
