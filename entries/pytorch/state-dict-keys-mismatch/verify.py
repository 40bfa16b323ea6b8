# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A state dict whose names are not the names of the model it is loaded into.

`data-parallel` was saved from a DataParallel wrapper, which names everything `module.…` as DistributedDataParallel
does; `compiled` from what `torch.compile` returned; `compiled-parallel` and `parallel-compiled` from both, one way
and the other. `into-wrapper` loads a plain file into a wrapped model. `training-checkpoint` keeps the weights beside
epoch and optimizer. `layer-inserted` builds the model otherwise than it was saved, and `new-head` loads a pretrained
encoder into a model with a head.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

pytestmark = pytest.mark.requires(torch=">=2.1")

TOLERANCE = 1e-4
PREFIXED = ("data-parallel", "compiled", "compiled-parallel", "parallel-compiled")


class Net(nn.Module):
    """A convolution whose name ends in `module`, normalisation, a dropout if wanted, a hidden layer and a head."""

    def __init__(self, inserted=False, head=True):
        super().__init__()
        self.conv_module = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        between = [nn.Dropout(0.1)] if inserted else []
        self.mix = nn.Sequential(nn.Flatten(), *between, nn.Linear(8 * 6 * 6, 16))
        self.head = nn.Linear(16, 5) if head else nn.Identity()

    def forward(self, images):
        return self.head(self.mix(self.norm(self.conv_module(images)).relu()))


def built(seed, **shape):
    torch.manual_seed(seed)
    return Net(**shape)


def images(device="cpu", dtype=torch.float32):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def trained(config):
    """What was saved; the running statistics are no longer those of a new model."""
    model = built(0, head=config != "new-head")
    model(images() * 3 + 1)
    return model


def wrapped(config, model):
    if config in ("compiled", "compiled-parallel"):
        model = torch.compile(model, backend="eager")
    if config not in ("compiled", "training-checkpoint", "layer-inserted", "new-head"):
        model = nn.DataParallel(model)
    return torch.compile(model, backend="eager") if config == "parallel-compiled" else model


def save(config, folder):
    """The file as the broken program's training left it, and the model that was in it."""
    model = trained(config)
    state = model.state_dict() if config == "into-wrapper" else wrapped(config, model).state_dict()
    if config == "training-checkpoint":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        state = {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": optimizer.state_dict()}
    torch.save(state, folder / "model.pt")
    return model


def load(folder):
    return torch.load(folder / "model.pt", map_location="cpu", weights_only=True)


def target(config):
    """The model that the broken program loads into."""
    model = built(7, inserted=config == "layer-inserted")
    return wrapped(config, model) if config == "into-wrapper" else model


def inner(model):
    return model.module if isinstance(model, nn.DataParallel) else model


def results(model, device="cpu", dtype=torch.float32):
    """Outputs and gradients."""
    model = copy.deepcopy(model).to(device, dtype).eval()
    outputs = model(images(device, dtype))
    outputs.square().mean().backward()
    return [outputs.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]


def close(measure, model, saved, device):
    measure.compare(results(inner(model), device), results(saved, dtype=torch.float64), tolerance=TOLERANCE)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=[*PREFIXED, "into-wrapper", "training-checkpoint", "layer-inserted", "new-head"])
