# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.46", "accelerate", "datasets", "tokenizers"]
# ///
"""A Trainer gets no loss from its model, for four reasons, each with a tiny random model and four rows.

A fix passes if one step changes the weights by what float64 gives for the loss that was meant.
"""

import copy

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

pytestmark = pytest.mark.requires(transformers=">=4.46")

LEARNING_RATE = 0.5
PAD = 0
IDS = [[5, 6, 7, 8], [9, 10, 11, PAD], [12, 13, PAD, PAD], [14, 15, 16, 17]]
CLASSES = [0, 1, 1, 0]


class Bag(nn.Module):
    """A model of one's own that knows no labels."""

    def __init__(self):
        super().__init__()
        self.scores = nn.EmbeddingBag(32, 2)

    def forward(self, input_ids):
        return {"logits": self.scores(input_ids)}


class BagWithLoss(Bag):
    def forward(self, input_ids, labels=None):
        outputs = super().forward(input_ids)
        if labels is not None:
            outputs["loss"] = cross_entropy(outputs["logits"], labels)
        return outputs


class LossTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


@pytest.fixture(params=["causal-without-labels", "other-column-name", "base-model", "own-module"])
def config(request):
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def bert(make):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return make(BertConfig(vocab_size=32, **shape, **no_dropout))


def build(config, tiny_llama):
    torch.manual_seed(0)
    if config == "causal-without-labels":
        return tiny_llama(vocab_size=32)
    if config == "own-module":
        return Bag()
    return bert(BertModel if config == "base-model" else BertForSequenceClassification)


def data(config):
    """Rows with classes in a column `labels`, except where the lack of that column is the cause."""
    columns = {"input_ids": IDS, "attention_mask": [[int(token != PAD) for token in row] for row in IDS]}
    if config == "own-module":
        del columns["attention_mask"]
    if config != "causal-without-labels":
        columns["category" if config == "other-column-name" else "labels"] = CLASSES
    return Dataset.from_dict(columns)


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


def tokenizer():
    words = {"<pad>": PAD, **{f"w{number}": number for number in range(1, 32)}}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)), pad_token="<pad>")


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def next_token_loss(model, ids):
    logits, targets = model(ids, attention_mask=(ids != PAD).long()).logits[:, :-1], ids[:, 1:]
    return cross_entropy(logits[targets != PAD], targets[targets != PAD])


def class_loss(model, ids):
    outputs = model(ids) if isinstance(model, Bag) else model(ids, attention_mask=(ids != PAD).long())
    return cross_entropy(outputs["logits"], torch.tensor(CLASSES))


def check(measure, trainer, loss):
    """One step of the trainer against plain gradient descent on `loss` in float64."""
    before, twin = weights(trainer.model), copy.deepcopy(trainer.model).double().cpu()
    loss(twin, torch.tensor(IDS)).backward()
    expected = torch.cat([-LEARNING_RATE * p.grad.flatten() for p in twin.parameters()])
    trainer.train()
    measure.compare(weights(trainer.model) - before, expected, tolerance=1e-4)


@pytest.mark.reproduces
def test_reproduces(config, measure, tiny_llama, tmp_path):
    trainer = Trainer(model=build(config, tiny_llama), args=arguments(tmp_path), train_dataset=data(config))
    try:
        trainer.train()
    finally:
        measure.recovers(lambda: next(iter(trainer.get_train_dataloader())))


@pytest.mark.workaround("add-labels")
def test_add_labels(config, measure, tiny_llama, tmp_path):
    only_for(config, "causal-without-labels")
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    model = build(config, tiny_llama)
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=data(config), data_collator=collator)
    check(measure, trainer, next_token_loss)


@pytest.mark.workaround("rename-column")
def test_rename_column(config, measure, tiny_llama, tmp_path):
    only_for(config, "other-column-name")
    dataset = data(config).rename_column("category", "labels")
    trainer = Trainer(model=build(config, tiny_llama), args=arguments(tmp_path), train_dataset=dataset)
    check(measure, trainer, class_loss)


@pytest.mark.workaround("model-with-head")
def test_model_with_head(config, measure, tmp_path):
    only_for(config, "base-model")
    torch.manual_seed(0)
    model = bert(BertForSequenceClassification)
    check(measure, Trainer(model=model, args=arguments(tmp_path), train_dataset=data(config)), class_loss)


@pytest.mark.workaround("return-loss")
def test_return_loss(config, measure, tmp_path):
    only_for(config, "own-module")
    check(measure, Trainer(model=BagWithLoss(), args=arguments(tmp_path), train_dataset=data(config)), class_loss)


@pytest.mark.workaround("compute-loss-func")
def test_compute_loss_func(config, measure, tiny_llama, tmp_path):
    only_for(config, "own-module")

    def loss(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs["logits"], labels)

    args = arguments(tmp_path, label_names=["labels"])
    model = build(config, tiny_llama)
    check(measure, Trainer(model=model, args=args, train_dataset=data(config), compute_loss_func=loss), class_loss)


@pytest.mark.workaround("own-loss")
def test_own_loss(config, measure, tiny_llama, tmp_path):
    only_for(config, "own-module")
    args = arguments(tmp_path, remove_unused_columns=False)
    model = build(config, tiny_llama)
    check(measure, LossTrainer(model=model, args=args, train_dataset=data(config)), class_loss)


@pytest.mark.dead_end("label-names")
def test_label_names(config, tiny_llama, tmp_path):
    names = {"causal-without-labels": "input_ids", "other-column-name": "category"}
    args = arguments(tmp_path, label_names=[names.get(config, "labels")])
    Trainer(model=build(config, tiny_llama), args=args, train_dataset=data(config)).train()


@pytest.mark.dead_end("keep-all-columns")
def test_keep_all_columns(config, tiny_llama, tmp_path):
    args = arguments(tmp_path, remove_unused_columns=False)
    Trainer(model=build(config, tiny_llama), args=args, train_dataset=data(config)).train()


@pytest.mark.dead_end("label-smoothing")
def test_label_smoothing(config, tiny_llama, tmp_path):
    only_for(config, "causal-without-labels", "other-column-name")
    args = arguments(tmp_path, label_smoothing_factor=0.1)
    Trainer(model=build(config, tiny_llama), args=args, train_dataset=data(config)).train()
