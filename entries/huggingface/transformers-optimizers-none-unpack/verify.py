# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.41", "accelerate"]
# ///
"""`optimizers` of a Trainer is something else than a pair. One step of plain gradient descent of a tiny BERT.

A fix passes if the weights change by what float64 gives.
"""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.41", accelerate=">=0.26")

LEARNING_RATE = 0.5
IDS = torch.arange(6) * 3 + torch.arange(4)[:, None]
ROWS = [{"input_ids": ids, "labels": number % 2} for number, ids in enumerate(IDS)]


class ShapedTrainer(Trainer):
    """A subclass as people write it: None stands for what was not given."""

    def __init__(self, model, args, train_dataset, optimizers=None):
        super().__init__(model=model, args=args, train_dataset=train_dataset, optimizers=optimizers)


class MendedTrainer(Trainer):
    def __init__(self, model, args, train_dataset, optimizers=None):
        optimizers = optimizers or (None, None)
        super().__init__(model=model, args=args, train_dataset=train_dataset, optimizers=optimizers)


class SgdTrainer(Trainer):
    def create_optimizer(self, model=None):  # noqa: ARG002
        self.optimizer = sgd(self.model)
        return self.optimizer


@pytest.fixture(params=["none-passed", "default-of-a-subclass", "optimizer-alone"])
def config(request):
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def build(device):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=32, **shape, **no_dropout)).to(device)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def arguments(folder):
    return TrainingArguments(
        output_dir=str(folder),
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        max_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def broken_call(config, model, folder, make=Trainer):
    """Note that `optim="sgd"` in the arguments does not spare the call."""
    parts = {"model": model, "args": arguments(folder), "train_dataset": ROWS}
    if config == "default-of-a-subclass":
        return ShapedTrainer(**parts)
    return make(**parts, optimizers=None if config == "none-passed" else sgd(model))


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def check(measure, trainer):
    twin = copy.deepcopy(trainer.model).double().cpu()
    cross_entropy(twin(IDS).logits, torch.tensor([0, 1, 0, 1])).backward()
    expected = torch.cat([-LEARNING_RATE * p.grad.flatten() for p in twin.parameters()])
    before = weights(trainer.model)
    trainer.train()
    measure.compare(weights(trainer.model) - before, expected, tolerance=1e-4)


@pytest.mark.reproduces
def test_reproduces(config, device, measure, tmp_path):
    model = build(device)
    try:
        broken_call(config, model, tmp_path)
    finally:
        measure.recovers(lambda: Trainer(model=model, args=arguments(tmp_path), train_dataset=ROWS))


@pytest.mark.workaround("leave-out")
def test_leave_out(config, device, measure, tmp_path):
    only_for(config, "none-passed", "default-of-a-subclass")
    if config == "none-passed":
        trainer = Trainer(model=build(device), args=arguments(tmp_path), train_dataset=ROWS)
    else:
        trainer = ShapedTrainer(build(device), arguments(tmp_path), ROWS, optimizers=(None, None))
    check(measure, trainer)


@pytest.mark.workaround("default-in-wrapper")
def test_default_in_wrapper(config, device, measure, tmp_path):
    only_for(config, "default-of-a-subclass")
    check(measure, MendedTrainer(build(device), arguments(tmp_path), ROWS))


@pytest.mark.workaround("give-a-pair")
def test_give_a_pair(config, device, measure, tmp_path):
    only_for(config, "optimizer-alone")
    model = build(device)
    pair = (sgd(model), None)
    check(measure, Trainer(model=model, args=arguments(tmp_path), train_dataset=ROWS, optimizers=pair))


@pytest.mark.dead_end("create-optimizer")
def test_create_optimizer(config, device, tmp_path):
    only_for(config, "none-passed", "optimizer-alone")
    broken_call(config, build(device), tmp_path, make=SgdTrainer)


@pytest.mark.dead_end("list-of-one")
def test_list_of_one(config, device, tmp_path):
    only_for(config, "optimizer-alone")
    model = build(device)
    Trainer(model=model, args=arguments(tmp_path), train_dataset=ROWS, optimizers=[sgd(model)])


@pytest.mark.dead_end("class-instead-of-optimizer")
def test_class_instead_of_optimizer(config, device, tmp_path):
    only_for(config, "optimizer-alone")
    pair = (torch.optim.SGD, None)
    Trainer(model=build(device), args=arguments(tmp_path), train_dataset=ROWS, optimizers=pair).train()
