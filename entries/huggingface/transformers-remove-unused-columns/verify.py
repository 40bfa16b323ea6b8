# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.36", "accelerate", "datasets", "tokenizers", "peft"]
# ///
"""The Trainer drops every column of the data set. Four sentences and a tiny random BERT classifier.

A fix passes if one step changes the weights by what float64 gives for the sentences tokenized by hand.
"""

import copy
import site
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

LEARNING_RATE = 0.5
WORDS = ["<pad>", "<unk>", *(f"w{number}" for number in range(2, 32))]
SENTENCES = ["w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11", "w12 w13 w14 w15"]
ANSWERS = ["no", "yes", "yes", "no"]


class Wrapped(nn.Module):
    """A wrapper that shows nothing of the signature inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class WrappedByName(Wrapped):
    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids, attention_mask=attention_mask, labels=labels)


@pytest.fixture(
    params=[
        pytest.param("collator-tokenizes", marks=pytest.mark.requires(transformers=">=4.45")),
        pytest.param("list-of-texts", marks=pytest.mark.requires(transformers=">=4.45")),
        pytest.param("not-tokenized", marks=pytest.mark.requires(transformers=">=4.45")),
        pytest.param("wrapped-module", marks=pytest.mark.requires(transformers=">=5")),
        pytest.param("compiled-module", marks=pytest.mark.requires(transformers=">=5")),
        pytest.param("peft-before-4-37", marks=pytest.mark.requires(transformers="<4.37")),
    ]
)
def config(request):
    return request.param


RAW = ("collator-tokenizes", "list-of-texts", "not-tokenized")


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def bert():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # Larger weights than usual, so that every gradient stands well above the rounding of float32.
    settings = BertConfig(vocab_size=len(WORDS), pad_token_id=0, initializer_range=0.3, **shape, **no_dropout)
    return BertForSequenceClassification(settings)


def build(config):
    if config == "wrapped-module":
        return Wrapped(bert())
    if config == "compiled-module":
        return torch.compile(bert(), backend="eager")
    if config == "peft-before-4-37":
        return get_peft_model(bert(), LoraConfig(target_modules=["query", "dense"], init_lora_weights=False))
    return bert()


def raw():
    return Dataset.from_dict({"text": SENTENCES, "answer": ANSWERS})


def tokenized():
    def encode(batch):
        encoded = tokenizer()(batch["text"], return_token_type_ids=False)
        return {**encoded, "labels": [int(answer == "yes") for answer in batch["answer"]]}

    return raw().map(encode, batched=True, remove_columns=["text", "answer"])


def data(config):
    if config == "list-of-texts":
        return raw().to_list()
    return raw() if config in RAW else tokenized()


def collate_texts(rows):
    batch = tokenizer()([row["text"] for row in rows], padding=True, return_token_type_ids=False, return_tensors="pt")
    return {**batch, "labels": torch.tensor([int(row["answer"] == "yes") for row in rows])}


def collator(config):
    if config in ("not-tokenized", "list-of-texts"):
        return None
    return collate_texts if config in RAW else DataCollatorWithPadding(tokenizer())


def arguments(folder, **options):
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
        **options,
    )


def trainer(config, folder, model=None, dataset=None, **options):
    return Trainer(
        model=model or build(config),
        args=arguments(folder, **options),
        train_dataset=dataset or data(config),
        data_collator=collator(config),
    )


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters() if p.requires_grad])


def reference(model):
    """Change of the trained weights in float64, from ids written down by hand."""
    ids = torch.tensor([[2, 3, 4, 5, 6], [7, 8, 0, 0, 0], [9, 10, 11, 0, 0], [12, 13, 14, 15, 0]])
    twin = copy.deepcopy(getattr(model, "_orig_mod", model)).double().cpu()
    logits = twin(input_ids=ids, attention_mask=(ids != 0).long()).logits
    cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
    return torch.cat([-LEARNING_RATE * p.grad.flatten() for p in twin.parameters() if p.requires_grad])


def check(measure, ready):
    before, expected = weights(ready.model), reference(ready.model)
    ready.train()
    measure.compare(weights(ready.model) - before, expected, tolerance=1e-4)


def newer_release():
    """The folder of a transformers on `sys.path` that looks inside PEFT models."""
    for folder in [*sys.path, *site.getsitepackages()]:
        found = [d.version.split(".") for d in metadata.distributions(name="transformers", path=[folder])]
        if found and tuple(map(int, found[0][:2])) >= (4, 37):
            return folder
    return pytest.skip("needs a second transformers, 4.37 or newer, beside this one")


@pytest.mark.reproduces
def test_reproduces(config, measure, tmp_path):
    broken = trainer(config, tmp_path)
    try:
        broken.train()
    finally:
        measure.recovers(lambda: broken.args.device)


@pytest.mark.workaround("keep-columns")
def test_keep_columns(config, measure, tmp_path):
    if collator(config) is None:
        pytest.skip("nothing turns the kept texts into numbers")
    check(measure, trainer(config, tmp_path, remove_unused_columns=False))


@pytest.mark.workaround("tokenize")
def test_tokenize(config, measure, tmp_path):
    only_for(config, *RAW)
    ready = Trainer(
        model=bert(),
        args=arguments(tmp_path),
        train_dataset=tokenized(),
        data_collator=DataCollatorWithPadding(tokenizer()),
    )
    check(measure, ready)


@pytest.mark.workaround("name-the-arguments")
def test_name_the_arguments(config, measure, tmp_path):
    only_for(config, "wrapped-module")
    check(measure, trainer(config, tmp_path, model=WrappedByName(bert())))


@pytest.mark.workaround("let-the-trainer-compile")
def test_let_the_trainer_compile(config, measure, tmp_path):
    only_for(config, "compiled-module")
    check(measure, trainer(config, tmp_path, model=bert(), torch_compile=True, torch_compile_backend="eager"))


@pytest.mark.workaround("upgrade-for-peft")
def test_upgrade_for_peft(config, measure, run_script):
    only_for(config, "peft-before-4-37")
    call = """
    ready = trainer("peft-before-4-37", "out")
    before, expected = weights(ready.model), reference(ready.model)
    ready.train()
    print("error", float((weights(ready.model) - before - expected).abs().max() / expected.abs().max()))
    """
    program = Path(__file__).read_text() + "".join(f"\n{line.strip()}" for line in call.splitlines())
    printed = run_script(program, env={"PYTHONPATH": newer_release()})
    measure.compare(float(printed.rpartition("error ")[2]) + 1, 1.0, tolerance=1e-4)


@pytest.mark.dead_end("follow-the-hint-only")
def test_follow_the_hint_only(config, tmp_path):
    only_for(config, "not-tokenized", "list-of-texts")
    trainer(config, tmp_path, remove_unused_columns=False).train()


@pytest.mark.dead_end("result-of-map-dropped")
def test_result_of_map_dropped(config, tmp_path):
    only_for(config, "not-tokenized")
    dataset = raw()
    dataset.map(lambda row: tokenizer()(row["text"]))
    trainer(config, tmp_path, dataset=dataset).train()


@pytest.mark.dead_end("rename-to-input-ids")
def test_rename_to_input_ids(config, tmp_path):
    only_for(config, "collator-tokenizes", "not-tokenized")
    trainer(config, tmp_path, dataset=raw().rename_column("text", "input_ids")).train()
