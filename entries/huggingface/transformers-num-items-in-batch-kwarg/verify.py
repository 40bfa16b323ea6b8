# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "accelerate"]
# ///
"""A Trainer subclass overrides a method with the signature of before 4.46. A tiny Llama, four rows of unequal length.

A fix passes if one step changes the weights by what float64 gives for the mean over all tokens that count, also when
the four rows come in two accumulated batches.
"""

import copy
import site
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

LEARNING_RATE = 0.5
COUNTED = [8, 2, 5, 3]
"""How many tokens of each row have a label."""
IDS = torch.arange(9) * 3 + torch.arange(4)[:, None]
LABELS = torch.where(torch.arange(9) <= torch.tensor(COUNTED)[:, None], IDS, -100)
ROWS = [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)]


class OldLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class OldStep(Trainer):
    def training_step(self, model, inputs):
        return super().training_step(model, inputs)


class LossPassedOn(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class StepPassedOn(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs, num_items_in_batch)


class LossWithKeywords(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return super().compute_loss(model, inputs, return_outputs, **kwargs)


class StepWithKeywords(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, inputs, *args, **kwargs)


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"])
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
        if num_items_in_batch is None:
            num_items_in_batch = (labels != -100).sum()
        loss = cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class NumberSwallowed(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ARG002
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


NEW = pytest.mark.requires(transformers=">=5")


@pytest.fixture(
    params=[
        pytest.param("compute-loss", marks=NEW),
        pytest.param("compute-loss-accumulated", marks=NEW),
        pytest.param("training-step", marks=NEW),
        pytest.param("pinned-example", marks=pytest.mark.requires(transformers="<4.46")),
    ]
)
def config(request):
    """What is overridden. The example was written for the release that runs here, and fails under one beside it."""
    return request.param


def of_the_failing_release(config):
    if config == "pinned-example":
        pytest.skip("here it is the release beside this one that fails")


def arguments(config, folder, **options):
    accumulated = config.endswith("accumulated")
    fixed = {
        "per_device_train_batch_size": 2 if accumulated else 4,
        "gradient_accumulation_steps": 2 if accumulated else 1,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **{**fixed, **options})


def build():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))


def train(make, args, model=None):
    """The change of the weights in one step."""
    model = model or build()
    before = weights(model)
    make(model=model, args=args, train_dataset=ROWS).train()
    return weights(model) - before


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def reference():
    twin = copy.deepcopy(build()).double()
    logits = twin(IDS).logits[:, :-1]
    cross_entropy(logits.flatten(0, 1), LABELS[:, 1:].flatten()).backward()
    return torch.cat([-LEARNING_RATE * p.grad.flatten() for p in twin.parameters()])


def broken_call(config, folder):
    train(OldStep if config == "training-step" else OldLoss, arguments(config, folder))


def in_newer_release(run_script, call):
    """Runs a call of this module under a transformers of 4.46 or newer, if `sys.path` has one beside this one."""
    for folder in [*sys.path, *site.getsitepackages()]:
        found = [d.version.split(".") for d in metadata.distributions(name="transformers", path=[folder])]
        if found and tuple(map(int, found[0][:2])) >= (4, 46):
            return run_script(f"{Path(__file__).read_text()}\n\n{call}\n", env={"PYTHONPATH": folder})
    return pytest.skip("needs a second transformers, 4.46 or newer, beside this one")


@pytest.mark.reproduces
def test_reproduces(config, measure, run_script, tmp_path):
    if config == "pinned-example":
        in_newer_release(run_script, "broken_call('compute-loss', 'out')")
    try:
        broken_call(config, tmp_path)
    finally:
        measure.recovers(lambda: train(Trainer, arguments(config, tmp_path)).isfinite().all())


@pytest.mark.workaround("accept-argument")
def test_accept_argument(config, measure, tmp_path):
    of_the_failing_release(config)
    make = StepPassedOn if config == "training-step" else LossPassedOn
    measure.compare(measure(lambda: train(make, arguments(config, tmp_path))), reference(), tolerance=1e-4)


@pytest.mark.workaround("accept-kwargs")
def test_accept_kwargs(config, measure, tmp_path):
    of_the_failing_release(config)
    make = StepWithKeywords if config == "training-step" else LossWithKeywords
    measure.compare(measure(lambda: train(make, arguments(config, tmp_path))), reference(), tolerance=1e-4)


@pytest.mark.workaround("divide-own-loss")
def test_divide_own_loss(config, measure, tmp_path):
    of_the_failing_release(config)
    if config == "training-step":
        pytest.skip("nothing computes a loss of its own")
    measure.compare(measure(lambda: train(OwnLoss, arguments(config, tmp_path))), reference(), tolerance=1e-4)


@pytest.mark.workaround("pin-4-45")
def test_pin_4_45(config, measure, tmp_path):
    if config != "pinned-example":
        pytest.skip("needs transformers before 4.46")
    measure.compare(train(OldLoss, arguments(config, tmp_path)), reference(), tolerance=1e-4)


@pytest.mark.dead_end("swallow-the-number")
def test_swallow_the_number(config, measure, tmp_path):
    """Every accumulated batch counts as if it were the whole."""
    if config != "compute-loss-accumulated":
        pytest.skip("with a single batch per step the mean is the same")
    measure.compare(train(NumberSwallowed, arguments(config, tmp_path)), reference(), tolerance=0.1)


@pytest.mark.dead_end("no-accumulation")
def test_no_accumulation(config, tmp_path):
    of_the_failing_release(config)
    make = OldStep if config == "training-step" else OldLoss
    train(make, arguments(config, tmp_path, gradient_accumulation_steps=1, average_tokens_across_devices=False))


@pytest.mark.dead_end("model-takes-no-loss-arguments")
def test_model_takes_no_loss_arguments(config, tmp_path):
    of_the_failing_release(config)
    model = build()
    model.accepts_loss_kwargs = False
    train(OldStep if config == "training-step" else OldLoss, arguments(config, tmp_path), model)
