# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.46", "accelerate", "tokenizers"]
# ///
"""A script passes `tokenizer=` to a Trainer of transformers 5. Tiny random models, a tokenizer of 29 words.

Sentences differ in length, so that the tokenizer is needed to pad them. A fix passes if the weights change by what
float64 gives for one step over the padded batch, and the tokenizer is saved beside the model.
"""

import copy
import inspect
import site
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

LEARNING_RATE = 0.5
WORDS = ["<pad>", "<unk>", "</s>", *(f"w{number}" for number in range(26))]
SENTENCES = ["w1 w2 w3 w4 w5", "w6 w7", "w8 w9 w10", "w11 w12 w13 w14"]


@pytest.fixture(
    params=[
        pytest.param("classifier", marks=pytest.mark.requires(transformers=">=5")),
        pytest.param("seq2seq", marks=pytest.mark.requires(transformers=">=5")),
        pytest.param("library-on-top", marks=pytest.mark.requires(transformers=">=4.46,<5")),
    ]
)
def config(request):
    """Whose call it is. The library is meant for transformers 4, and fails under a transformers 5 beside it."""
    return request.param


class Distiller(Trainer):
    """A trainer of some library that knows the old name."""

    def __init__(self, student, tokenizer, **others):
        super().__init__(model=student, tokenizer=tokenizer, **others)


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build(config):
    """Class of the trainer, model without dropout, rows."""
    torch.manual_seed(0)
    rows = [dict(tokenizer()(sentence, return_token_type_ids=False)) for sentence in SENTENCES]
    if config == "seq2seq":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(WORDS), dropout_rate=0.0, **shape))
        return Seq2SeqTrainer, model, [{**row, "labels": [number, 2]} for number, row in enumerate(rows)]
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), pad_token_id=0, **shape, **no_dropout))
    return Trainer, model, [{**row, "labels": number % 2} for number, row in enumerate(rows)]


def arguments(folder):
    return Seq2SeqTrainingArguments(
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


def old_call(config, folder):
    make, model, rows = build(config)
    if config == "library-on-top":
        return Distiller(model, tokenizer(), args=arguments(folder), train_dataset=rows)
    return make(model=model, args=arguments(folder), train_dataset=rows, tokenizer=tokenizer())


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def reference(model, rows):
    """Change of the weights in float64; the batch is padded by hand."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows], device=model.device)
    labels = torch.tensor([row["labels"] for row in rows], device=model.device)
    twin = copy.deepcopy(model).double()
    twin(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
    return torch.cat([-LEARNING_RATE * p.grad.flatten().cpu() for p in twin.parameters()])


def check(measure, trainer, folder):
    """Trains one step, compares the change of the weights, and looks for the saved tokenizer."""
    model = trainer.model
    before, expected = weights(model), reference(model, trainer.train_dataset)
    trainer.train()
    measure.compare(weights(model) - before, expected, tolerance=1e-4)
    trainer.save_model(folder / "model")
    assert (folder / "model" / "tokenizer.json").is_file()


def own_call(config):
    if config == "library-on-top":
        pytest.skip("the call is the library's, not yours")


def in_transformers_5(run_script, call):
    """Runs a call of this module under the newer release, if `sys.path` has one beside the older."""
    for folder in [*sys.path, *site.getsitepackages()]:
        if any(found.version >= "5" for found in metadata.distributions(name="transformers", path=[folder])):
            return run_script(f"{Path(__file__).read_text()}\n\n{call}\n", env={"PYTHONPATH": folder})
    return pytest.skip("needs a second transformers, 5.0 or newer, beside this one")


@pytest.mark.reproduces
def test_reproduces(config, measure, run_script, tmp_path):
    if config == "library-on-top":
        in_transformers_5(run_script, "old_call('library-on-top', 'runs')")
    try:
        old_call(config, tmp_path)
    finally:
        measure.recovers(lambda: Trainer(model=build(config)[1], args=arguments(tmp_path)))


@pytest.mark.workaround("rename")
def test_rename(config, measure, tmp_path):
    own_call(config)
    make, model, rows = build(config)
    trainer = make(model=model, args=arguments(tmp_path), train_dataset=rows, processing_class=tokenizer())
    check(measure, trainer, tmp_path)


@pytest.mark.workaround("leave-out")
def test_leave_out(config, measure, tmp_path):
    own_call(config)
    make, model, rows = build(config)
    collator = DataCollatorWithPadding(tokenizer())
    trainer = make(model=model, args=arguments(tmp_path), train_dataset=rows, data_collator=collator)
    check(measure, trainer, tmp_path)


@pytest.mark.workaround("choose-by-signature")
def test_choose_by_signature(config, measure, tmp_path):
    own_call(config)
    make, model, rows = build(config)
    name = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"
    trainer = make(model=model, args=arguments(tmp_path), train_dataset=rows, **{name: tokenizer()})
    check(measure, trainer, tmp_path)


@pytest.mark.workaround("upgrade-wrapper")
def test_upgrade_wrapper(config, measure, tmp_path):
    """The second half of the advice: the library runs with the transformers 4 that it was written for."""
    if config != "library-on-top":
        pytest.skip("the call is your own, there is no library to upgrade")
    measure.record("transformers", metadata.version("transformers"))
    check(measure, old_call(config, tmp_path), tmp_path)


@pytest.mark.dead_end("set-attribute-later")
def test_set_attribute_later(config, tmp_path):
    own_call(config)
    make, model, rows = build(config)
    trainer = make(model=model, args=arguments(tmp_path), train_dataset=rows)
    trainer.tokenizer = tokenizer()
    trainer.train()


@pytest.mark.dead_end("move-to-arguments")
def test_move_to_arguments(config, tmp_path):
    own_call(config)
    make, model, rows = build(config)
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), tokenizer=tokenizer())
    make(model=model, args=args, train_dataset=rows).train()
