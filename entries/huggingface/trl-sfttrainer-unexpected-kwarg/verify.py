# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.45", "trl>=0.11", "datasets", "tokenizers"]
# ///
"""Options are passed to SFTTrainer under a name that the installed trl does not have.

A Llama of one layer and sixteen sentences of 40 words stand for a fine-tuning script. A fix passes if the trainer is
built, sees the tokens it was asked to see, and takes a first step from the loss that the plain formula gives.
"""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments
from trl import SFTConfig, SFTTrainer

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(29))]
SHORT = 16
"""The length asked for; the sentences are longer."""


@pytest.fixture(
    params=[
        pytest.param("dataset-text-field", marks=pytest.mark.requires(trl=">=0.16")),
        pytest.param("max-seq-length", marks=pytest.mark.requires(trl=">=0.16")),
        pytest.param("tokenizer", marks=pytest.mark.requires(trl=">=0.16")),
        pytest.param("processing-class-before-0-12", marks=pytest.mark.requires(trl="<0.12")),
    ]
)
def config(request):
    """The argument that is passed although the installed trainer does not take it."""
    return request.param


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, pad_token_id=0, **shape))


def data(column="body"):
    return Dataset.from_dict(
        {column: [" ".join(WORDS[3 + (row * place) % 29] for place in range(40)) for row in range(16)]}
    )


def settings(device, **others):
    """What every run has in common. One step over all rows, so that its loss does not depend on their order."""
    return {
        "output_dir": "runs",
        "max_steps": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": False,
        **others,
    }


def old_call(config, device):
    """The script as it was written, for a release that took the argument."""
    arguments = {
        "dataset-text-field": {"dataset_text_field": "body", "processing_class": tokenizer()},
        "max-seq-length": {"max_seq_length": SHORT, "processing_class": tokenizer()},
        "tokenizer": {"tokenizer": tokenizer()},
        "processing-class-before-0-12": {"processing_class": tokenizer()},
    }[config]
    return SFTTrainer(model=model(), args=sft_config(config, device), train_dataset=rows(config), **arguments)


def sft_config(config, device, **others):
    return SFTConfig(**settings(device, **others))


def rows(config):
    """Only one of the scripts names a column of its own."""
    return data("body" if config == "dataset-text-field" else "text")


def float64_loss(tokens):
    """Mean cross entropy of each next token, by hand, before the step."""
    ids = torch.tensor(tokens)
    logits = model().double()(input_ids=ids).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def check(measure, trainer, length):
    """The trainer has the tokens it should have, and trains from the right loss."""
    tokens = [row["input_ids"] for row in trainer.train_dataset]
    assert {len(row) for row in tokens} == {length}
    assert [row[:SHORT] for row in tokens] == [tokenizer()(text).input_ids[:SHORT] for text in data()["body"]]
    before = {name: weight.detach().cpu().clone() for name, weight in trainer.model.named_parameters()}
    measure.compare(trainer.train().training_loss, float64_loss(tokens).item(), tolerance=1e-4)
    after = dict(trainer.model.named_parameters())
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name].cpu()) for name in before)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is about another argument than {config}")


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        old_call(config, device)
    finally:
        measure.recovers(lambda: SFTConfig(**settings(device)))


@pytest.mark.workaround("move-to-sftconfig")
def test_move_to_sftconfig(config, device, measure):
    only_for(config, "dataset-text-field", "max-seq-length")
    args = SFTConfig(**settings(device, dataset_text_field="body", max_length=SHORT, packing=False))
    trainer = SFTTrainer(model=model(), args=args, train_dataset=data(), processing_class=tokenizer())
    check(measure, trainer, SHORT)


@pytest.mark.workaround("rename-tokenizer")
def test_rename_tokenizer(config, device, measure):
    only_for(config, "tokenizer")
    args = sft_config(config, device)
    trainer = SFTTrainer(model=model(), args=args, train_dataset=data("text"), processing_class=tokenizer())
    check(measure, trainer, 41)


@pytest.mark.workaround("old-names-for-old-trl")
def test_old_names_for_old_trl(config, device, measure):
    only_for(config, "processing-class-before-0-12")
    args = SFTConfig(**settings(device, dataset_text_field="body", max_seq_length=SHORT))
    trainer = SFTTrainer(model=model(), args=args, train_dataset=data(), tokenizer=tokenizer())
    check(measure, trainer, SHORT)


@pytest.mark.dead_end("training-arguments")
def test_training_arguments(config, device):
    only_for(config, "dataset-text-field", "max-seq-length")
    option = {"dataset_text_field": "body"} if config == "dataset-text-field" else {"max_seq_length": SHORT}
    args = TrainingArguments(**settings(device, **option))
    SFTTrainer(model=model(), args=args, train_dataset=rows(config), processing_class=tokenizer())


@pytest.mark.dead_end("config-with-old-name")
def test_config_with_old_name(config, device):
    only_for(config, "max-seq-length", "tokenizer")
    option = {"tokenizer": tokenizer()} if config == "tokenizer" else {"max_seq_length": SHORT}
    args = SFTConfig(**settings(device, **option))
    SFTTrainer(model=model(), args=args, train_dataset=rows(config))


@pytest.mark.dead_end("new-name-in-trainer")
def test_new_name_in_trainer(config, device):
    only_for(config, "max-seq-length")
    args = sft_config(config, device)
    SFTTrainer(model=model(), args=args, train_dataset=rows(config), processing_class=tokenizer(), max_length=SHORT)


@pytest.mark.dead_end("drop-the-argument")
def test_drop_the_argument(config, device, measure):
    """The column is not found, the length is another one, or there is nothing to make tokens with."""
    only_for(config, "dataset-text-field", "max-seq-length", "tokenizer")
    given = {} if config == "tokenizer" else {"processing_class": tokenizer()}
    trainer = SFTTrainer(model=model(), args=sft_config(config, device), train_dataset=rows(config), **given)
    check(measure, trainer, SHORT)
