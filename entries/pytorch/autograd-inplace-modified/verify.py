# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A tensor that a backward pass needs is written over before it gets there.

`added` is a residual sum written into the activation before it, `masked` an assignment by mask into a sigmoid's output,
`two-optimizers` a GAN step that moves the critic between the generator's forward and backward pass, and `ddp-buffers`
a batch norm whose buffers DistributedDataParallel sends again at the second forward pass of a step.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call

pytestmark = pytest.mark.requires(torch=">=2.1")

MASKED = torch.arange(64) % 3 == 0


def numbers(device, dtype=torch.float32):
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    return values.to(device, dtype)


def block(device, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(64, 64), "second": nn.Linear(64, 64)}).to(device, dtype)


def add_in_place(hidden, update):
    hidden += update
    return hidden


def mask_in_place(hidden, update):
    hidden[:, MASKED] = 0.0
    return hidden + update


def add(hidden, update):
    return hidden + update


def mask(hidden, update):
    return torch.where(MASKED.to(hidden.device), 0.0, hidden) + update


def add_to_clone(hidden, update):
    hidden = hidden.clone()
    hidden += update
    return hidden


def mask_clone(hidden, update):
    hidden = hidden.clone()
    hidden[:, MASKED] = 0.0
    return hidden + update


def add_then_clone(hidden, update):
    hidden += update
    return hidden.clone()


def mask_then_clone(hidden, update):
    hidden[:, MASKED] = 0.0
    return hidden.clone() + update


def add_to_data(hidden, update):
    hidden.data += update
    return hidden


def mask_data(hidden, update):
    hidden.data[:, MASKED] = 0.0
    return hidden + update


def add_without_grad(hidden, update):
    with torch.no_grad():
        hidden += update
    return hidden


def mask_without_grad(hidden, update):
    with torch.no_grad():
        hidden[:, MASKED] = 0.0
    return hidden + update


def gradients(config, edit, model, inputs, **backward):
    """Gradients of a block in which `edit` puts the second layer's result into the first one's."""
    activation = torch.relu if config == "added" else torch.sigmoid
    hidden = activation(model["first"](inputs))
    edited = edit(hidden, model["second"](hidden))
    edited.square().mean().backward(**backward)
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def block_reference(config):
    edit = add if config == "added" else mask
    return gradients(config, edit, block("cpu", torch.float64), numbers("cpu", torch.float64))


def gan(device, dtype=torch.float32):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16)).to(device, dtype)
    critic = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)).to(device, dtype)
    return generator, critic


def critic_loss(critic, real, fake):
    return nn.functional.softplus(critic(fake)).mean() + nn.functional.softplus(-critic(real)).mean()


def generator_loss(critic, fake):
    return nn.functional.softplus(-critic(fake)).mean()


def gan_step(device, order, **backward):
    """One step of both networks; the weights after it. The broken order moves the critic too early."""
    generator, critic = gan(device)
    optimizer_g, optimizer_d = (torch.optim.SGD(part.parameters(), lr=0.5) for part in (generator, critic))
    real, fake = numbers(device)[:, :16], generator(numbers(device))
    loss_d, loss_g = critic_loss(critic, real, fake.detach()), generator_loss(critic, fake)
    loss_d.backward(inputs=list(critic.parameters()), **backward)
    if order == "backward-first":
        loss_g.backward(inputs=list(generator.parameters()))
        optimizer_d.step()
    else:
        optimizer_d.step()
        if order == "forward-again":
            loss_g = generator_loss(critic, fake)
        loss_g.backward(inputs=list(generator.parameters()))
    optimizer_g.step()
    return [p.detach() for p in (*generator.parameters(), *critic.parameters())]


def gan_reference(new_critic):
    """The same in float64 without a write: weights are values, and the generator sees the old or the new critic."""
    generator, critic = gan("cpu", torch.float64)
    noise, real = numbers("cpu", torch.float64), numbers("cpu", torch.float64)[:, :16]
    fake = generator(noise)
    old = dict(critic.named_parameters())
    moved = torch.autograd.grad(critic_loss(critic, real, fake.detach()), list(old.values()))
    new = {name: p - 0.5 * grad for (name, p), grad in zip(old.items(), moved, strict=True)}
    seen = new if new_critic else old
    loss = generator_loss(lambda values: functional_call(critic, seen, (values,)), fake)
    grads = torch.autograd.grad(loss, list(generator.parameters()))
    return [p - 0.5 * grad for p, grad in zip(generator.parameters(), grads, strict=True)] + list(new.values())


DDP = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

def loss_of(forward, first, second):
    if TOGETHER:
        scores = forward(torch.cat([first, second]))
        return (scores[: len(first)] - scores[len(first) :]).square().mean()
    return (forward(first) - forward(second)).square().mean()

