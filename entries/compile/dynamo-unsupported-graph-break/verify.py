# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.7"]
# ///
"""Code that Dynamo cannot put into one graph, compiled where a graph break is an error.

Four small training steps: one clips by a norm it branches on, one prints its loss, one logs it, and one hands raw
addresses to a C function, as bindings of native libraries do. Dynamo alone decides here, so the fixes are compiled
with `aot_eager`, which spares the wait for a C++ or Triton compiler.
"""

import ctypes
import logging

import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.7")

BACKEND = "aot_eager"
TOLERANCE = 1e-5
log = logging.getLogger("training")


def clip_norm(x):
    if x.norm() > 1.0:
        x = x / x.norm()
    return 2 * x


def print_loss(x):
    loss = x.square().mean()
    print("loss", loss)
    return x * loss


def log_loss(x):
    loss = x.square().mean()
    log.info("loss %s", loss)
    return x * loss


def native_copy(x):
    """A C function that takes addresses of memory on the host."""
    source = x.detach().cpu().contiguous()
    target = torch.empty_like(source)
    ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel() * source.element_size())
    return target.to(x.device)


def call_native(x):
    return native_copy(2 * x) + 1


STEPS = {"branch-on-value": clip_norm, "print": print_loss, "logger": log_loss, "native-call": call_native}


@pytest.fixture(params=list(STEPS))
def config(request):
    torch._dynamo.reset()
    return request.param


def batches(device):
    """A small and a large batch, so that both sides of the branch are taken."""
    values = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    return [(values * scale).to(device) for scale in (0.01, 10.0)]


def only(config, *steps):
    if config not in steps:
        pytest.skip(f"cures another step than {config}")


def check(measure, compiled, config, device):
    """The compiled step against the same step, not compiled and in float64."""
    inputs = batches(device)
    outputs = measure(lambda: [compiled(x) for x in inputs])
    measure.compare(outputs, [STEPS[config](x.double()) for x in inputs], tolerance=TOLERANCE)


@pytest.mark.reproduces
def test_reproduces(config, device):
    torch.compile(STEPS[config], fullgraph=True)(batches(device)[0])


@pytest.mark.workaround("rewrite-the-branch")
def test_rewrite_the_branch(config, device, measure):
    only(config, "branch-on-value")

    @torch.compile(fullgraph=True, backend=BACKEND)
    def step(x):
        norm = x.norm()
        return 2 * torch.where(norm > 1.0, x / norm, x)

    check(measure, step, config, device)


@pytest.mark.workaround("torch-cond")
def test_torch_cond(config, device, measure):
    only(config, "branch-on-value")

    @torch.compile(fullgraph=True, backend=BACKEND)
    def step(x):
        return 2 * torch.cond(x.norm() > 1.0, lambda x: x / x.norm(), lambda x: x.clone(), (x,))

    check(measure, step, config, device)


@pytest.mark.workaround("move-side-effects-out")
def test_move_side_effects_out(config, device, measure):
    only(config, "print", "logger")

    @torch.compile(fullgraph=True, backend=BACKEND)
    def step(x):
        loss = x.square().mean()
        return x * loss, loss

    def train(x):
        output, loss = step(x)
        log.info("loss %s", loss.detach())
        return output

    check(measure, train, config, device)


@pytest.mark.workaround("let-dynamo-handle-logging")
def test_let_dynamo_handle_logging(config, device, measure, capsys):
    only(config, "print", "logger")
    with torch._dynamo.config.patch(reorderable_logging_functions={print}, ignore_logging_functions={log.info}):
        check(measure, torch.compile(STEPS[config], fullgraph=True, backend=BACKEND), config, device)
    assert ("loss" in capsys.readouterr().out) == (config == "print")


@pytest.mark.workaround("wrap-foreign-code")
def test_wrap_foreign_code(config, device, measure):
    only(config, "native-call")

    @torch.library.custom_op("mylib::copy", mutates_args=())
    def copy(x: torch.Tensor) -> torch.Tensor:
        return native_copy(x)

    @copy.register_fake
    def _(x):
        return torch.empty_like(x)

    check(measure, torch.compile(lambda x: copy(2 * x) + 1, fullgraph=True, backend=BACKEND), config, device)


@pytest.mark.workaround("allow-the-break")
def test_allow_the_break(config, device, measure):
    check(measure, torch.compile(STEPS[config], backend=BACKEND), config, device)


@pytest.mark.workaround("forbid-breaks-by-region")
@pytest.mark.requires(torch=">=2.9")
def test_forbid_breaks_by_region(config, device, measure):
    @torch.compile(backend=BACKEND)
    @torch._dynamo.error_on_graph_break(True)
    def step(x):
        with torch._dynamo.error_on_graph_break(False):
            y = STEPS[config](x)
        return y + 0.0

    check(measure, step, config, device)


@pytest.mark.dead_end("region-inside-fullgraph")
@pytest.mark.requires(torch=">=2.9")
def test_region_inside_fullgraph(config, device):
    def step(x):
        with torch._dynamo.error_on_graph_break(False):
            y = STEPS[config](x)
        return y + 0.0

    torch.compile(step, fullgraph=True)(batches(device)[0])


@pytest.mark.dead_end("disable-the-function")
def test_disable_the_function(config, device):
    eager = torch.compiler.disable(STEPS[config])
    torch.compile(lambda x: eager(x) + 0.0, fullgraph=True)(batches(device)[0])


@pytest.mark.dead_end("another-backend")
def test_another_backend(config, device):
    torch.compile(STEPS[config], fullgraph=True, backend="eager")(batches(device)[0])


@pytest.mark.dead_end("suppress-errors")
def test_suppress_errors(config, device):
    with torch._dynamo.config.patch(suppress_errors=True):
        torch.compile(STEPS[config], fullgraph=True)(batches(device)[0])


@pytest.mark.dead_end("allow-in-graph")
def test_allow_in_graph(config, device):
    if config != "native-call":
        pytest.skip("nobody puts a branch or a print into a graph unseen")

    @torch.compiler.allow_in_graph
    def opaque(x):
        return native_copy(x)

    torch.compile(lambda x: opaque(2 * x) + 1, fullgraph=True, backend=BACKEND)(batches(device)[0])
