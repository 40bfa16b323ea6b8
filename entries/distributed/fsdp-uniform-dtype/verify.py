# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.6"]
# ///
"""FSDP joins the parameters of a unit into one flat tensor, and two types came together in it.

The network is a tower, a norm and a body with low-rank adapters. Which of them has the other type is the configuration.
One rank is enough: the types are looked at when the model is wrapped (FSDP2: at the first forward pass).
"""

import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

pytestmark = pytest.mark.requires(torch=">=2.6")

WIDTH, RANK = 64, 8
STORED = torch.bfloat16
ADAPTERS = ("down", "up")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower, self.norm, self.body = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, inputs):
        hidden = cast_and_call(self.norm, cast_and_call(self.tower, inputs))
        return cast_and_call(self.body, hidden).float() + cast_and_call(self.up, cast_and_call(self.down, hidden))


def cast_and_call(layer, inputs):
    """Every layer computes in its own type; one of packed 4-bit weights takes what comes."""
    dtype = layer.weight.dtype
    packed = not dtype.is_floating_point or getattr(layer, "quant_state", None) is not None
    return layer(inputs.to(STORED if packed else dtype))


def build(kind, device, storage=torch.uint8):
    torch.manual_seed(0)
    network = Network().to(STORED)
    if kind == "adapters-in-float32":
        network.requires_grad_(False)
        for name in ADAPTERS:
            getattr(network, name).float().requires_grad_()
    elif kind == "quant-storage":
        network.body = quantized(network.body, storage)
    else:
        network.tower.float()
    return network.to(device)


def quantized(layer, storage):
    bnb = pytest.importorskip("bitsandbytes")
    packed = bnb.nn.Linear4bit(WIDTH, WIDTH, compute_dtype=STORED, quant_type="nf4", quant_storage=storage)
    weight = layer.weight.data
    packed.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", quant_storage=storage, module=packed
    )
    packed.bias.data = layer.bias.data
    return packed


def one_type(network):
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(STORED)
    return network


def join(device):
    if not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def step(kind, device, network, two=None, policy="bf16", **options):
    """Wrap, train for one step, and compute again."""
    join(device)
    if kind == "fsdp2" if two is None else two:
        model = fully_shard(network, mesh=init_device_mesh(device, (1,)), mp_policy=MixedPrecisionPolicy())
    else:
        mixed = MixedPrecision(param_dtype=STORED, cast_forward_inputs=False) if policy == "bf16" else None
        options = {"use_orig_params": True, **options}
        model = FullyShardedDataParallel(network, device_id=torch.device(device), mixed_precision=mixed, **options)
    return trained(model, batch().to(device))


def trained(model, inputs):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(inputs).square().mean().backward()
    optimizer.step()
    return model(inputs).detach()


def batch():
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))


def check(measure, kind, result):
    """Compare with the same step in float64 without FSDP."""
    network = build(kind, "cpu")
    if kind == "quant-storage":
        import bitsandbytes.functional as bnb

        plain = nn.Linear(WIDTH, WIDTH)
        plain.weight.data = bnb.dequantize_4bit(network.body.weight.data, network.body.weight.quant_state)
        plain.bias.data = network.body.bias.data
        plain.weight.requires_grad_(False)
        network.body = plain
    network = network.double()
    network.forward = lambda inputs: double_forward(network, inputs)
    measure.compare(result, trained(network, batch().double()), tolerance=0.05)


def double_forward(network, inputs):
    hidden = network.norm(network.tower(inputs))
    return network.body(hidden) + network.up(network.down(hidden))


@pytest.fixture(params=["adapters-in-float32", "mixed-checkpoint", "fsdp2", "quant-storage"])
def config(request):
    """What has the other type; `fsdp2` is the mixed checkpoint under `fully_shard`."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        step(config, device, build(config, device))
    finally:
        measure.recovers(lambda: step("mixed-checkpoint", device, one_type(Network().to(device))).isfinite().all())


@pytest.mark.workaround("one-dtype-before-wrapping")
def test_one_dtype_before_wrapping(config, device, measure):
    if config == "quant-storage":
        pytest.skip("packed weights cannot be cast")
    check(measure, config, step(config, device, one_type(build(config, device))))


@pytest.mark.workaround("matching-quant-storage")
def test_matching_quant_storage(config, device, measure):
    if config != "quant-storage":
        pytest.skip("nothing is quantized")
    check(measure, config, step(config, device, build(config, device, storage=STORED)))


@pytest.mark.workaround("wrap-by-type")
def test_wrap_by_type(config, device, measure):
    if config in ("fsdp2", "quant-storage"):
        pytest.skip("a unit of FSDP1 of its own, for floating-point weights")
    network = build(config, device)
    units = [network.down, network.up] if config == "adapters-in-float32" else [network.tower]
    policy = functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda module: module in units)
    check(measure, config, step(config, device, network, policy="none", auto_wrap_policy=policy))


@pytest.mark.workaround("fsdp2")
def test_fsdp2(config, device, measure):
    if config != "adapters-in-float32":
        pytest.skip("parameters that are trained have two types here")
    check(measure, config, step(config, device, build(config, device), two=True))


@pytest.mark.dead_end("bf16-off")
def test_bf16_off(config, device):
    if config == "fsdp2":
        pytest.skip("no policy is set here")
    step(config, device, build(config, device), policy="none")


@pytest.mark.dead_end("toggle-use-orig-params")
def test_toggle_use_orig_params(config, device):
    if config == "fsdp2":
        pytest.skip("FSDP2 has no such option")
    step(config, device, build(config, device), use_orig_params=False)


@pytest.mark.dead_end("fsdp2-for-trained-types")
def test_fsdp2_for_trained_types(config, device):
    if config != "mixed-checkpoint":
        pytest.skip("what is trained has one type here")
    step(config, device, build(config, device), two=True)
