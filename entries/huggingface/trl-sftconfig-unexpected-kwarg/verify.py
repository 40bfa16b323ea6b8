# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.45", "trl>=0.11", "datasets", "tokenizers"]
# ///
"""SFTConfig is given a field that the installed trl does not have.

A Llama of one layer and sixteen sentences of 40 words stand for a fine-tuning script. A fix passes if the rows have the
length asked for and the first step starts from the loss that the plain formula gives.
"""

import inspect

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(29))]
SHORT = 16
"""The length asked for; the sentences are longer."""

OLD_FIELDS = {
    "max-seq-length": {"max_seq_length": SHORT},
    "constant-length-fields": {"num_of_sequences": 1024, "chars_per_token": 3.6},
    "max-length-before-0-16": {"max_length": SHORT},
}


@pytest.fixture(
    params=[
        pytest.param("max-seq-length", marks=pytest.mark.requires(trl=">=0.20")),
        pytest.param("constant-length-fields", marks=pytest.mark.requires(trl=">=0.20")),
        pytest.param("max-length-before-0-16", marks=pytest.mark.requires(trl="<0.16")),
    ]
)
def config(request):
    """Which field the installed SFTConfig does not have."""
    return request.param


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, pad_token_id=0, **shape))


def data():
    return Dataset.from_dict(
        {"text": [" ".join(WORDS[3 + (row * place) % 29] for place in range(40)) for row in range(16)]}
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


def float64_loss(tokens):
    """Mean cross entropy of each next token, by hand, before the step."""
    ids = torch.tensor(tokens)
    logits = model().double()(input_ids=ids).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def check(measure, trainer, length):
    """The trainer has the tokens it should have, and trains from the right loss."""
    tokens = [row["input_ids"] for row in trainer.train_dataset]
    assert {len(row) for row in tokens} == {length}
    assert [row[:SHORT] for row in tokens] == [tokenizer()(text).input_ids[:SHORT] for text in data()["text"]]
    before = {name: weight.detach().cpu().clone() for name, weight in trainer.model.named_parameters()}
    measure.compare(trainer.train().training_loss, float64_loss(tokens).item(), tolerance=1e-4)
    after = dict(trainer.model.named_parameters())
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name].cpu()) for name in before)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is about another field than {config}")


def trainer(args, processing_class=None, **others):
    # The argument's name is that of the installed release: it is not what this is about.
    name = "tokenizer" if "tokenizer" in inspect.signature(SFTTrainer.__init__).parameters else "processing_class"
    others[name] = processing_class or tokenizer()
    return SFTTrainer(model=model(), args=args, train_dataset=data(), **others)


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        SFTConfig(**settings(device), **OLD_FIELDS[config])
    finally:
        measure.recovers(lambda: SFTConfig(**settings(device)))


@pytest.mark.workaround("max-length")
def test_max_length(config, device, measure):
    only_for(config, "max-seq-length")
    check(measure, trainer(SFTConfig(**settings(device), max_length=SHORT)), SHORT)


@pytest.mark.workaround("drop-field")
def test_drop_field(config, device, measure):
    only_for(config, "constant-length-fields")
    check(measure, trainer(SFTConfig(**settings(device))), 41)


@pytest.mark.workaround("max-seq-length-for-old-trl")
def test_max_seq_length_for_old_trl(config, device, measure):
    only_for(config, "max-length-before-0-16")
    check(measure, trainer(SFTConfig(**settings(device), dataset_text_field="text", max_seq_length=SHORT)), SHORT)


@pytest.mark.dead_end("pass-it-to-the-trainer")
def test_pass_it_to_the_trainer(config, device):
    only_for(config, "max-seq-length", "constant-length-fields")
    trainer(SFTConfig(**settings(device)), **OLD_FIELDS[config])


@pytest.mark.dead_end("drop-the-length")
def test_drop_the_length(config, device, measure):
    only_for(config, "max-seq-length")
    check(measure, trainer(SFTConfig(**settings(device))), SHORT)


@pytest.mark.dead_end("set-the-attribute-later")
def test_set_the_attribute_later(config, device, measure):
    only_for(config, "max-seq-length")
    args = SFTConfig(**settings(device))
    args.max_seq_length = SHORT
    check(measure, trainer(args), SHORT)


@pytest.mark.dead_end("tokenizer-model-max-length")
def test_tokenizer_model_max_length(config, device, measure):
    only_for(config, "max-seq-length")
    limited = tokenizer()
    limited.model_max_length = SHORT
    check(measure, trainer(SFTConfig(**settings(device)), limited), SHORT)
