# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56", "tokenizers", "datasets"]
# ///
"""Rows that make no rectangular tensor, for five reasons: lengths of inputs and labels, text, names of classes.

Each configuration is one batch of a fine-tuning job in miniature: a word-list tokenizer, a tiny Llama with the head of
the task. A fix is right if the loss of the batch is that of the rows taken one by one, without padding, in float64.
"""

from __future__ import annotations

import datasets
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56", datasets=">=2.14")

TEXTS = ["the report was late again", "late again", "the report"]
WORDS = ["the", "report", "was", "late", "again", "<unk>", "<pad>"]
CLASSES = ["good", "bad", "neutral"]
HEADS = {
    "tokenizer-call": transformers.LlamaForCausalLM,
    "prompt-masked-labels": transformers.LlamaForCausalLM,
    "tag-labels": transformers.LlamaForTokenClassification,
    "text-column": transformers.LlamaForSequenceClassification,
    "class-names": transformers.LlamaForSequenceClassification,
}
TOLERANCE = 1e-4


@pytest.fixture(params=list(HEADS))
def config(request):
    return request.param


def load_tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")


def load_model(config: str, device: str):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = transformers.LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=4, num_labels=3, **shape)
    settings.pad_token_id = WORDS.index("<pad>")
    return HEADS[config](settings).eval().to(device)


def examples(config: str, **tokenizer_options) -> list[dict]:
    """What the data set hands to the collator."""
    rows = [dict(load_tokenizer()(text, **tokenizer_options)) for text in TEXTS]
    for index, row in enumerate(rows):
        ids = row["input_ids"]
        if config == "tag-labels":
            row["labels"] = [token % 3 for token in ids]
        elif config == "prompt-masked-labels":
            row["labels"] = [-100, *ids[1:]]
        elif config == "text-column":
            row |= {"text": TEXTS[index], "labels": index}
        elif config == "class-names":
            row["labels"] = CLASSES[index]
    return rows


def loss(model, batch) -> torch.Tensor:
    return model(**batch.to(model.device)).loss.detach()


def call(model, **options) -> torch.Tensor:
    """The tokenizer called on a batch of texts, which are then their own labels."""
    batch = load_tokenizer()(TEXTS, return_tensors="pt", **options)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return loss(model, batch)


def program(config: str, model, rows=None, padding=True) -> torch.Tensor:
    if config == "tokenizer-call":
        return call(model)
    collator = transformers.DataCollatorWithPadding(load_tokenizer(), padding=padding, max_length=8)
    return loss(model, collator(rows or examples(config)))


@torch.no_grad()
def reference(config: str) -> float:
    """The mean loss over everything that has a label, from one row at a time in float64."""
    model = load_model(config, "cpu").double()
    logits, targets = [], []
    for index, row in enumerate(examples(config)):
        ids = torch.tensor([row["input_ids"]])
        scores = model(ids).logits.reshape(-1, model.config.vocab_size if "LM" in type(model).__name__ else 3)
        if config in ("tokenizer-call", "prompt-masked-labels"):
            logits.append(scores[:-1])
            targets.append(ids[0, 1:])
        else:
            logits.append(scores)
            targets.append(ids[0] % 3 if config == "tag-labels" else torch.tensor([index]))
    return torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets)).item()


def check(measure, config: str, step) -> None:
    measure.compare(measure(step).item(), reference(config), TOLERANCE)


@pytest.mark.reproduces
def test_reproduces(config, device):
    program(config, load_model(config, device))


@pytest.mark.workaround("pad-and-truncate")
def test_pad_and_truncate(config, device, measure):
    if config != "tokenizer-call":
        pytest.skip("the collator pads the inputs already")
    model = load_model(config, device)
    check(measure, config, lambda: call(model, padding=True, truncation=True, max_length=512))


@pytest.mark.workaround("collator-that-pads-labels")
def test_collator_that_pads_labels(config, device, measure):
    if config not in ("tag-labels", "prompt-masked-labels"):
        pytest.skip("there are no label sequences")
    tokenizer, model = load_tokenizer(), load_model(config, device)
    collator = transformers.DataCollatorForSeq2Seq(tokenizer)
    if config == "tag-labels":
        collator = transformers.DataCollatorForTokenClassification(tokenizer)
    check(measure, config, lambda: loss(model, collator(examples(config))))


@pytest.mark.workaround("drop-raw-columns")
def test_drop_raw_columns(config, device, measure):
    if config != "text-column":
        pytest.skip("no raw column is left")
    tokenizer, model = load_tokenizer(), load_model(config, device)
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "class": [0, 1, 2]})

    def tokenize(rows):
        return tokenizer(rows["text"]) | {"labels": rows["class"]}

    dataset = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
    check(measure, config, lambda: program(config, model, list(dataset)))


@pytest.mark.workaround("number-the-classes")
def test_number_the_classes(config, device, measure):
    if config != "class-names":
        pytest.skip("the labels are numbers already")
    model = load_model(config, device)
    label2id = {name: index for index, name in enumerate(CLASSES)}
    dataset = datasets.Dataset.from_list(examples(config))
    dataset = dataset.map(lambda row: {"labels": label2id[row["labels"]]})
    check(measure, config, lambda: program(config, model, list(dataset)))


@pytest.mark.dead_end("truncation-only")
def test_truncation_only(config, device):
    model = load_model(config, device)
    if config == "tokenizer-call":
        call(model, truncation=True, max_length=4)
    else:
        program(config, model, examples(config, truncation=True, max_length=4))


@pytest.mark.dead_end("pad-to-max-length")
def test_pad_to_max_length(config, device):
    if config == "tokenizer-call":
        pytest.skip("there is no collator")
    program(config, load_model(config, device), padding="max_length")


@pytest.mark.dead_end("language-model-collator")
def test_language_model_collator(config, device):
    if config != "prompt-masked-labels":
        pytest.skip("the task is another one")
    collator = transformers.DataCollatorForLanguageModeling(load_tokenizer(), mlm=False)
    loss(load_model(config, device), collator(examples(config)))


@pytest.mark.dead_end("batch-of-one")
def test_batch_of_one(config, device):
    if config not in ("text-column", "class-names"):
        pytest.skip("one row has one length")
    program(config, load_model(config, device), examples(config)[:1])
