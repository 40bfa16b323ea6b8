# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""DDP compares the parameters of the ranks before it takes a model, and they differ.

Two ranks train a small convolutional classifier. The number of classes is that of each rank's own shard, one rank keeps
its weights channels last, one has a head more, or the ranks are not at the same place of the program.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.requires(torch=">=2.1")

RESULT = "result: "
LABELS = {0: [0, 2, 1, 0], 1: [3, 0, 3, 1]}


class Classifier(nn.Module):
    def __init__(self, classes, head=False):
        super().__init__()
        self.features, self.logits = nn.Conv2d(2, 4, 2), nn.Linear(16, classes)
        self.head = nn.Linear(16, 1) if head else None

    def forward(self, images):
        hidden = torch.relu(self.features(images)).flatten(1)
        extra = 0.0 if self.head is None else self.head(hidden).square().mean()
        return self.logits(hidden), extra


def build(classes, head=False):
    torch.manual_seed(0)
    return Classifier(classes, head)


def loss_of(model, rank, dtype=torch.float32, device="cpu"):
    images = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(rank)).to(device, dtype)
    logits, extra = model(images)
    return nn.functional.cross_entropy(logits, torch.tensor(LABELS[rank], device=device)) + extra


def number_of_classes(kind, from_all):
    mine = torch.tensor(max(LABELS[dist.get_rank()]) + 1)
    if from_all or kind != "classes-of-the-shard":
        dist.all_reduce(mine, op=dist.ReduceOp.MAX)
    return int(mine)


def describe_differences(model):
    """What `gathered` says of each rank, and this rank's part of it."""
    mine = {name: (tuple(p.shape), p.stride(), p.requires_grad) for name, p in model.named_parameters()}
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return sorted({name for name, _ in set(gathered[0].items()) ^ set(gathered[1].items())})


def gradients(
    kind,
    device,
    from_all=False,
    layout=None,
    same_model=False,
    same_place=False,
    look=False,
    seed=None,
    **ddp,
):
    """What a step under DDP leaves on this rank."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    rank = dist.get_rank()
    if seed is not None:
        torch.manual_seed(seed)
    model = build(number_of_classes(kind, from_all), head=kind == "head-on-one-rank" and (rank == 0 or same_model))
    model = model.to(device)
    if kind == "layout-of-one-rank" and (rank == 0 or layout):
        model = model.to(memory_format=layout or torch.channels_last)
    if kind == "other-place" and (rank == 1 or same_place):
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(2)]
        dist.all_gather(counts, torch.zeros(1, dtype=torch.long))
    if look:
        sys.stdout.write(f"differ: {describe_differences(model)}\n")
        sys.stdout.flush()
    wrapped = DistributedDataParallel(model, **ddp)  # it has to live until the backward pass is over
    loss_of(wrapped, rank, device=device).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def tell(found):
    # One call: lines of two ranks must not mix.
    sys.stdout.write(f"{RESULT}{json.dumps({name: g.double().tolist() for name, g in found.items()})}\n")
    sys.stdout.flush()
    dist.barrier()


def reference(kind):
    """The mean of both ranks' losses, in float64 in one process."""
    model = build(4, head=kind == "head-on-one-rank").double()
    (sum(loss_of(model, rank, torch.float64) for rank in range(2)) / 2).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def run(kind, device, run_script, **options):
    call = f"tell(gradients({kind!r}, {device!r}, **{options!r}))"
    return run_script(f"{Path(__file__).read_text()}\n\n{call}\n", nproc=2)


def check(measure, kind, printed):
    lines = [line.removeprefix(RESULT) for line in printed.splitlines() if line.startswith(RESULT)]
    assert len(lines) == 2, printed
    for line in lines:
        found = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in json.loads(line).items()}
        measure.compare(found, reference(kind), tolerance=1e-5)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["classes-of-the-shard", "layout-of-one-rank", "head-on-one-rank", "other-place"])
def config(request):
    """What differs between the ranks."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, run_script):
    run(config, device, run_script)


@pytest.mark.workaround("size-from-all-ranks")
def test_size_from_all_ranks(config, device, run_script, measure):
    only_for(config, "classes-of-the-shard")
    check(measure, config, run(config, device, run_script, from_all=True))


@pytest.mark.workaround("one-layout")
def test_one_layout(config, device, run_script, measure):
    only_for(config, "layout-of-one-rank")
    check(measure, config, run(config, device, run_script, layout=torch.contiguous_format))


@pytest.mark.workaround("same-model-everywhere")
def test_same_model_everywhere(config, device, run_script, measure):
    only_for(config, "head-on-one-rank")
    check(measure, config, run(config, device, run_script, same_model=True))


@pytest.mark.workaround("same-calls-everywhere")
def test_same_calls_everywhere(config, device, run_script, measure):
    only_for(config, "other-place")
    check(measure, config, run(config, device, run_script, same_place=True))


@pytest.mark.workaround("compare-by-name")
def test_compare_by_name(config, device, run_script):
    if config == "other-place":
        pytest.skip("the models do not differ")
    with pytest.raises(Exception) as failure:
        run(config, device, run_script, look=True)
    found = failure.value.output.partition("differ: ")[2].partition("\n")[0]
    expected = {
        "classes-of-the-shard": ["logits.bias", "logits.weight"],
        "layout-of-one-rank": ["features.weight"],
        "head-on-one-rank": ["head.bias", "head.weight"],
    }
    assert found == str(expected[config])


@pytest.mark.dead_end("find-unused-parameters")
def test_find_unused_parameters(config, device, run_script):
    only_for(config, "classes-of-the-shard", "head-on-one-rank")
    run(config, device, run_script, find_unused_parameters=True)


@pytest.mark.dead_end("same-seed")
def test_same_seed(config, device, run_script):
    only_for(config, "classes-of-the-shard")
    run(config, device, run_script, seed=0)


@pytest.mark.dead_end("no-check")
@pytest.mark.requires(torch=">=2.7")
def test_no_check(config, device, run_script, measure):
    if config == "other-place":
        pytest.skip("the models do not differ")
    check(measure, config, run(config, device, run_script, init_sync=False))