dist.init_process_group("gloo")
device = torch.device(os.environ["KB_DEVICE"], 0) if os.environ["KB_DEVICE"] == "cuda" else torch.device("cpu")
generator = torch.Generator().manual_seed(dist.get_rank())
first, second = torch.randn(2, 16, 8, generator=generator)
model = DistributedDataParallel(build().to(device), broadcast_buffers=BROADCAST)
loss_of(model, first.to(device), second.to(device)).backward(retain_graph=RETAIN)

alone = build().double()
loss_of(alone, first.double(), second.double()).backward()
for got, parameter in zip(model.parameters(), alone.parameters()):
    wanted = parameter.grad.clone()
    dist.all_reduce(wanted)
    torch.testing.assert_close(got.grad.double().cpu(), wanted / 2, atol=1e-5, rtol=1e-3)
dist.barrier()
dist.destroy_process_group()
"""


def run_ddp(run_script, broadcast=True, together=False, retain=False):
    head = f"BROADCAST, TOGETHER, RETAIN = {broadcast}, {together}, {retain}\n"
    run_script(head + DDP, nproc=2)


@pytest.fixture(
    params=[
        "added",
        "masked",
        "two-optimizers",
        pytest.param("ddp-buffers", marks=pytest.mark.requires(torch="<2.12")),
    ]
)
def config(request):
    """What writes over the saved tensor. Since torch 2.12 the broadcast of buffers is no longer counted as a write."""
    return request.param


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.mark.reproduces
def test_reproduces(config, device, run_script):
    if config == "ddp-buffers":
        run_ddp(run_script)
    elif config == "two-optimizers":
        gan_step(device, "broken")
    else:
        edit = add_in_place if config == "added" else mask_in_place
        gradients(config, edit, block(device), numbers(device))


@pytest.mark.workaround("out-of-place")
def test_out_of_place(config, device, measure):
    only_for(config, "added", "masked")
    edit = add if config == "added" else mask
    result = measure(lambda: gradients(config, edit, block(device), numbers(device)))
    measure.compare(result, block_reference(config), tolerance=1e-4)


@pytest.mark.workaround("clone-first")
def test_clone_first(config, device, measure):
    only_for(config, "added", "masked")
    edit = add_to_clone if config == "added" else mask_clone
    result = measure(lambda: gradients(config, edit, block(device), numbers(device)))
    measure.compare(result, block_reference(config), tolerance=1e-4)


@pytest.mark.workaround("step-after-all-backwards")
def test_step_after_all_backwards(config, device, measure):
    only_for(config, "two-optimizers")
    result = measure(lambda: gan_step(device, "backward-first"))
    measure.compare(result, gan_reference(new_critic=False), tolerance=1e-4)


@pytest.mark.workaround("forward-again-after-a-step")
def test_forward_again_after_a_step(config, device, measure):
    only_for(config, "two-optimizers")
    result = measure(lambda: gan_step(device, "forward-again"))
    measure.compare(result, gan_reference(new_critic=True), tolerance=1e-4)


@pytest.mark.workaround("no-buffer-broadcast")
def test_no_buffer_broadcast(config, run_script):
    only_for(config, "ddp-buffers")
    run_ddp(run_script, broadcast=False)


@pytest.mark.workaround("one-forward-per-step")
def test_one_forward_per_step(config, run_script):
    only_for(config, "ddp-buffers")
    run_ddp(run_script, together=True)


@pytest.mark.dead_end("retain-graph")
def test_retain_graph(config, device, run_script):
    if config == "ddp-buffers":
        run_ddp(run_script, retain=True)
    elif config == "two-optimizers":
        gan_step(device, "broken", retain_graph=True)
    else:
        edit = add_in_place if config == "added" else mask_in_place
        gradients(config, edit, block(device), numbers(device), retain_graph=True)


@pytest.mark.dead_end("clone-after-the-write")
def test_clone_after_the_write(config, device):
    only_for(config, "added", "masked")
    edit = add_then_clone if config == "added" else mask_then_clone
    gradients(config, edit, block(device), numbers(device))


@pytest.mark.dead_end("write-under-no-grad")
def test_write_under_no_grad(config, device):
    only_for(config, "added", "masked")
    edit = add_without_grad if config == "added" else mask_without_grad
    gradients(config, edit, block(device), numbers(device))


@pytest.mark.dead_end("write-through-data")
def test_write_through_data(config, device, measure):
    only_for(config, "added", "masked")
    edit = add_to_data if config == "added" else mask_data
    result = gradients(config, edit, block(device), numbers(device))
    measure.compare(result, block_reference(config), tolerance=1e-4)
