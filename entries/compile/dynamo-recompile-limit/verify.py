# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.6"]
# ///
"""One compiled function that is compiled anew for each of more than eight variants of its inputs.

Four ways to get there: batches of every length compiled as fixed, one optimizer step for parameters of every shape, a
warm-up that counts its steps in an attribute, and a decoder whose layers pick their cache by an index of their own.
All are compiled with fullgraph=True, where the limit is an error and not only a warning with uncompiled calls after it.
"""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.6")

VARIANTS = 12
"""Calls of each program; the limit is 8 unless it is raised."""
STRICT = {"fullgraph": True, "backend": "eager"}
TOLERANCE = 1e-5


class WarmUp(nn.Module):
    """A layer whose output is scaled up over its first steps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        return self.layer(x) * (self.steps / VARIANTS)


class CountedInTensor(WarmUp):
    def __init__(self):
        super().__init__()
        del self.steps
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps.add_(1)
        return self.layer(x) * (self.steps / VARIANTS)


class Block(nn.Module):
    """A decoder layer that knows its place."""

    def __init__(self, index):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.index = index

    def forward(self, x, cache):
        return torch.tanh(self.layer(x)) + cache[self.index]


class BlockWithoutIndex(Block):
    def forward(self, x, cached):
        return torch.tanh(self.layer(x)) + cached


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_weights(scores):
    return scores.softmax(-1)


@torch.no_grad()
def sgd_step(parameter, gradient):
    parameter.sub_(gradient, alpha=0.1)
    return parameter


def no_change(x):
    return x


def lengths(device, dtype, compiled, prepare=no_change):
    batches = [random(4, length).to(device, dtype) for length in range(2, 2 + VARIANTS)]
    return [compiled(prepare(batch)) for batch in batches]


def parameters(device, dtype, compiled, prepare=no_change):
    weights = [nn.Parameter(random(rows, 3).to(device, dtype)) for rows in range(2, 2 + VARIANTS)]
    return [compiled(prepare(weight), random(*weight.shape, seed=1).to(device, dtype)) for weight in weights]


def steps(device, dtype, compile_module, kind=WarmUp):
    torch.manual_seed(0)
    module = compile_module(kind().to(device, dtype))
    return [module(random(2, 8, seed=step).to(device, dtype)) for step in range(VARIANTS)]


def decoder(device, dtype, kind=Block):
    torch.manual_seed(0)
    return nn.ModuleList(kind(index) for index in range(VARIANTS)).to(device, dtype)


def layers(device, dtype, call, blocks=None):
    """One pass through the decoder; `call(block, x, cache)` runs one layer."""
    blocks = decoder(device, dtype) if blocks is None else blocks
    return decode(blocks, *decoder_inputs(device, dtype), call)


def decoder_inputs(device, dtype):
    return random(2, 8).to(device, dtype), list(random(VARIANTS, 2, 8, seed=1).to(device, dtype))


def decode(blocks, x, cache, call):
    for block in blocks:
        x = call(block, x, cache)
    return x


def run_block(block, x, cache):
    return block(x, cache)


def run(config, device, **options):
    """The broken program, with changed options of torch.compile."""
    options = {**STRICT, **options}
    if config == "length-compiled-as-fixed":
        return lengths(device, torch.float32, torch.compile(attention_weights, **{"dynamic": False, **options}))
    if config == "parameter-shapes":
        return parameters(device, torch.float32, torch.compile(sgd_step, **options))
    if config == "step-counter":
        return steps(device, torch.float32, lambda module: torch.compile(module, **options))
    return layers(device, torch.float32, torch.compile(run_block, **options))


def reference(config):
    if config == "length-compiled-as-fixed":
        return lengths("cpu", torch.float64, attention_weights)
    if config == "parameter-shapes":
        return parameters("cpu", torch.float64, sgd_step)
    if config == "step-counter":
        return steps("cpu", torch.float64, no_change)
    return layers("cpu", torch.float64, run_block)


def check(measure, config, program):
    measure.compare(measure(program), reference(config), tolerance=TOLERANCE)


def only(config, *programs):
    if config not in programs:
        pytest.skip(f"cures another cause than {config}")


@pytest.fixture(params=["length-compiled-as-fixed", "parameter-shapes", "step-counter", "layer-index"])
def config(request):
    torch._dynamo.reset()
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    run(config, device)


@pytest.mark.workaround("mark-dynamic")
def test_mark_dynamic(config, device, measure):
    only(config, "length-compiled-as-fixed")

    def mark(batch):
        torch._dynamo.mark_dynamic(batch, 1)
        return batch

    compiled = torch.compile(attention_weights, dynamic=False, **STRICT)
    check(measure, config, lambda: lengths(device, torch.float32, compiled, mark))


@pytest.mark.workaround("automatic-dynamic")
def test_automatic_dynamic(config, device, measure):
    only(config, "length-compiled-as-fixed")
    check(measure, config, lambda: run(config, device, dynamic=None))


@pytest.mark.workaround("pad-to-few-lengths")
def test_pad_to_few_lengths(config, device, measure):
    only(config, "length-compiled-as-fixed")
    compiled = torch.compile(attention_weights, dynamic=False, **STRICT)

    def padded(scores):
        length = scores.shape[1]
        wider = nn.functional.pad(scores, (0, -length % 8), value=float("-inf"))
        return compiled(wider)[:, :length]

    check(measure, config, lambda: lengths(device, torch.float32, padded))


@pytest.mark.workaround("dynamic-parameters")
def test_dynamic_parameters(config, device, measure):
    only(config, "parameter-shapes")
    with torch._dynamo.config.patch(force_parameter_static_shapes=False):
        check(measure, config, lambda: run(config, device))


@pytest.mark.workaround("detach-parameters")
def test_detach_parameters(config, device, measure):
    only(config, "parameter-shapes")
    compiled = torch.compile(sgd_step, **STRICT)
    check(measure, config, lambda: parameters(device, torch.float32, compiled, torch.Tensor.detach))


@pytest.mark.workaround("numbers-as-tensors")
def test_numbers_as_tensors(config, device, measure):
    only(config, "step-counter")

    def program():
        return steps(device, torch.float32, lambda module: torch.compile(module, **STRICT), CountedInTensor)

    check(measure, config, program)


@pytest.mark.workaround("unspecialised-attributes")
def test_unspecialised_attributes(config, device, measure):
    only(config, "step-counter")
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        check(measure, config, lambda: run(config, device))


@pytest.mark.workaround("pass-the-item")
def test_pass_the_item(config, device, measure):
    only(config, "layer-index")
    compiled = torch.compile(lambda block, x, cached: block(x, cached), **STRICT)

    def program():
        blocks = decoder(device, torch.float32, BlockWithoutIndex)
        return layers(device, torch.float32, lambda block, x, cache: compiled(block, x, cache[block.index]), blocks)

    check(measure, config, program)


@pytest.mark.workaround("compile-the-whole-model")
def test_compile_the_whole_model(config, device, measure):
    only(config, "layer-index")
    blocks = decoder(device, torch.float32)
    compiled = torch.compile(lambda x, cache: decode(blocks, x, cache, run_block), **STRICT)
    check(measure, config, lambda: compiled(*decoder_inputs(device, torch.float32)))


@pytest.mark.workaround("raise-the-limit")
def test_raise_the_limit(config, device, measure):
    only(config, "layer-index", "parameter-shapes")
    with torch._dynamo.config.patch(recompile_limit=2 * VARIANTS):
        check(measure, config, lambda: run(config, device))


@pytest.mark.dead_end("slightly-higher-limit")
def test_slightly_higher_limit(config, device):
    with torch._dynamo.config.patch(recompile_limit=VARIANTS - 1):
        run(config, device)


@pytest.mark.dead_end("accumulated-limit")
def test_accumulated_limit(config, device):
    with torch._dynamo.config.patch(accumulated_recompile_limit=1024):
        run(config, device)


@pytest.mark.dead_end("dynamic-true")
def test_dynamic_true(config, device):
    if config == "length-compiled-as-fixed":
        pytest.skip("lengths of plain tensors are what dynamic=True is for")
    run(config, device, dynamic=True)


@pytest.mark.dead_end("compile-each-instance")
def test_compile_each_instance(config, device):
    only(config, "layer-index")
    blocks = decoder(device, torch.float32)
    for block in blocks:
        block.compile(**STRICT)
    layers(device, torch.float32, run_block, blocks)


@pytest.mark.dead_end("suppress-errors")
def test_suppress_errors(config, device):
    with torch._dynamo.config.patch(suppress_errors=True):
        run(config, device)
