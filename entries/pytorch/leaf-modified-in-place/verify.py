# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""A tensor that gradients are collected for is written to while autograd records.

`manual-step` is gradient descent by hand, `weight-rows` puts pretrained vectors into an embedding, `filled-later` fills
a soft prompt that was created with `requires_grad=True`. In `relu-on-input` a network that starts with an in-place
activation is asked for the gradient of its input, and in `image-tokens` image features are written between the outputs
of a frozen embedding that a hook has marked, as it is done for gradient checkpointing.
"""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1")

LEARNING_RATE, STEPS, PRETRAINED = 0.1, 4, 5
IDS = torch.tensor([[0, 1, 4, 7], [7, 2, 3, 4]])
IS_IMAGE = IDS == 7


@pytest.fixture(params=["manual-step", "weight-rows", "filled-later", "relu-on-input", "image-tokens"])
def config(request):
    return request.param


def only_for(config, *wanted):
    if config not in wanted:
        pytest.skip("the write has another purpose here")


def numbers(*shape, seed=1, device="cpu", dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


# manual-step: the weights after a few steps on a linear regression


def step_in_place(parameters):
    for p in parameters:
        p -= LEARNING_RATE * p.grad
        p.grad.zero_()


def step_without_grad(parameters):
    with torch.no_grad():
        for p in parameters:
            p -= LEARNING_RATE * p.grad
            p.grad.zero_()


def step_by_rebinding(parameters):
    for p in parameters:
        updated = p - LEARNING_RATE * p.grad
        p.grad.zero_()
        p = updated


def step_by_optimizer(parameters):
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
    optimizer.step()
    optimizer.zero_grad()


def regression(device, step):
    model = nn.Linear(8, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    model = model.to(device)
    inputs, targets = numbers(32, 8, device=device), numbers(32, 1, seed=2, device=device)
    for _ in range(STEPS):
        (model(inputs) - targets).square().mean().backward()
        step(list(model.parameters()))
    return [p.detach() for p in model.parameters()]


def regression_reference():
    """The same descent from the formula of its gradient, without autograd."""
    inputs, targets = numbers(32, 8, dtype=torch.float64), numbers(32, 1, seed=2, dtype=torch.float64)
    weight, bias = torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for _ in range(STEPS):
        slope = 2 * (inputs @ weight.T + bias - targets) / len(inputs)
        weight, bias = weight - LEARNING_RATE * slope.T @ inputs, bias - LEARNING_RATE * slope.sum(dim=0)
    return [weight, bias]


# weight-rows: the table, and the gradient that a loss sends into it afterwards


def write_rows(weight, rows):
    weight[: len(rows)] = rows


def write_rows_without_grad(weight, rows):
    with torch.no_grad():
        weight[: len(rows)] = rows


def write_rows_through_early_view(weight, rows):
    with torch.no_grad():
        known = weight[: len(rows)]
    known.copy_(rows)


def embedding_table(device, write):
    torch.manual_seed(0)
    table = nn.Embedding(8, 6)
    start = table.weight.detach().clone()
    table = table.to(device)
    write(table.weight, numbers(PRETRAINED, 6, device=device))
    table(IDS.to(device)).square().sum().backward()
    return [table.weight.detach(), table.weight.grad], start


def table_reference(start):
    expected = torch.cat([numbers(PRETRAINED, 6), start[PRETRAINED:]]).double()
    uses = torch.bincount(IDS.flatten(), minlength=8).unsqueeze(1)
    return [expected, 2 * expected * uses]


# filled-later: a soft prompt put together from word vectors, and its gradient


def prompt_marked_first(vectors):
    prompt = torch.zeros(4, 6, device=vectors.device, requires_grad=True)
    for row, vector in enumerate(vectors):
        prompt[row] = vector
    return prompt


def prompt_filled_without_grad(vectors):
    prompt = torch.zeros(4, 6, device=vectors.device, requires_grad=True)
    with torch.no_grad():
        for row, vector in enumerate(vectors):
            prompt[row] = vector
    return prompt


def prompt_marked_last(vectors):
    prompt = torch.zeros(4, 6, device=vectors.device)
    for row, vector in enumerate(vectors):
        prompt[row] = vector
    return prompt.requires_grad_()


def soft_prompt(device, build):
    prompt = build(numbers(4, 6, device=device))
    prompt.pow(3).sum().backward()
    return [prompt.detach(), prompt.grad]


def prompt_reference():
    vectors = numbers(4, 6, dtype=torch.float64)
    return [vectors, 3 * vectors.square()]


# relu-on-input: the gradients of the input and of the weights


def network(inplace):
    torch.manual_seed(0)
    return nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(8, 4))


def saliency(device, inplace=True, prepare=lambda images: images):
    model = network(inplace).to(device)
    images = numbers(16, 8, device=device).requires_grad_()
    model(prepare(images)).square().sum().backward()
    return [images.grad, *(p.grad for p in model.parameters())]


def saliency_without_recording(device):
    """The activation is applied under `no_grad`, the rest as usual."""
    model = network(True).to(device)
    images = numbers(16, 8, device=device).requires_grad_()
    with torch.no_grad():
        model[0](images)
    model[1](images).square().sum().backward()
    return [images.grad, *(p.grad for p in model.parameters())]


def saliency_reference():
    images, linear = numbers(16, 8, dtype=torch.float64), network(False)[1].double()
    with torch.no_grad():
        positive = images.clamp(min=0)
        slope = 2 * (positive @ linear.weight.T + linear.bias)
        return [(slope @ linear.weight) * (images > 0), slope.T @ positive, slope.sum(dim=0)]


# image-tokens: the gradients of the projector that makes image features into tokens


def place(embeds, mask, features):
    embeds[mask] = features
    return embeds


def place_out_of_place(embeds, mask, features):
    return embeds.masked_scatter(mask.unsqueeze(-1), features)


def place_in_clone(embeds, mask, features):
    return place(embeds.clone(), mask, features)


def place_without_grad(embeds, mask, features):
    with torch.no_grad():
        return place(embeds, mask, features)


def multimodal(device, dtype=torch.float32):
    torch.manual_seed(0)
    layers = {"words": nn.Embedding(8, 6), "projector": nn.Linear(5, 6), "head": nn.Linear(6, 1)}
    model = nn.ModuleDict(layers).to(device, dtype)
    model["words"].requires_grad_(False)
    return model


def image_tokens(device, put):
    model = multimodal(device)
    model["words"].register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    features = model["projector"](numbers(int(IS_IMAGE.sum()), 5, device=device))
    embeds = put(model["words"](IDS.to(device)), IS_IMAGE.to(device), features)
    model["head"](embeds).square().sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model["projector"].parameters()]


def image_reference():
    """Token by token in float64; nothing is written into anything."""
    model = multimodal("cpu", torch.float64)
    features = iter(model["projector"](numbers(int(IS_IMAGE.sum()), 5, dtype=torch.float64)))
    ids, images = IDS.flatten().tolist(), IS_IMAGE.flatten().tolist()
    tokens = [next(features) if image else model["words"].weight[i] for i, image in zip(ids, images, strict=True)]
    sum(model["head"](token).square().sum() for token in tokens).backward()
    return [p.grad for p in model["projector"].parameters()]


@pytest.mark.reproduces
def test_reproduces(config, device):
    if config == "manual-step":
        regression(device, step_in_place)
    elif config == "weight-rows":
        embedding_table(device, write_rows)
    elif config == "filled-later":
        soft_prompt(device, prompt_marked_first)
    elif config == "relu-on-input":
        saliency(device)
    else:
        image_tokens(device, place)


@pytest.mark.workaround("no-grad")
def test_no_grad(config, device, measure):
    only_for(config, "manual-step", "weight-rows", "filled-later")
    if config == "manual-step":
        measure.compare(measure(lambda: regression(device, step_without_grad)), regression_reference(), tolerance=1e-4)
    elif config == "weight-rows":
        result, start = measure(lambda: embedding_table(device, write_rows_without_grad))
        measure.compare(result, table_reference(start), tolerance=1e-5)
    else:
        result = measure(lambda: soft_prompt(device, prompt_filled_without_grad))
        measure.compare(result, prompt_reference(), tolerance=1e-5)


@pytest.mark.workaround("optimizer")
def test_optimizer(config, device, measure):
    only_for(config, "manual-step")
    measure.compare(measure(lambda: regression(device, step_by_optimizer)), regression_reference(), tolerance=1e-4)


@pytest.mark.workaround("mark-when-filled")
def test_mark_when_filled(config, device, measure):
    only_for(config, "filled-later")
    measure.compare(measure(lambda: soft_prompt(device, prompt_marked_last)), prompt_reference(), tolerance=1e-5)


@pytest.mark.workaround("out-of-place")
def test_out_of_place(config, device, measure):
    only_for(config, "relu-on-input", "image-tokens")
    if config == "relu-on-input":
        measure.compare(measure(lambda: saliency(device, inplace=False)), saliency_reference(), tolerance=1e-4)
    else:
        result = measure(lambda: image_tokens(device, place_out_of_place))
        measure.compare(result, image_reference(), tolerance=1e-4)


@pytest.mark.workaround("clone-first")
def test_clone_first(config, device, measure):
    only_for(config, "relu-on-input", "image-tokens")
    if config == "relu-on-input":
        measure.compare(measure(lambda: saliency(device, prepare=torch.clone)), saliency_reference(), tolerance=1e-4)
    else:
        measure.compare(measure(lambda: image_tokens(device, place_in_clone)), image_reference(), tolerance=1e-4)


@pytest.mark.dead_end("rebind-the-name")
def test_rebind_the_name(config, device, measure):
    only_for(config, "manual-step")
    measure.compare(regression(device, step_by_rebinding), regression_reference(), tolerance=1e-4)


@pytest.mark.dead_end("no-grad-in-forward")
def test_no_grad_in_forward(config, device, measure):
    only_for(config, "relu-on-input", "image-tokens")
    if config == "relu-on-input":
        measure.compare(saliency_without_recording(device), saliency_reference(), tolerance=1e-4)
    else:
        measure.compare(image_tokens(device, place_without_grad), image_reference(), tolerance=1e-4)


@pytest.mark.dead_end("only-the-view-under-no-grad")
def test_only_the_view_under_no_grad(config, device, measure):
    only_for(config, "weight-rows")
    result, start = embedding_table(device, write_rows_through_early_view)
    measure.compare(result, table_reference(start), tolerance=1e-5)
