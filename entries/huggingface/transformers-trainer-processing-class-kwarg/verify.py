# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "accelerate", "tokenizers"]
# ///
"""`processing_class` reaches a Trainer of transformers before 4.46. A tiny Llama, a tokenizer of 29 words, four texts.

Texts differ in length, so that the tokenizer is needed to pad them. A fix passes if the weights change by what float64
gives for one step over the padded batch, and the tokenizer is saved beside the model.
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
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

LEARNING_RATE = 0.5
WORDS = ["<pad>", "<unk>", "</s>", *(f"w{number}" for number in range(26))]
SENTENCES = ["w1 w2 w3 w4 w5", "w6 w7", "w8 w9 w10", "w11 w12 w13 w14"]


class GroupTrainer(Trainer):
    """A stand-in for trl's trainers, which hand the argument on like this from 0.12."""

    def __init__(self, model, processing_class=None, **others):
        super().__init__(model=model, processing_class=processing_class, **others)


pytestmark = pytest.mark.requires(transformers="<4.46")


@pytest.fixture(params=["script-newer", "library-newer"])
def config(request):
    """Who passes the argument: the script, or the library that it calls."""
    return request.param


def only_for(config, name):
    if config != name:
        pytest.skip(f"is not about {config}")


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build():
    """A classifier without dropout, and its rows."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), pad_token_id=0, **shape, **no_dropout))
    encoded = [dict(tokenizer()(sentence, return_token_type_ids=False)) for sentence in SENTENCES]
    return model, [{**row, "labels": number % 2} for number, row in enumerate(encoded)]


def settings(folder):
    return {
        "output_dir": str(folder),
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def new_call(config, folder):
    model, rows = build()
    make = GroupTrainer if config == "library-newer" else Trainer
    return make(
        model=model, args=TrainingArguments(**settings(folder)), train_dataset=rows, processing_class=tokenizer()
    )


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def reference(model):
    """Change of the weights in float64; the batch is padded by hand, words have the number after their `w` plus 3."""
    ids = torch.tensor([[4, 5, 6, 7, 8], [9, 10, 0, 0, 0], [11, 12, 13, 0, 0], [14, 15, 16, 17, 0]])
    twin = copy.deepcopy(model).double().cpu()
    cross_entropy(twin(ids, attention_mask=(ids != 0).long()).logits, torch.tensor([0, 1, 0, 1])).backward()
    return torch.cat([-LEARNING_RATE * p.grad.flatten() for p in twin.parameters()])


def error(trainer, folder):
    """Relative error of the change of the weights in one step; the tokenizer has to be saved with the model."""
    before, wanted = weights(trainer.model), reference(trainer.model)
    trainer.train()
    trainer.save_model(f"{folder}/model")
    assert Path(folder, "model", "tokenizer.json").is_file()
    return float((weights(trainer.model) - before - wanted).abs().max() / wanted.abs().max())


def in_newer_release(run_script, call):
    """Runs a call of this module under a transformers of 4.46 or newer, if `sys.path` has one beside this one."""
    for folder in [*sys.path, *site.getsitepackages()]:
        found = [d.version.split(".") for d in metadata.distributions(name="transformers", path=[folder])]
        if found and tuple(map(int, found[0][:2])) >= (4, 46):
            return run_script(f"{Path(__file__).read_text()}\n\n{call}\n", env={"PYTHONPATH": folder})
    return pytest.skip("needs a second transformers, 4.46 or newer, beside this one")


@pytest.mark.reproduces
def test_reproduces(config, measure, tmp_path):
    try:
        new_call(config, tmp_path)
    finally:
        measure.recovers(lambda: Trainer(model=build()[0], args=TrainingArguments(**settings(tmp_path))))


@pytest.mark.workaround("upgrade-transformers")
def test_upgrade_transformers(config, measure, run_script):
    printed = in_newer_release(run_script, f"print('error', error(new_call({config!r}, 'out'), 'out'))")
    measure.compare(1 + float(printed.rpartition("error ")[2]), 1.0, tolerance=1e-4)


@pytest.mark.workaround("tokenizer-argument")
def test_tokenizer_argument(config, measure, tmp_path):
    only_for(config, "script-newer")
    model, rows = build()
    args = TrainingArguments(**settings(tmp_path))
    trainer = Trainer(model=model, args=args, train_dataset=rows, tokenizer=tokenizer())
    measure.compare(1 + error(trainer, tmp_path), 1.0, tolerance=1e-4)


@pytest.mark.workaround("choose-by-signature")
def test_choose_by_signature(config, measure, tmp_path):
    only_for(config, "script-newer")
    model, rows = build()
    args = TrainingArguments(**settings(tmp_path))
    name = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"
    trainer = Trainer(model=model, args=args, train_dataset=rows, **{name: tokenizer()})
    measure.compare(1 + error(trainer, tmp_path), 1.0, tolerance=1e-4)


@pytest.mark.workaround("older-trl")
@pytest.mark.requires(trl="<0.12", datasets=">=2.0")
def test_older_trl(config, measure, tmp_path):
    """The real trl, fine-tuning a Llama on the same texts."""
    only_for(config, "library-newer")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, **shape))
    ids = torch.tensor([tokenizer()(SENTENCES[0]).input_ids])
    wanted = cross_entropy(copy.deepcopy(model).double()(ids).logits[0, :-1], ids[0, 1:]).item()
    args = SFTConfig(**settings(tmp_path), dataset_text_field="text", max_seq_length=16)
    data = Dataset.from_dict({"text": SENTENCES[:1]})
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, tokenizer=tokenizer())
    measure.compare(trainer.train().training_loss, wanted, tolerance=1e-4)


@pytest.mark.dead_end("only-trl")
@pytest.mark.requires(trl=">=0.14")
def test_only_trl(config):
    """A current trl does not even import here."""
    only_for(config, "library-newer")
    import trl

    assert trl.GRPOTrainer


@pytest.mark.dead_end("set-attribute-later")
def test_set_attribute_later(config, tmp_path):
    only_for(config, "script-newer")
    model, rows = build()
    trainer = Trainer(model=model, args=TrainingArguments(**settings(tmp_path)), train_dataset=rows)
    trainer.processing_class = tokenizer()
    trainer.train()
