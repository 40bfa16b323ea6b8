# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""The caching allocator cannot get a block. A cap on this process's share stands in for a small GPU."""

import gc
import inspect

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.requires(torch=">=2.1", device="cuda")

MIB = 2**20
WIDTH, DEPTH, BATCH = 64, 24, 65_536
"""One activation of the whole batch is 16 MiB; a training step keeps two of them per block, 768 MiB in all."""
CAP = 704 * MIB
"""Bytes this process may use: too few for the step as it stands, enough for each of the fixes."""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs):
        return inputs + nn.functional.gelu(self.linear(inputs))


def build(device):
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(DEPTH))).to(device)


def batch(device):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(2, BATCH, WIDTH, generator=generator)
    return inputs.to(device), targets.to(device)


def loss_of(model, inputs, targets):
    return nn.functional.mse_loss(model(inputs), targets)


def gradients(model):
    return torch.cat([parameter.grad.double().flatten().cpu() for parameter in model.parameters()])


def train(model, inputs, targets, pieces=1):
    """One step's gradients, from the whole batch at once or accumulated over equal pieces of it."""
    model.zero_grad()
    for part, wanted in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True):
        (loss_of(model, part, wanted) / pieces).backward()
    return gradients(model)


def evaluate(model, inputs, targets, before=lambda: None, pieces=8):
    """Mean loss over two passes of small pieces. The list keeps the graph of every piece alive."""
    losses = []
    for part, wanted in zip(inputs.chunk(pieces) * 2, targets.chunk(pieces) * 2, strict=True):
        before()
        losses.append(loss_of(model, part, wanted))
    return torch.stack(losses).mean()


def grow(device, cap, before=lambda: None):
    """Shapes that grow: a cached 400 MiB block is cut for 40 MiB, and 420 MiB no longer fit beside the rest."""
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(device).total_memory)
    first = torch.zeros(400 * 2**20, dtype=torch.uint8, device=device)
    del first
    kept = torch.full((40 * 2**20,), 3, dtype=torch.uint8, device=device)
    before()
    large = torch.full((420 * 2**20,), 7, dtype=torch.uint8, device=device)
    assert (int(kept.max()), int(large.min()), int(large.max())) == (3, 7, 7)


def in_a_fresh_process(run_script, device, settings="", before=""):
    """Run `grow`; allocator settings are read once, when a process first asks for memory."""
    program = f"import gc\nimport torch\n{inspect.getsource(grow)}\ngrow({device!r}, {800 * MIB}{before})\n"
    # The variable lost its `CUDA` in torch 2.9; both names are set.
    run_script(program, env={"PYTORCH_CUDA_ALLOC_CONF": settings, "PYTORCH_ALLOC_CONF": settings})


def broken(config, device, run_script):
    if config == "fragmented":
        in_a_fresh_process(run_script, device)
    elif config == "evaluate":
        evaluate(build(device), *batch(device))
    else:
        train(build(device), *batch(device))


def exact_gradients():
    """Gradients of the whole batch in float64, where memory is not scarce."""
    inputs, targets = (part.double() for part in batch("cpu"))
    return train(build("cpu").double(), inputs, targets, pieces=8)


def exact_loss():
    with torch.no_grad():
        inputs, targets = (part.double() for part in batch("cpu"))
        return evaluate(build("cpu").double(), inputs, targets)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"addresses another cause than {config}")


@pytest.fixture(params=["train", "evaluate", "fragmented"])
def config(request):
    """What fills the memory: activations of one big batch, graphs an evaluation loop keeps, or a cut cached block."""
    return request.param


