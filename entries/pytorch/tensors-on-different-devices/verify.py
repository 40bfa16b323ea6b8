# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""One operation gets tensors that live on different devices.

On a GPU the strays are on the CPU. Without one they are on `meta`, the device without data, where torch raises the
CPU wording of the same error.
"""

import inspect

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

ELSEWHERE = {"cuda": "cpu", "cpu": "meta"}
"""Where a tensor lands when nobody says where: the process's default device."""


class Scorer(nn.Module):
    """Two layers and a constant vector that is added at the end."""

    def __init__(self, offset):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 4)
        if offset == "attribute":
            self.offset = torch.linspace(-1.0, 1.0, 4)
        if offset == "buffer":
            self.register_buffer("offset", torch.linspace(-1.0, 1.0, 4))
        self.made_where = {"made-in-forward": None, "made-beside-input": "input"}.get(offset, "init")

    def forward(self, inputs):
        scores = self.last(torch.relu(self.first(inputs)))
        if self.made_where == "init":
            return scores + self.offset
        if self.made_where == "input":
            return scores + torch.linspace(-1.0, 1.0, 4, device=inputs.device)
        return scores + torch.linspace(-1.0, 1.0, 4)


def batch():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def state():
    """Weights as a checkpoint would hold them."""
    torch.manual_seed(0)
    return Scorer("buffer").state_dict()


def place(model, device):
    """Give every parameter and buffer storage on `device`, then load the checkpoint into it."""
    model.to_empty(device=device)
    model.load_state_dict({name: value for name, value in state().items() if name in model.state_dict()})
    return model


def build(device, offset, default):
    with torch.device(default):
        model = Scorer(offset)
    return place(model, device)


def broken(cause, device):
    """The program of each cause, down to the line that raises."""
    elsewhere = ELSEWHERE[device]
    offset = {"made-in-forward": "made-in-forward", "plain-attribute": "attribute"}.get(cause, "buffer")
    model = build(device, offset, default=elsewhere)
    inputs = batch().to(device)
    if cause == "split-model":
        model.last.to(elsewhere)
    if cause == "batch-left-behind":
        inputs = inputs.to(elsewhere)
    with torch.device(elsewhere):
        return model(inputs)


def reference():
    with torch.no_grad():
        model = place(Scorer("buffer"), "cpu").double()
        return model(batch().double())


def check(measure, scores, device):
    assert scores.device.type == device
    measure.compare(scores, reference(), tolerance=1e-4)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"addresses another cause than {config}")


@pytest.fixture(
    params=[
        "made-in-forward",
        "plain-attribute",
        "split-model",
        pytest.param(
            "batch-left-behind", marks=pytest.mark.requires(device="cuda")
        ),  # a meta tensor has no data to move
    ]
)
def config(request):
    """Which tensor is on the wrong device, and why."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    broken(config, device)


@pytest.mark.workaround("create-beside-the-input")
def test_create_beside_the_input(config, device, measure):
    only_for(config, "made-in-forward")
    model = build(device, "made-beside-input", default=ELSEWHERE[device])
    inputs = batch().to(device)
    with torch.device(ELSEWHERE[device]):
        scores = measure(lambda: model(inputs))
    check(measure, scores, device)


@pytest.mark.workaround("register-buffer")
def test_register_buffer(config, device, measure):
    only_for(config, "plain-attribute")
    model = build(device, "buffer", default=ELSEWHERE[device])
    check(measure, measure(lambda: model(batch().to(device))), device)


@pytest.mark.workaround("move-the-batch")
def test_move_the_batch(config, device, measure):
    only_for(config, "batch-left-behind")
    model = build(device, "buffer", default=ELSEWHERE[device])
    inputs = batch().to(ELSEWHERE[device])
    check(measure, measure(lambda: model(inputs.to(next(model.parameters()).device))), device)


@pytest.mark.workaround("whole-model-on-one-device")
def test_whole_model_on_one_device(config, device, measure):
    only_for(config, "split-model")
    model = build(device, "buffer", default=ELSEWHERE[device])
    model.last.to(ELSEWHERE[device])
    place(model, device)
    check(measure, measure(lambda: model(batch().to(device))), device)


@pytest.mark.workaround("default-device")
def test_default_device(config, device, measure):
    only_for(config, "made-in-forward", "plain-attribute")
    offset = {"made-in-forward": "made-in-forward", "plain-attribute": "attribute"}[config]
    model = build(device, offset, default=device)
    inputs = batch().to(device)
    with torch.device(device):
        scores = measure(lambda: model(inputs))
    check(measure, scores, device)


@pytest.mark.dead_end("move-the-model-again")
def test_move_the_model_again(config, device):
    if config == "split-model":
        pytest.skip("there the model is what has to move")
    offset = {"made-in-forward": "made-in-forward", "plain-attribute": "attribute"}.get(config, "buffer")
    model = build(device, offset, default=ELSEWHERE[device]).to(device)
    inputs = batch().to(ELSEWHERE[device] if config == "batch-left-behind" else device)
    with torch.device(ELSEWHERE[device]):
        model(inputs)


@pytest.mark.requires(device="cuda")  # a meta tensor cannot be copied anywhere, so this fails differently there
@pytest.mark.dead_end("to-without-assignment")
def test_to_without_assignment(config, device):
    if config == "split-model":
        pytest.skip("modules do move in place")
    if config == "batch-left-behind":
        model, inputs = build(device, "buffer", default=ELSEWHERE[device]), batch()
        inputs.to(device)
    else:
        model, inputs = build(device, "attribute", default=ELSEWHERE[device]), batch().to(device)
        model.offset.to(device)
    model(inputs)


@pytest.mark.dead_end("hide-other-gpus")
def test_hide_other_gpus(config, device, run_script):
    parts = [Scorer, batch, state, place, build, broken]
    program = ["import torch", "from torch import nn", f"ELSEWHERE = {ELSEWHERE!r}"]
    program += [inspect.getsource(part) for part in parts] + [f"broken({config!r}, {device!r})"]
    run_script("\n\n".join(program), env={"CUDA_VISIBLE_DEVICES": "0"})
