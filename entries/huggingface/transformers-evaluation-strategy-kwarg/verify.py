# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.30", "accelerate"]
# ///
"""A script names the option that says when to evaluate as another release of transformers does.

It is `eval_strategy` from 4.41 on; `evaluation_strategy` is gone by 4.51. The program trains a tiny model for four
steps and evaluates every second one; a fix passes if those evaluations took place and gave the losses of float64.
"""

import ast
import copy
import inspect
import site
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

LEARNING_RATE = 0.1
ROWS = [{"input_ids": torch.arange(6) + number, "labels": number % 2} for number in range(8)]
STEPS = {"max_steps": 4, "eval_steps": 2}


@pytest.fixture(
    params=[
        pytest.param("old-name", marks=pytest.mark.requires(transformers=">=4.51")),
        pytest.param("old-name-seq2seq", marks=pytest.mark.requires(transformers=">=4.51")),
        pytest.param("old-name-beside-4-45", marks=pytest.mark.requires(transformers=">=4.41,<4.46")),
        pytest.param("new-name-before-4-41", marks=pytest.mark.requires(transformers="<4.41")),
    ]
)
def config(request):
    """Which name meets which release. `beside-4-45` is the old name in a newer release than the one that runs this."""
    return request.param


def settings(folder):
    return {
        "output_dir": str(folder),
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **STEPS,
    }


def arguments_class(config):
    return Seq2SeqTrainingArguments if config.endswith("seq2seq") else TrainingArguments


def broken_call(config, folder):
    if config == "new-name-before-4-41":
        return TrainingArguments(eval_strategy="steps", **settings(folder))
    return arguments_class(config)(evaluation_strategy="steps", **settings(folder))


def build():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=32, **shape, **no_dropout))


def evaluations(args):
    """Steps at which the trainer evaluated, with the losses it found. All rows are one batch: their order is moot."""
    trainer = Trainer(model=build(), args=args, train_dataset=ROWS, eval_dataset=ROWS)
    trainer.train()
    return {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}


def reference():
    """The same losses in float64, with plain gradient descent."""
    model, losses = copy.deepcopy(build()).double(), {}
    ids, labels = torch.stack([row["input_ids"] for row in ROWS]), torch.tensor([row["labels"] for row in ROWS])
    for step in range(1, STEPS["max_steps"] + 1):
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= LEARNING_RATE * p.grad
            if step % STEPS["eval_steps"] == 0:
                losses[step] = model(input_ids=ids, labels=labels).loss.item()
    return losses


def check(measure, args):
    measure.compare(evaluations(args), reference(), tolerance=1e-4)


def elsewhere(run_script, lowest, call):
    """Runs a call of this module under another transformers on `sys.path`, of release `lowest` or newer."""
    for folder in [*sys.path, *site.getsitepackages()]:
        found = [d.version.split(".") for d in metadata.distributions(name="transformers", path=[folder])]
        if found and tuple(map(int, found[0][:2])) >= lowest:
            return run_script(f"{Path(__file__).read_text()}\n\n{call}\n", env={"PYTHONPATH": folder})
    return pytest.skip(f"needs a second transformers, {lowest} or newer, beside this one")


def of_the_failing_release(config):
    if config == "old-name-beside-4-45":
        pytest.skip("here it is the release beside this one that fails")


@pytest.mark.reproduces
def test_reproduces(config, measure, run_script, tmp_path):
    if config == "old-name-beside-4-45":
        elsewhere(run_script, (4, 51), "broken_call('old-name', 'out')")
    try:
        broken_call(config, tmp_path)
    finally:
        measure.recovers(lambda: TrainingArguments(**settings(tmp_path)))


@pytest.mark.workaround("rename-to-eval-strategy")
def test_rename_to_eval_strategy(config, measure, tmp_path):
    of_the_failing_release(config)
    if config == "new-name-before-4-41":
        pytest.skip("this release does not know the new name")
    check(measure, arguments_class(config)(eval_strategy="steps", **settings(tmp_path)))


@pytest.mark.workaround("choose-by-signature")
def test_choose_by_signature(config, measure, tmp_path):
    of_the_failing_release(config)
    known = inspect.signature(TrainingArguments).parameters
    name = "eval_strategy" if "eval_strategy" in known else "evaluation_strategy"
    check(measure, arguments_class(config)(**{name: "steps"}, **settings(tmp_path)))


@pytest.mark.workaround("upgrade-transformers")
def test_upgrade_transformers(config, measure, run_script):
    if config != "new-name-before-4-41":
        pytest.skip("this release is the newer one already")
    call = "print('evaluated', evaluations(TrainingArguments(eval_strategy='steps', **settings('out'))))"
    printed = elsewhere(run_script, (4, 41), call)
    losses = ast.literal_eval(printed.rpartition("evaluated ")[2].strip())
    measure.compare(losses, reference(), tolerance=1e-4)


@pytest.mark.workaround("pin-older-transformers")
def test_pin_older_transformers(config, measure, tmp_path):
    if config != "old-name-beside-4-45":
        pytest.skip("needs transformers 4.41 to 4.45, which knows both names")
    measure.record("transformers", metadata.version("transformers"))
    check(measure, broken_call(config, tmp_path))


@pytest.mark.workaround("old-name")
def test_old_name(config, measure, tmp_path):
    if config != "new-name-before-4-41":
        pytest.skip("this release does not know the old name")
    check(measure, TrainingArguments(evaluation_strategy="steps", **settings(tmp_path)))


@pytest.mark.dead_end("do-eval-only")
def test_do_eval_only(config, measure, tmp_path):
    of_the_failing_release(config)
    check(measure, arguments_class(config)(do_eval=True, **settings(tmp_path)))


@pytest.mark.dead_end("set-attribute-later")
def test_set_attribute_later(config, measure, tmp_path):
    of_the_failing_release(config)
    args = arguments_class(config)(**settings(tmp_path))
    setattr(args, "eval_strategy" if config == "new-name-before-4-41" else "evaluation_strategy", "steps")
    check(measure, args)