@pytest.fixture
def small_gpu(device):
    """Allow this process `CAP` bytes of the GPU while an arm runs."""
    torch.cuda.set_per_process_memory_fraction(CAP / torch.cuda.get_device_properties(device).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.reproduces
def test_reproduces(config, device, small_gpu, run_script):
    broken(config, device, run_script)


@pytest.mark.workaround("accumulate-gradients")
def test_accumulate_gradients(config, device, small_gpu, measure):
    only_for(config, "train")
    model, (inputs, targets) = build(device), batch(device)
    step = measure(lambda: train(model, inputs, targets, pieces=8))
    measure.compare(step, exact_gradients(), tolerance=1e-3)


@pytest.mark.workaround("gradient-checkpointing")
def test_gradient_checkpointing(config, device, small_gpu, measure):
    only_for(config, "train")

    class Checkpointed(nn.Sequential):
        def forward(self, inputs):
            for block in self:
                inputs = checkpoint(block, inputs, use_reentrant=False)
            return inputs

    model, (inputs, targets) = Checkpointed(*build(device)), batch(device)
    measure.compare(measure(lambda: train(model, inputs, targets)), exact_gradients(), tolerance=1e-3)


@pytest.mark.workaround("bf16-autocast")
def test_bf16_autocast(config, device, small_gpu, measure):
    only_for(config, "train")
    model, (inputs, targets) = build(device), batch(device)

    def step():
        model.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(model, inputs, targets)
        loss.backward()
        return gradients(model)

    measure.compare(measure(step), exact_gradients(), tolerance=0.05)


@pytest.mark.workaround("no-grad-for-evaluation")
def test_no_grad_for_evaluation(config, device, small_gpu, measure):
    only_for(config, "evaluate")
    model, (inputs, targets) = build(device), batch(device)

    def step():
        with torch.no_grad():
            return evaluate(model, inputs, targets)

    measure.compare(measure(step), exact_loss(), tolerance=1e-4)


@pytest.mark.workaround("keep-numbers-not-graphs")
def test_keep_numbers_not_graphs(config, device, small_gpu, measure):
    only_for(config, "evaluate")
    model, (inputs, targets) = build(device), batch(device)

    def step(pieces=8):
        losses = []
        for part, wanted in zip(inputs.chunk(pieces) * 2, targets.chunk(pieces) * 2, strict=True):
            losses.append(loss_of(model, part, wanted).item())
        return torch.tensor(losses).mean()

    measure.compare(measure(step), exact_loss(), tolerance=1e-4)


@pytest.mark.workaround("expandable-segments")
def test_expandable_segments(config, device, run_script):
    only_for(config, "fragmented")
    in_a_fresh_process(run_script, device, settings="expandable_segments:True")


@pytest.mark.dead_end("empty-cache")
def test_empty_cache(config, device, small_gpu, run_script):
    if config == "fragmented":
        in_a_fresh_process(run_script, device, before=", before=torch.cuda.empty_cache")
    elif config == "evaluate":
        evaluate(build(device), *batch(device), before=torch.cuda.empty_cache)
    else:
        model, (inputs, targets) = build(device), batch(device)
        torch.cuda.empty_cache()
        train(model, inputs, targets)


@pytest.mark.dead_end("garbage-collection")
def test_garbage_collection(config, device, small_gpu, run_script):
    if config == "fragmented":
        in_a_fresh_process(run_script, device, before=", before=gc.collect")
    elif config == "evaluate":
        evaluate(build(device), *batch(device), before=gc.collect)
    else:
        model, (inputs, targets) = build(device), batch(device)
        gc.collect()
        train(model, inputs, targets)


@pytest.mark.dead_end("fewer-training-samples")
def test_fewer_training_samples(config, device, small_gpu):
    only_for(config, "train")
    inputs, targets = batch("cpu")
    everything = torch.utils.data.TensorDataset(inputs.repeat(2, 1), targets.repeat(2, 1))
    half = torch.utils.data.Subset(everything, range(BATCH))
    model = build(device)
    for part, wanted in torch.utils.data.DataLoader(half, batch_sampler=[range(BATCH)]):
        train(model, part.to(device), wanted.to(device))


@pytest.mark.dead_end("max-split-size")
def test_max_split_size(config, device, run_script):
    only_for(config, "train")
    parts = "\n\n".join(inspect.getsource(part) for part in (Block, build, batch, loss_of, gradients, train))
    program = f"""import torch
from torch import nn

WIDTH, DEPTH, BATCH = {WIDTH}, {DEPTH}, {BATCH}

{parts}

torch.cuda.set_per_process_memory_fraction({CAP} / torch.cuda.get_device_properties({device!r}).total_memory)
train(build({device!r}), *batch({device!r}))
"""
    settings = "max_split_size_mb:128"
    run_script(program, env={"PYTORCH_CUDA_ALLOC_CONF": settings, "PYTORCH_ALLOC_CONF": settings})
