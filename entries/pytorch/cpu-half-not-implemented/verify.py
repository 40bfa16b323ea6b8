# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.0"]
# ///
"""float16 tensors on the CPU, in operations that have no float16 kernel there.

Each configuration is one such operation on the output of a float16 model: the decompositions of merging and
quantizing, distances to a codebook, and two losses, which no release so far computes in float16 on the CPU; and the
plain linear layer, which releases before 2.1 do not.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytestmark = pytest.mark.requires(torch=">=2.0")

ROWS, WIDTH = 12, 8


@pytest.fixture(
    params=[
        "cholesky",
        "svd",
        "codebook-distance",
        "ctc-loss",
        "margin-loss",
        pytest.param("linear-before-2.1", marks=pytest.mark.requires(torch="<2.1")),
    ]
)
def config(request) -> str:
    return request.param


def features(dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """What the model in front of the operation gives; the same numbers in every type."""
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).half().to(dtype)


def operation(config: str, rows: torch.Tensor) -> torch.Tensor:
    if config == "cholesky":
        gram = rows.T @ rows
        return torch.linalg.cholesky(gram + torch.eye(WIDTH, dtype=gram.dtype, device=gram.device))
    if config == "svd":
        return torch.linalg.svd(rows)[1]
    if config == "codebook-distance":
        return torch.cdist(rows, rows[:4])
    if config == "margin-loss":
        return functional.multi_margin_loss(rows, labels(rows))
    if config == "ctc-loss":
        scores = rows.log_softmax(dim=-1).unsqueeze(1)
        return functional.ctc_loss(scores, torch.tensor([[1, 2, 3]]), torch.tensor([ROWS]), torch.tensor([3]))
    return functional.linear(rows, torch.ones(4, WIDTH, dtype=rows.dtype, device=rows.device) / WIDTH)


def labels(rows: torch.Tensor) -> torch.Tensor:
    return torch.arange(ROWS, device=rows.device) % WIDTH


def reference(config: str) -> torch.Tensor:
    return operation(config, features(torch.float64))


@pytest.mark.reproduces
def test_reproduces(config):
    operation(config, features())


@pytest.mark.workaround("float32-on-cpu")
def test_float32_on_cpu(config, measure):
    result = measure(lambda: operation(config, features(torch.float32)))
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.workaround("cast-around-the-operation")
def test_cast_around_the_operation(config, measure):
    rows = features()
    result = measure(lambda: operation(config, rows.float()).to(rows.dtype))
    assert result.dtype == torch.float16
    measure.compare(result, reference(config), tolerance=0.005)


@pytest.mark.workaround("autocast-on-cpu")
def test_autocast_on_cpu(config, measure):
    rows = features()

    def step() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return operation(config, rows)

    measure.compare(measure(step), reference(config), tolerance=0.02)


@pytest.mark.workaround("bfloat16-on-cpu")
def test_bfloat16_on_cpu(config, measure):
    if config != "linear-before-2.1":
        pytest.skip("this operation has no bfloat16 kernel either, see the dead end")
    result = measure(lambda: operation(config, features().to(torch.bfloat16)))
    measure.compare(result, reference(config), tolerance=0.02)


@pytest.mark.workaround("move-to-gpu")
@pytest.mark.requires(device="cuda")
def test_move_to_gpu(config, device, measure):
    if config not in ("margin-loss", "linear-before-2.1"):
        pytest.skip("this operation has no float16 kernel on the GPU either")
    result = measure(lambda: operation(config, features().to(device)))
    measure.compare(result, reference(config), tolerance=0.01)


@pytest.mark.dead_end("bfloat16-for-a-decomposition")
def test_bfloat16_for_a_decomposition(config):
    if config == "linear-before-2.1":
        pytest.skip("matrix products do have bfloat16 kernels")
    operation(config, features().to(torch.bfloat16))


@pytest.mark.dead_end("default-dtype")
def test_default_dtype(config):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        operation(config, features())
    finally:
        torch.set_default_dtype(before)


@pytest.mark.dead_end("cast-the-result")
def test_cast_the_result(config):
    operation(config, features()).float()
