# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A class index outside 0..C-1 reaches cross entropy.

On CUDA the assertion is printed by the kernel and the Python error comes later and elsewhere, so the broken programs
run in a process of their own, whose whole output counts. On the CPU the same labels raise an IndexError.
"""

import inspect

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

CLASSES = 5


def labels(case):
    """Labels as each broken data set delivers them."""
    generator = torch.Generator().manual_seed(1)
    right = torch.randint(0, CLASSES, (32,), generator=generator)
    right[:CLASSES] = torch.arange(CLASSES)
    if case == "one-based":
        return right + 1
    if case == "unlabelled-marked":
        return torch.where(torch.arange(32) % 4 == 3, -1, right)
    if case == "gapped-ids":
        return torch.tensor([2, 3, 5, 7, 11])[right]
    return right


def build(device, classes=CLASSES):
    torch.manual_seed(0)
    return nn.Linear(16, classes).to(device)


def features(device):
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(2)).to(device)


def loss_of(model, target, device, **options):
    return nn.functional.cross_entropy(model(features(device)), target.to(device), **options)


def broken(case, device, classes=CLASSES):
    loss = loss_of(build(device, classes), labels(case), device)
    loss.backward()
    print("loss", loss.item())


def program(case, device, last):
    """The program as text: the functions above and a last line."""
    parts = "\n\n".join(inspect.getsource(part) for part in (labels, build, features, loss_of, broken))
    return f"import torch\nfrom torch import nn\n\nCLASSES = {CLASSES}\n\n{parts}\n\n{last}\n"


def reference(keep=None, classes=CLASSES):
    """Loss in float64 with the labels that were meant; `keep` selects the samples that count."""
    target = labels("right")
    keep = torch.ones(32, dtype=torch.bool) if keep is None else keep
    scores = build("cpu", classes).double()(features("cpu").double())
    return nn.functional.cross_entropy(scores[keep], target[keep]).detach()


def check(measure, loss, model, wanted):
    measure.compare(loss, wanted, tolerance=1e-5)
    loss.backward()
    assert torch.isfinite(model.weight.grad).all()
    assert model.weight.grad.abs().sum() > 0


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"addresses another cause than {config}")


@pytest.fixture(params=["one-based", "unlabelled-marked", "gapped-ids"])
def config(request):
    """What is wrong with the labels: they count from 1, -1 marks unlabelled samples, or ids have gaps."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, run_script):
    run_script(program(config, device, f"broken({config!r}, {device!r})"))


@pytest.mark.workaround("shift-to-zero")
def test_shift_to_zero(config, device, measure):
    only_for(config, "one-based")
    model, target = build(device), labels(config) - 1
    check(measure, measure(lambda: loss_of(model, target, device)), model, reference())


@pytest.mark.workaround("ignore-index")
def test_ignore_index(config, device, measure):
    only_for(config, "unlabelled-marked")
    model, target = build(device), labels(config)
    loss = measure(lambda: loss_of(model, target, device, ignore_index=-1))
    check(measure, loss, model, reference(keep=target != -1))


@pytest.mark.workaround("renumber-labels")
def test_renumber_labels(config, device, measure):
    only_for(config, "gapped-ids", "one-based")
    ids = sorted(set(labels(config).tolist()))
    position = {identifier: place for place, identifier in enumerate(ids)}
    target = torch.tensor([position[identifier] for identifier in labels(config).tolist()])
    model = build(device, classes=len(ids))
    check(measure, measure(lambda: loss_of(model, target, device)), model, reference())


@pytest.mark.workaround("size-the-head")
def test_size_the_head(config, device, measure):
    only_for(config, "gapped-ids", "one-based")
    target = labels(config)
    model = build(device, classes=int(target.max()) + 1)
    scores = build("cpu", classes=int(target.max()) + 1).double()(features("cpu").double())
    wanted = nn.functional.cross_entropy(scores, target).detach()
    check(measure, measure(lambda: loss_of(model, target, device)), model, wanted)


@pytest.mark.dead_end("clamp-labels")
def test_clamp_labels(config, device, measure):
    """Nothing is raised any more, and the network learns labels that nobody gave."""
    target = labels(config)
    loss = loss_of(build(device), target.clamp(0, CLASSES - 1), device)
    measure.compare(loss, reference(keep=target != -1), tolerance=1e-3)


@pytest.mark.dead_end("more-classes")
def test_more_classes(config, device, run_script):
    only_for(config, "unlabelled-marked")
    run_script(program(config, device, f"broken({config!r}, {device!r}, classes=1000)"))


@pytest.mark.dead_end("launch-blocking")
def test_launch_blocking(config, device, run_script):
    code = program(config, device, f"broken({config!r}, {device!r})")
    run_script(code, env={"CUDA_LAUNCH_BLOCKING": "1"})


@pytest.mark.requires(device="cuda")  # the CPU checks before it computes, so there the next batch is fine
@pytest.mark.dead_end("skip-the-batch")
def test_skip_the_batch(config, device, run_script):
    last = f"""
try:
    broken({config!r}, {device!r})
except RuntimeError as error:
    print("skipping a batch:", error)
torch.cuda.empty_cache()
broken("right", {device!r})
"""
    run_script(program(config, device, last))
