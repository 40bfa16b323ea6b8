# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "accelerate>=0.30"]
# ///
"""Parameters that are still on the meta device when somebody moves the model.

Five ways there: a dispatched model with one layer on disk, moved as a whole or inside a wrapper; a model built on meta
whose checkpoint calls one weight by another name, or has no weights for a new head; and a class of transformers that
moves a sub-model in its constructor, while `from_pretrained` builds everything on meta.
"""

from __future__ import annotations

import pathlib

import pytest
import torch
import transformers
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40", accelerate=">=0.30")

IDS = torch.arange(8).reshape(1, 8)
OFFLOADED = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "disk", "model.norm": 0, "lm_head": 0}


@pytest.fixture(
    params=[
        "offloaded-whole",
        "offloaded-in-a-wrapper",
        "key-renamed",
        "head-is-new",
        pytest.param("moved-in-constructor", marks=pytest.mark.requires(transformers=">=5")),
    ]
)
def config(request) -> str:
    return request.param


class Classifier(nn.Module):
    """A body that the checkpoint has, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(rows).tanh())


class MovesInConstructor(transformers.LlamaForCausalLM):
    """A vision tower is made and moved while the outer model is being built."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.tower = nn.Linear(4, 4).to("cpu")
        self.post_init()


class MovedLater(transformers.LlamaForCausalLM):
    def __init__(self, config) -> None:
        super().__init__(config)
        self.tower = nn.Linear(4, 4)
        self.post_init()


def checkpoint(config: str) -> dict[str, torch.Tensor]:
    """The classifier's weights as the file names them."""
    torch.manual_seed(0)
    weights = Classifier().state_dict()
    if config == "key-renamed":
        return {name.replace("head.", "classifier."): value for name, value in weights.items()}
    return {name: value for name, value in weights.items() if name.startswith("body.")}


def on_meta() -> Classifier:
    with torch.device("meta"):
        return Classifier()


def rows() -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def classifier_reference() -> torch.Tensor:
    torch.manual_seed(0)
    return Classifier().double()(rows().double())


def offloaded(path: pathlib.Path, device: str) -> nn.Module:
    """Dispatched with one layer on disk, as `device_map="auto"` does when memory does not suffice."""
    places = {part: device if place == 0 else place for part, place in OFFLOADED.items()}
    places["model.rotary_emb"] = device
    return transformers.AutoModelForCausalLM.from_pretrained(path, device_map=places, offload_folder=path / "offload")


def logits(model: nn.Module, device: str) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS.to(device)).logits


@pytest.fixture
def path(tmp_path, tiny_llama, config) -> pathlib.Path:
    """A saved language model."""
    if not is_classifier(config):
        tiny_llama().save_pretrained(tmp_path)
    return tmp_path


def is_classifier(config: str) -> bool:
    return config in ("key-renamed", "head-is-new")


def skip_unless(applies: bool, reason: str) -> None:
    if not applies:
        pytest.skip(reason)


def moved(config: str, device: str, path: pathlib.Path) -> nn.Module:
    """The program that fails."""
    if is_classifier(config):
        model = on_meta()
        model.load_state_dict(checkpoint(config), strict=False, assign=True)
        return model.to(device)
    if config == "moved-in-constructor":
        return MovesInConstructor.from_pretrained(path)
    if config == "offloaded-in-a-wrapper":
        return nn.Sequential(offloaded(path, device)).to(device)
    return offloaded(path, device).to(device)


@pytest.mark.reproduces
def test_reproduces(config, device, path):
    moved(config, device, path)


@pytest.mark.workaround("do-not-move")
def test_do_not_move(config, device, path, tiny_llama, measure):
    skip_unless(config.startswith("offloaded"), "nothing is offloaded here, the weights are missing")
    model = nn.Sequential(offloaded(path, device)) if config == "offloaded-in-a-wrapper" else offloaded(path, device)
    measure.compare(logits(model, device), logits(tiny_llama().double(), "cpu"), tolerance=1e-4)


