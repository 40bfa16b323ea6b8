# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3", "numpy", "ml_dtypes"]
# ///
"""A tensor of a type that NumPy does not have is converted to an array.

`bf16-model` converts the output of a model in bfloat16, `autocast` that of a float32 model under autocast, and
`bf16-weights` and `fp8-weights` write weights to a file, as conversion scripts do.
"""

import io

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.3")


@pytest.fixture(params=["bf16-model", "autocast", "bf16-weights", "fp8-weights"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("these numbers come about in another way")


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoder(dtype=torch.float32):
    """Its last layer gives values up to some hundred thousand, as activations of large models do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    nn.init.normal_(model[2].weight, std=100_000)
    return model.to(dtype)


def tensor_of(config, device):
    """What is converted: an output, or weights of which the smallest are far below float16's smallest number."""
    if config == "bf16-weights":
        return (numbers(8, 8) * torch.logspace(-20, 6, 8)).to(device, torch.bfloat16)
    if config == "fp8-weights":
        return numbers(8, 8).to(torch.float8_e4m3fn).to(device)
    with torch.no_grad():
        if config == "bf16-model":
            return encoder(torch.bfloat16).to(device)(numbers(6, 16).to(device, torch.bfloat16))
        with torch.autocast(device, dtype=torch.bfloat16):
            return encoder().to(device)(numbers(6, 16).to(device))


def exact(tensor):
    """The same numbers by way of Python's floats."""
    return torch.tensor(tensor.tolist(), dtype=torch.float64)


def compare_arrays(measure, array, reference):
    """Element by element relative to each value, so that small ones count as well."""
    result = torch.from_numpy(np.asarray(array, dtype=np.float64))
    scale = reference.abs().clamp(min=1e-30)
    measure.compare(result / scale, reference / scale, tolerance=1e-6)


def is_weights(config):
    return config.endswith("weights")


@pytest.mark.reproduces
def test_reproduces(config, device):
    tensor_of(config, device).cpu().numpy()


@pytest.mark.workaround("float")
def test_float(config, device, measure):
    tensor = tensor_of(config, device)
    compare_arrays(measure, measure(lambda: tensor.float().cpu().numpy()), exact(tensor))


@pytest.mark.workaround("float32-model")
def test_float32_model(config, device, measure):
    only_for(config, "bf16-model", "autocast")

    def step():
        with torch.no_grad():
            return encoder().to(device)(numbers(6, 16).to(device)).cpu().numpy()

    with torch.no_grad():
        reference = encoder().double()(numbers(6, 16).double())
    measure.compare(torch.from_numpy(measure(step)), reference, tolerance=1e-5)


@pytest.mark.workaround("raw-bits")
def test_raw_bits(config, device, measure):
    """Written to a file and read again; the bits of bfloat16 are also decoded without torch."""
    only_for(config, "bf16-weights", "fp8-weights")
    tensor = tensor_of(config, device)
    bits = torch.int16 if config == "bf16-weights" else torch.uint8

    def step():
        file = io.BytesIO()
        np.save(file, tensor.view(bits).cpu().numpy())
        assert file.tell() < tensor.numel() * tensor.element_size() + 200
        file.seek(0)
        return np.load(file)

    array = measure(step)
    compare_arrays(measure, torch.from_numpy(array).view(tensor.dtype).tolist(), exact(tensor))
    if config == "bf16-weights":
        decoded = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        compare_arrays(measure, decoded, exact(tensor))


@pytest.mark.requires(ml_dtypes=">=0.2")
@pytest.mark.workaround("ml-dtypes")
def test_ml_dtypes(config, device, measure):
    only_for(config, "bf16-model", "bf16-weights", "fp8-weights")
    import ml_dtypes

    tensor = tensor_of(config, device)
    bits, kind = (
        (torch.uint8, ml_dtypes.float8_e4m3fn) if config == "fp8-weights" else (torch.int16, ml_dtypes.bfloat16)
    )
    array = measure(lambda: tensor.view(bits).cpu().numpy().view(kind))
    assert array.dtype == kind
    compare_arrays(measure, array.astype(np.float32), exact(tensor))


@pytest.mark.dead_end("copies-and-force")
def test_copies_and_force(config, device):
    tensor_of(config, device).detach().clone().cpu().numpy(force=True)


@pytest.mark.dead_end("type-for-numpy")
def test_type_for_numpy(config, device):
    np.array(tensor_of(config, device).cpu(), dtype=np.float32)


@pytest.mark.dead_end("autocast-off-at-the-conversion")
def test_autocast_off_at_the_conversion(config, device):
    only_for(config, "autocast")
    output = tensor_of(config, device)
    with torch.autocast(device, enabled=False):
        output.cpu().numpy()


@pytest.mark.dead_end("half")
def test_half(config, device, measure):
    only_for(config, "bf16-model", "autocast", "bf16-weights")
    tensor = tensor_of(config, device)
    compare_arrays(measure, tensor.half().cpu().numpy(), exact(tensor))