def config(request):
    """How the names came to differ."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    save(config, tmp_path)
    target(config).load_state_dict(load(tmp_path))


@pytest.mark.workaround("strip-prefix")
def test_strip_prefix(config, device, measure, tmp_path):
    only_for(config, *PREFIXED)
    saved, model, state = save(config, tmp_path), target(config), load(tmp_path)
    for prefix in ("module.", "_orig_mod.", "module."):
        consume_prefix_in_state_dict_if_present(state, prefix)
    model.load_state_dict(state)
    close(measure, model, saved, device)


@pytest.mark.workaround("save-the-inner-model")
def test_save_the_inner_model(config, device, measure, tmp_path):
    only_for(config, *PREFIXED)
    saved = trained(config)
    to_save = wrapped(config, saved)
    while hasattr(to_save, "module") or hasattr(to_save, "_orig_mod"):
        to_save = to_save.module if hasattr(to_save, "module") else to_save._orig_mod
    torch.save(to_save.state_dict(), tmp_path / "model.pt")
    model = target(config)
    model.load_state_dict(load(tmp_path))
    close(measure, model, saved, device)


@pytest.mark.workaround("compile-in-place")
@pytest.mark.requires(torch=">=2.2")
def test_compile_in_place(config, device, measure, tmp_path):
    only_for(config, "compiled")
    saved = trained(config)
    saved.compile(backend="eager")
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    model = target(config)
    model.load_state_dict(load(tmp_path))
    close(measure, model, trained(config), device)


@pytest.mark.workaround("load-into-the-inner-model")
def test_load_into_the_inner_model(config, device, measure, tmp_path):
    only_for(config, "into-wrapper")
    saved, model = save(config, tmp_path), target(config)
    model.module.load_state_dict(load(tmp_path))
    close(measure, model, saved, device)


@pytest.mark.workaround("pick-the-weights")
def test_pick_the_weights(config, device, measure, tmp_path):
    only_for(config, "training-checkpoint")
    saved, model = save(config, tmp_path), target(config)
    model.load_state_dict(load(tmp_path)["model_state_dict"])
    close(measure, model, saved, device)


@pytest.mark.workaround("build-as-saved")
def test_build_as_saved(config, device, measure, tmp_path):
    only_for(config, "layer-inserted")
    saved, model = save(config, tmp_path), built(7)
    model.load_state_dict(load(tmp_path))
    close(measure, model, saved, device)


@pytest.mark.workaround("name-what-may-be-missing")
def test_name_what_may_be_missing(config, device, measure, tmp_path):
    only_for(config, "new-head")
    saved, model = save(config, tmp_path), target(config)
    found = model.load_state_dict(load(tmp_path), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("head.") for name in found.missing_keys)
    model.head = nn.Identity()
    close(measure, model, saved, device)


@pytest.mark.dead_end("strict-false")
def test_strict_false(config, device, measure, tmp_path):
    if config == "new-head":
        pytest.skip("only the new head is missing here, and that is meant")
    saved, model = save(config, tmp_path), target(config)
    model.load_state_dict(load(tmp_path), strict=False)
    wanted = results(saved, dtype=torch.float64)[0]
    measure.compare(results(inner(model), device)[0], wanted, tolerance=TOLERANCE)


@pytest.mark.dead_end("keep-matching-names")
def test_keep_matching_names(config, device, measure, tmp_path):
    if config == "new-head":
        pytest.skip("only the new head is missing here, and that is meant")
    saved, model = save(config, tmp_path), target(config)
    own = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in own.items()}
    own.update({n: t for n, t in load(tmp_path).items() if n in own and t.shape == shapes[n]})
    model.load_state_dict(own)
    wanted = results(saved, dtype=torch.float64)[0]
    measure.compare(results(inner(model), device)[0], wanted, tolerance=TOLERANCE)


@pytest.mark.dead_end("replace-everywhere")
def test_replace_everywhere(config, tmp_path):
    only_for(config, "data-parallel", "compiled-parallel", "parallel-compiled")
    save(config, tmp_path)
    state = {name.replace("module.", "").replace("_orig_mod.", ""): t for name, t in load(tmp_path).items()}
    target(config).load_state_dict(state)


@pytest.mark.dead_end("cut-seven-characters")
def test_cut_seven_characters(config, tmp_path):
    only_for(config, "compiled", "compiled-parallel", "parallel-compiled", "training-checkpoint")
    save(config, tmp_path)
    target(config).load_state_dict({name[7:]: tensor for name, tensor in load(tmp_path).items()})
