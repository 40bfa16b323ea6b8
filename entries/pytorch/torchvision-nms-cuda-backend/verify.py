# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "torchvision", "transformers>=4.40", "pillow"]
# ///
"""A torchvision that does not go with the torch beside it.

Where torchvision is a build for CUDA or for another release and its compiled part cannot be loaded, it fails at import:
in a program that detects objects, and in one that only loads a text model, since transformers imports torchvision where
it finds it. Where torchvision is the CPU build beside a torch with CUDA, it fails at the first operation on the GPU.
"""

from __future__ import annotations

import importlib.util
import pathlib

import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.4", torchvision=">=0.15")

THRESHOLD = 0.5


@pytest.fixture(
    params=[
        "extension-not-loaded",
        pytest.param("text-model-only", marks=pytest.mark.requires(transformers=">=5", pillow="")),
        pytest.param("cpu-build-on-gpu", marks=pytest.mark.requires(device="cuda")),
    ]
)
def config(request) -> str:
    loads = extension_loads()
    if loads != (request.param == "cpu-build-on-gpu"):
        pytest.skip("this torchvision's compiled part can be loaded" if loads else "it fails before that, at import")
    return request.param


def extension_loads() -> bool:
    """Whether torchvision's compiled part goes with this torch."""
    found = importlib.util.find_spec("torchvision")
    for part in pathlib.Path(found.origin).parent.glob("_C*") if found and found.origin else ():
        try:
            torch.ops.load_library(part)
        except OSError:
            return False
    return True


def boxes() -> tuple[torch.Tensor, torch.Tensor]:
    corners = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 6
    scores = torch.rand(40, generator=torch.Generator().manual_seed(1))
    return torch.cat([corners, corners + 2], dim=1), scores


def overlap(one: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of one box with others."""
    sides = (torch.minimum(one[2:], others[:, 2:]) - torch.maximum(one[:2], others[:, :2])).clamp(min=0)
    shared = sides.prod(dim=1)
    return shared / ((one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(dim=1) - shared)


def nms(places: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Indices of the boxes that remain, best first, in plain torch."""
    order, kept = scores.argsort(descending=True), []
    while len(order):
        kept.append(order[0])
        order = order[1:][overlap(places[order[0]], places[order[1:]]) <= threshold]
    return torch.stack(kept)


def reference() -> torch.Tensor:
    """The same by comparing every pair, in float64."""
    places, scores = boxes()
    places, kept = places.double(), []
    for index in scores.argsort(descending=True).tolist():
        if all(float(overlap(places[index], places[other][None])) <= THRESHOLD for other in kept):
            kept.append(index)
    return torch.tensor(kept)


DETECT = "import torch\nimport torchvision\nprint(torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5))\n"
TEXT = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
logits = LlamaForCausalLM(config)(input_ids=torch.arange(8).reshape(1, 8)).logits
print("logits", tuple(logits.shape), bool(logits.isfinite().all()))
"""
PROGRAM = {"extension-not-loaded": DETECT, "text-model-only": TEXT}
WITHOUT_TORCHVISION = "import sys\nsys.modules['torchvision'] = None\n"
DEFINED = (
    "import torch\n"
    "library = torch.library.Library('torchvision', 'DEF')\n"
    "library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
)


@pytest.mark.reproduces
def test_reproduces(config, device, run_script):
    if config in PROGRAM:
        run_script(PROGRAM[config])
    else:
        import torchvision

        torchvision.ops.nms(*(part.to(device) for part in boxes()), THRESHOLD)


@pytest.mark.workaround("uninstall-torchvision")
def test_uninstall_torchvision(config, run_script):
    """Hidden from the program, as it is after it was uninstalled."""
    if config != "text-model-only":
        pytest.skip("this program needs torchvision")
    assert "logits (1, 8, 32) True" in run_script(WITHOUT_TORCHVISION + TEXT)


@pytest.mark.workaround("nms-in-torch")
def test_nms_in_torch(config, device, measure):
    if config == "text-model-only":
        pytest.skip("nothing is detected")
    places, scores = (part.to(device) for part in boxes())
    measure.compare(measure(lambda: nms(places, scores, THRESHOLD)), reference(), tolerance=0.0)


@pytest.mark.workaround("nms-on-cpu")
def test_nms_on_cpu(config, device, measure):
    if config != "cpu-build-on-gpu":
        pytest.skip("torchvision cannot be imported")
    import torchvision

    places, scores = (part.to(device) for part in boxes())
    keep = measure(lambda: torchvision.ops.nms(places.cpu(), scores.cpu(), THRESHOLD).to(places.device))
    measure.compare(keep, reference(), tolerance=0.0)


@pytest.mark.dead_end("define-the-operator")
def test_define_the_operator(config, run_script):
    if config == "cpu-build-on-gpu":
        pytest.skip("the operator is defined, it lacks a version for CUDA")
    run_script(DEFINED + PROGRAM[config])


@pytest.mark.dead_end("import-torchvision-first")
def test_import_torchvision_first(config, run_script):
    if config == "cpu-build-on-gpu":
        pytest.skip("the import works")
    run_script("import torchvision\n" + PROGRAM[config])


@pytest.mark.dead_end("catch-the-import")
def test_catch_the_import(config, run_script):
    if config == "cpu-build-on-gpu":
        pytest.skip("the import works")
    run_script("try:\n    import torchvision\nexcept RuntimeError:\n    pass\n" + PROGRAM[config])