@pytest.mark.workaround("whole-model-on-one-device")
def test_whole_model_on_one_device(config, device, path, tiny_llama, measure):
    skip_unless(config.startswith("offloaded"), "nothing is offloaded here, the weights are missing")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, device_map={"": device})
    model = nn.Sequential(model) if config == "offloaded-in-a-wrapper" else model
    measure.compare(logits(model.to(device), device), logits(tiny_llama().double(), "cpu"), tolerance=1e-4)


@pytest.mark.workaround("load-then-assign")
def test_load_then_assign(config, device, measure):
    skip_unless(config == "key-renamed", "the file has no weights under another name")
    state = {name.replace("classifier.", "head."): value for name, value in checkpoint(config).items()}
    emptied = on_meta().to_empty(device=device)
    emptied.load_state_dict(state)
    assigned = on_meta()
    assigned.load_state_dict(state, assign=True)
    for model in (emptied, assigned.to(device)):
        measure.compare(model(rows().to(device)), classifier_reference(), tolerance=1e-5)


@pytest.mark.workaround("initialise-what-is-new")
def test_initialise_what_is_new(config, device, measure):
    skip_unless(config == "head-is-new", "every weight is in the file here")
    model = on_meta()
    model.load_state_dict(checkpoint(config), strict=False, assign=True)
    torch.manual_seed(2)
    model.head.to_empty(device=device)
    model.head.reset_parameters()
    model.to(device)
    body = Classifier()
    body.load_state_dict(checkpoint(config), strict=False)
    hidden = body.body(rows()).tanh()
    expected = hidden.double() @ model.head.weight.double().cpu().T + model.head.bias.double().cpu()
    measure.compare(model(rows().to(device)), expected, tolerance=1e-5)
    spread = float(model.head.weight.std())
    assert 0.05 < spread < 0.25, spread


@pytest.mark.workaround("load-plainly")
def test_load_plainly(config, device, path, tiny_llama, measure):
    skip_unless(not config.startswith("offloaded"), "the weights are there, they were moved to disk on purpose")
    skip_unless(config != "key-renamed", "the renamed weights would silently stay random")
    if config == "moved-in-constructor":
        model = MovesInConstructor(transformers.LlamaConfig.from_pretrained(path))
        model.load_state_dict(tiny_llama().state_dict(), strict=False)
        measure.compare(logits(model.to(device), device), logits(tiny_llama().double(), "cpu"), tolerance=1e-4)
        return
    model = Classifier()
    model.load_state_dict(checkpoint(config), strict=False)
    measure.compare(model.to(device).body.weight, checkpoint(config)["body.weight"], tolerance=0.0)
    assert model.head.weight.std() > 0.05


@pytest.mark.workaround("move-after-loading")
def test_move_after_loading(config, device, path, tiny_llama, measure):
    skip_unless(config == "moved-in-constructor", "no constructor moves anything here")
    model = MovedLater.from_pretrained(path).to(device)
    measure.compare(logits(model, device), logits(tiny_llama().double(), "cpu"), tolerance=1e-4)
    assert bool(model.tower(torch.ones(1, 4, device=device)).isfinite().all())


@pytest.mark.dead_end("to-empty-alone")
def test_to_empty_alone(config, device, measure):
    skip_unless(is_classifier(config), "the model is not built by hand here")
    model = on_meta()
    model.load_state_dict(checkpoint(config), strict=False, assign=True)
    model.to_empty(device=device)
    measure.compare(model(rows().to(device)), classifier_reference(), tolerance=0.01)


@pytest.mark.dead_end("load-into-meta")
def test_load_into_meta(config, device):
    skip_unless(is_classifier(config), "the model is not built by hand here")
    torch.manual_seed(0)
    model = on_meta()
    model.load_state_dict(Classifier().state_dict())
    model.to(device)


@pytest.mark.dead_end("device-map-cpu")
def test_device_map_cpu(config, path):
    skip_unless(config == "moved-in-constructor", "where a map offloads, this puts everything on the CPU, and works")
    MovesInConstructor.from_pretrained(path, device_map="cpu")


@pytest.mark.dead_end("low-cpu-mem-usage-false")
@pytest.mark.requires(transformers=">=5")
def test_low_cpu_mem_usage_false(config, path):
    skip_unless(config == "moved-in-constructor", "the option does not concern offloading or loading by hand")
    MovesInConstructor.from_pretrained(path, low_cpu_mem_usage=False)
