# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.6"]
# ///
"""FSDP joins the parameters of a unit into one flat tensor, and some are trained while others are frozen.

A frozen tower, a frozen body with trained low-rank adapters, and a trained head. One rank is enough: the parameters
are looked at when the model is wrapped.
"""

import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

pytestmark = pytest.mark.requires(torch=">=2.6")

WIDTH, RANK = 64, 8


class Adapted(nn.Module):
    """A frozen projection with a trained low-rank correction, the shape of a LoRA layer."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


class Network(nn.Module):
    def __init__(self, adapted, frozen_forward=False):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()).requires_grad_(False)
        self.body = Adapted() if adapted else nn.Identity()
        self.embedding = nn.Linear(WIDTH, WIDTH).requires_grad_(adapted)
        self.head = nn.Linear(WIDTH, 4)
        self.frozen_forward = frozen_forward

    def forward(self, inputs):
        with torch.set_grad_enabled(not self.frozen_forward):
            hidden = self.tower(inputs)
        return self.head(self.body(self.embedding(hidden)))


def build(config, device, **options):
    torch.manual_seed(0)
    return Network(config != "root-unit", **options).to(device)


def join(device):
    if not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def by_module(*modules):
    return functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda module: module in modules)


def broken_units(config, network):
    """The root unit holds everything, or what is left beside the tower, or a policy makes units of whole blocks."""
    if config == "root-unit":
        return by_module(network.tower)
    return by_module(network.tower, network.body) if config == "blocks-by-policy" else None


def uniform_units(network):
    """Units that are frozen or trained as a whole; what is left for the root is trained."""
    body = [network.body.base] if isinstance(network.body, Adapted) else [network.embedding]
    return by_module(network.tower, *body)


def wrap(network, device, units=None, use_orig_params=False):
    join(device)
    return FullyShardedDataParallel(
        network, device_id=torch.device(device), auto_wrap_policy=units, use_orig_params=use_orig_params
    )


def trained(model, inputs, steps=2):
    """A few steps on what is trained, and the outputs before and after."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    outputs = []
    for _ in range(steps):
        outputs.append(model(inputs))
        outputs[-1].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack([*outputs, model(inputs)]).detach()


def batch():
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))


def check(measure, config, device, model):
    network = build(config, "cpu").double()
    measure.compare(trained(model, batch().to(device)), trained(network, batch().double()), tolerance=1e-4)


@pytest.fixture(params=["one-unit", "blocks-by-policy", "root-unit"])
def config(request):
    """Where frozen and trained parameters come together."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    network = build(config, device)
    try:
        wrap(network, device, broken_units(config, network))
    finally:
        measure.recovers(
            lambda: trained(wrap(build(config, device), device, None, True), batch().to(device)) is not None
        )


@pytest.mark.workaround("use-orig-params")
def test_use_orig_params(config, device, measure):
    network = build(config, device)
    check(measure, config, device, wrap(network, device, broken_units(config, network), use_orig_params=True))


@pytest.mark.workaround("wrap-frozen-apart")
def test_wrap_frozen_apart(config, device, measure):
    network = build(config, device)
    check(measure, config, device, wrap(network, device, uniform_units(network)))


@pytest.mark.workaround("fsdp2")
def test_fsdp2(config, device, measure):
    join(device)
    network = build(config, device)
    mesh = init_device_mesh(device, (1,))
    for unit in (network.tower, network.body):
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    check(measure, config, device, fully_shard(network, mesh=mesh))


@pytest.mark.dead_end("some-frozen-modules-apart")
def test_some_frozen_modules_apart(config, device):
    network = build(config, device)
    network.tower = wrap(network.tower, device)
    wrap(network, device)


@pytest.mark.dead_end("no-grad-in-forward")
def test_no_grad_in_forward(config, device):
    network = build(config, device, frozen_forward=True)
    wrap(network, device, broken_units(config, network))
