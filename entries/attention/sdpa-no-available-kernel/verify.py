# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.3"]
# ///
"""The program allows only attention kernels that cannot take its inputs.

`three-dimensions`, `learned-bias`, `dropout` (on the CPU), `explicit-mask` and `float32` (both on CUDA) allow flash
attention alone and give it what it refuses; `all-switched-off` has the backends switched off one by one.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.requires(torch=">=2.3")

HEADS, LENGTH, SIZE = 4, 16, 32
ON_CPU, ON_CUDA = pytest.mark.requires(device="cpu"), pytest.mark.requires(device="cuda", capability=(8, 0))


@pytest.fixture(
    params=[
        "three-dimensions",
        "learned-bias",
        "all-switched-off",
        pytest.param("dropout", marks=ON_CPU),
        pytest.param("explicit-mask", marks=ON_CUDA),
        pytest.param("float32", marks=ON_CUDA),
    ]
)
def config(request):
    """What flash attention cannot do, or that it may not."""
    return request.param


def states(device, dtype=torch.bfloat16):
    # Rounded first, so that every type holds the same numbers.
    numbers = torch.randn(3, 1, HEADS, LENGTH, SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    return tuple(numbers.to(device, dtype))


def causal_mask(device):
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=device).tril()


def learned_bias(device, dtype):
    numbers = torch.randn(1, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    return numbers.to(device, dtype).requires_grad_()


def call(config, device, prepare=lambda states: states, **changes):
    """The attention call as each program makes it."""
    inputs = states(device, torch.float32 if config == "float32" else torch.bfloat16)
    options = {}
    if config == "three-dimensions":
        inputs = tuple(part[0] for part in inputs)
    inputs = tuple(map(prepare, inputs))
    if config == "learned-bias":
        options = {"attn_mask": learned_bias(device, inputs[0].dtype)}
    elif config == "explicit-mask":
        options = {"attn_mask": causal_mask(device)}
    elif config == "dropout":
        options = {"dropout_p": 0.1}
    return scaled_dot_product_attention(*inputs, **{**options, **changes})


def switch(enabled):
    for backend in ("flash", "mem_efficient", "math", "cudnn"):
        if setter := getattr(torch.backends.cuda, f"enable_{backend}_sdp", None):
            setter(enabled)


def broken(config, device, prepare=lambda states: states):
    if config == "all-switched-off":
        switch(enabled=False)
        call(config, device, prepare)
    else:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            call(config, device, prepare)


def reference(config):
    """In float64, written out; without dropout."""
    query, key, value = states("cpu", torch.float64)
    scores = query @ key.transpose(-1, -2) / SIZE**0.5
    if config == "learned-bias":
        scores = scores + learned_bias("cpu", torch.float64)
    if config == "explicit-mask":
        scores = scores.masked_fill(~causal_mask("cpu"), -float("inf"))
    result = torch.softmax(scores, -1) @ value
    return (result[0] if config == "three-dimensions" else result).detach()


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"does not apply to {config}")


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("allow-all")
def test_allow_all(config, device, measure):
    allowed = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if config == "all-switched-off":
        switch(enabled=False)
    with sdpa_kernel(allowed):
        result = measure(lambda: call(config, device))
        if config == "dropout":
            torch.manual_seed(0)
            # Every tenth weight is dropped and the rest scaled up: right on average.
            result = torch.stack([call(config, device).double() for _ in range(400)]).mean(0)
    measure.compare(result, reference(config), tolerance=0.1 if config == "dropout" else 0.02)


@pytest.mark.workaround("switch-math-on")
def test_switch_math_on(config, device, measure):
    only_for(config, "all-switched-off")
    switch(enabled=False)
    torch.backends.cuda.enable_math_sdp(True)
    measure.compare(measure(lambda: call(config, device)), reference(config), tolerance=0.02)


@pytest.mark.workaround("four-dimensions")
def test_four_dimensions(config, device, measure):
    only_for(config, "three-dimensions")
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        result = measure(lambda: call(config, device, prepare=lambda states: states[None]))
    measure.compare(result[0], reference(config), tolerance=0.02)


@pytest.mark.workaround("fitting-inputs")
def test_fitting_inputs(config, device, measure):
    only_for(config, "float32", "explicit-mask", "dropout")
    changes = {
        "float32": {"prepare": lambda states: states.to(torch.bfloat16)},
        "explicit-mask": {"attn_mask": None, "is_causal": True},
        "dropout": {"dropout_p": 0.0},
    }[config]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        result = measure(lambda: call(config, device, **changes))
    measure.compare(result, reference(config), tolerance=0.02)


@pytest.mark.dead_end("switch-flash-on")
def test_switch_flash_on(config, device):
    if config == "all-switched-off":
        pytest.skip("here flash attention really is off")
    torch.backends.cuda.enable_flash_sdp(True)
    broken(config, device)


@pytest.mark.dead_end("contiguous-inputs")
def test_contiguous_inputs(config, device):
    broken(config, device, prepare=torch.Tensor.contiguous)


@pytest.mark.dead_end("half-precision")
def test_half_precision(config, device):
    if config == "float32":
        pytest.skip("here half precision is what is missing")
    broken(config, device, prepare=torch.Tensor.half)
