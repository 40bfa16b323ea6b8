# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.7"]
# ///
"""Backends of torch.compile that raise, and what is left of the program then.

Three backends fail on the same small model: one whose package is not installed, one written by the user that lacks an
operation, and Inductor with a user's graph pass that lacks it too. The model is made of matrix products and a matrix
exponential, which Inductor hands to ready-made kernels, so no host compiler is needed.
"""

import operator

import pytest
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

pytestmark = pytest.mark.requires(torch=">=2.7")

TOLERANCE = 1e-4


def awkward(x):
    return torch.linalg.matrix_exp(x)


def model(x, weight):
    return awkward(x @ weight) @ weight


def inputs(device, dtype=torch.float32):
    values = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [matrix.to(device, dtype) for matrix in values / 16 + torch.eye(16)]


def backend_that_knows(*operations):
    """A backend with a table of operations and nothing else."""
    kernels = {operation: operation for operation in operations}

    def own_backend(graph, _example_inputs):
        for node in graph.graph.nodes:
            if node.op == "call_function":
                node.target = kernels[node.target]
        graph.recompile()
        return graph

    return own_backend


class CountCost(CustomGraphPass):
    """A pass over Inductor's graph that sums up the cost of its operations."""

    def __init__(self, **more):
        self.cost = {"mm": 2, "getitem": 0, **more}

    def __call__(self, graph):
        self.total = sum(self.cost[name_of(node.target)] for node in graph.nodes if node.op == "call_function")

    def uuid(self):
        return f"cost of {len(self.cost)} operations"


def name_of(target):
    """`mm` of the operator `aten.mm.default`."""
    return str(target).split(".")[1] if isinstance(target, torch._ops.OpOverload) else target.__name__


def run(config, device, function=model, repaired=False, **options):
    """Compile and call; `repaired` fills the gap that the inner error names."""
    if config == "inductor-pass-fails":
        more = {"linalg_matrix_exp": 3} if repaired else {}
        with torch._inductor.config.patch(post_grad_custom_post_pass=CountCost(**more)):
            return torch.compile(function, **options)(*inputs(device))
    if config == "own-backend-lacks-operation":
        more = [torch.linalg.matrix_exp] if repaired else []
        backend = backend_that_knows(operator.matmul, *more)
        return torch.compile(function, **{"backend": backend, **options})(*inputs(device))
    return torch.compile(function, **{"backend": "tvm", **options})(*inputs(device))


def check(measure, result, device):
    measure.compare(result, model(*inputs(device, torch.float64)), tolerance=TOLERANCE)


@pytest.fixture(params=["backend-package-missing", "own-backend-lacks-operation", "inductor-pass-fails"])
def config(request):
    torch._dynamo.reset()
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    run(config, device, fullgraph=True)


@pytest.mark.workaround("read-the-inner-error")
def test_read_the_inner_error(config, device, measure):
    if config == "backend-package-missing":
        pytest.skip("what the inner error asks for is to install another compiler")
    with pytest.raises(Exception, match=r"KeyError: .*matrix_exp") as failure:
        run(config, device)
    assert isinstance(failure.value.inner_exception, KeyError)
    torch._dynamo.reset()
    check(measure, run(config, device, repaired=True), device)


@pytest.mark.workaround("choose-available-backend")
def test_choose_available_backend(config, device, measure):
    if config == "inductor-pass-fails":
        pytest.skip("Inductor itself is available, a pass in it fails")
    assert "inductor" in torch.compiler.list_backends()
    check(measure, run(config, device, backend="inductor"), device)


@pytest.mark.workaround("backend-without-inductor")
def test_backend_without_inductor(config, device, measure):
    check(measure, run(config, device, backend="aot_eager"), device)


@pytest.mark.workaround("exclude-the-part")
def test_exclude_the_part(config, device, measure):
    if config == "backend-package-missing":
        pytest.skip("this backend compiles no part at all")
    left_out = torch.compiler.disable(awkward)
    check(measure, run(config, device, function=lambda x, weight: left_out(x @ weight) @ weight), device)


@pytest.mark.workaround("fall-back-to-eager")
def test_fall_back_to_eager(config, device, measure):
    with torch._dynamo.config.patch(suppress_errors=True):
        check(measure, run(config, device), device)


@pytest.mark.workaround("force-eager")
def test_force_eager(config, device, measure):
    with torch.compiler.set_stance("force_eager"):
        check(measure, run(config, device, fullgraph=True), device)


@pytest.mark.dead_end("suppress-under-fullgraph")
def test_suppress_under_fullgraph(config, device):
    with torch._dynamo.config.patch(suppress_errors=True):
        run(config, device, fullgraph=True)


@pytest.mark.dead_end("drop-fullgraph")
def test_drop_fullgraph(config, device):
    run(config, device, fullgraph=False)


@pytest.mark.dead_end("dynamic-shapes")
def test_dynamic_shapes(config, device):
    run(config, device, dynamic=True)


@pytest.mark.dead_end("reset-and-retry")
def test_reset_and_retry(config, device):
    with pytest.raises(Exception, match=r"raised:|KeyError"):
        run(config, device)
    torch._dynamo.reset()
    run(config, device)
