# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.6"]
# ///
"""An operation that refuses fake tensors while torch.compile traces.

Two models that are wrong with and without compilation: a layer of the wrong width, and a tensor-parallel slice that
holds no whole number of heads. And two with a custom operation that NumPy computes: one that never said which shape it
returns, and one that said it wrongly.
"""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.6")

BACKEND = "aot_eager"
TOLERANCE = 1e-5
TOKENS, HIDDEN, HEAD, RANKS = 6, 48, 12, 8
"""Four heads of 12 do not divide among 8 ranks, each of which gets 6 columns."""


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classifier(device, dtype, width=HIDDEN):
    """A head for `width` features behind a layer that returns 48."""
    torch.manual_seed(0)
    body = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
    head = nn.Linear(width, 4, dtype=torch.float64)
    return nn.Sequential(body, nn.Tanh(), head).to(device, dtype)


def normalize_heads(columns):
    """What every rank does with its columns of the projection."""
    return nn.functional.normalize(columns.view(TOKENS, -1, HEAD), dim=-1)


def numpy_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().cpu().numpy() @ weight.detach().cpu().numpy().T).to(x.device)


def product_operation(fake=None):
    """`numpy_product` as a custom operation, with the given rule for the shape it returns."""
    operation = torch.library.custom_op(
        "mylib::product", numpy_product, mutates_args=(), schema="(Tensor x, Tensor w) -> Tensor"
    )
    if fake is not None:
        operation.register_fake(fake)
    return lambda x, weight: operation(x, weight) @ weight


def right_shape(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


def wrong_shape(x, _weight):
    return torch.empty_like(x)


def inputs(config, device, dtype=torch.float32):
    """Arguments of one call, by configuration."""
    hidden = random(TOKENS, HIDDEN).to(device, dtype)
    if config == "width-does-not-fit":
        return (hidden,)
    if config == "slice-does-not-divide":
        return (hidden[:, : HIDDEN // RANKS].contiguous(),)
    return hidden, random(4, HIDDEN, seed=1).to(device, dtype)


def broken(config, device):
    if config == "width-does-not-fit":
        return classifier(device, torch.float32, width=HIDDEN - 1)
    if config == "slice-does-not-divide":
        return normalize_heads
    return product_operation(wrong_shape if config == "fake-of-wrong-shape" else None)


def run(config, device, **options):
    return torch.compile(broken(config, device), **options)(*inputs(config, device))


def is_custom(config):
    return config in ("no-fake", "fake-of-wrong-shape")


@pytest.fixture(params=["width-does-not-fit", "slice-does-not-divide", "no-fake", "fake-of-wrong-shape"])
def config(request):
    torch._dynamo.reset()
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    run(config, device)


@pytest.mark.workaround("debug-without-compile")
def test_debug_without_compile(config, device, measure):
    if is_custom(config):
        pytest.skip("uncompiled it works, so there is no other error to see")
    ordinary = "mat1 and mat2 shapes|is invalid for input of size"
    with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError, match=ordinary):
        run(config, device)
    if config == "width-does-not-fit":
        arguments, repaired = inputs(config, device), classifier(device, torch.float32)
        wanted = classifier("cpu", torch.float64)(*inputs(config, "cpu", torch.float64))
    else:
        arguments, repaired = [random(TOKENS, HIDDEN).to(device, torch.float32)], normalize_heads
        wanted = normalize_heads(random(TOKENS, HIDDEN))
    compiled = torch.compile(repaired, fullgraph=True, backend=BACKEND)
    measure.compare(measure(lambda: compiled(*arguments)), wanted, tolerance=TOLERANCE)


@pytest.mark.workaround("change-parallel-size")
def test_change_parallel_size(config, device, measure):
    if config != "slice-does-not-divide":
        pytest.skip("nothing is sharded")
    slices = random(TOKENS, HIDDEN).to(device, torch.float32).chunk(HIDDEN // HEAD, dim=1)
    compiled = torch.compile(normalize_heads, fullgraph=True, backend=BACKEND)
    ranks = measure(lambda: [compiled(columns.contiguous()) for columns in slices])
    measure.compare(torch.cat(ranks, dim=1), normalize_heads(random(TOKENS, HIDDEN)), tolerance=TOLERANCE)


@pytest.mark.workaround("register-fake")
def test_register_fake(config, device, measure):
    if not is_custom(config):
        pytest.skip("torch's own operations have one")
    compiled = torch.compile(product_operation(right_shape), fullgraph=True, backend=BACKEND)
    result = measure(lambda: compiled(*inputs(config, device)))
    measure.compare(result, reference(config), tolerance=TOLERANCE)


@pytest.mark.workaround("leave-the-operation-out")
def test_leave_the_operation_out(config, device, measure):
    if not is_custom(config):
        pytest.skip("the operation fails uncompiled as well")
    operation = torch.compiler.disable(broken(config, device))
    compiled = torch.compile(lambda x, weight: operation(x, weight) + 0.0, backend=BACKEND)
    result = measure(lambda: compiled(*inputs(config, device)))
    measure.compare(result, reference(config), tolerance=TOLERANCE)


def reference(config):
    x, weight = inputs(config, "cpu", torch.float64)
    return x @ weight.T @ weight


@pytest.mark.dead_end("suppress-errors")
def test_suppress_errors(config, device):
    if is_custom(config):
        pytest.skip("uncompiled this operation works")
    with torch._dynamo.config.patch(suppress_errors=True):
        run(config, device)


@pytest.mark.dead_end("another-backend")
def test_another_backend(config, device):
    run(config, device, backend="eager")


@pytest.mark.dead_end("dynamic-true")
def test_dynamic_true(config, device):
    run(config, device, dynamic=True)


@pytest.mark.dead_end("contiguous-inputs")
def test_contiguous_inputs(config, device):
    compiled = torch.compile(broken(config, device))
    compiled(*[tensor.clone().contiguous() for tensor in inputs(config, device)])
