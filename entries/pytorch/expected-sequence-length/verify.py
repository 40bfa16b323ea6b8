# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "numpy", "torch>=2.1", "transformers>=4.41"]
# ///
"""Nested lists of unequal length are made into a tensor.

`labels-left-out` pads the input ids of a batch and not the labels, `padded-per-chunk` was padded chunk by chunk and
then shuffled, `segments-of-two-sizes` has documents cut into segments whose size differs from document to document.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.41")

PAD, IGNORED, LONGEST = 0, -100, 8


def documents():
    """Four texts of 3, 5, 4 and 6 tokens, with a label for each token."""
    numbers = np.random.default_rng(0)
    lengths = (3, 5, 4, 6)
    return [{name: numbers.integers(1, 8, n).tolist() for name in ("input_ids", "labels")} for n in lengths]


def padded(values, length, filler):
    return values + [filler] * (length - len(values))


def padded_row(row, length):
    return {
        "input_ids": padded(row["input_ids"], length, PAD),
        "labels": padded(row["labels"], length, IGNORED),
    }


def rows_of(config):
    """The data set as each broken preparation leaves it."""
    first, second, third, fourth = documents()
    if config == "padded-per-chunk":
        chunks = [padded_row(first, 5), padded_row(second, 5), padded_row(third, 6), padded_row(fourth, 6)]
        return [chunks[0], chunks[2], chunks[1], chunks[3]]  # shuffled
    if config == "segments-of-two-sizes":
        return [segments(first, 4), segments(second, 3), segments(third, 2), segments(fourth, 3)]
    return [first, second, third, fourth]


def segments(row, size, count=2):
    whole = padded_row(row, size * count)
    return {name: [values[i * size : (i + 1) * size] for i in range(count)] for name, values in whole.items()}


def pad_ids_only(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": torch.tensor([padded(row["input_ids"], longest, PAD) for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def tensors(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def broken_collate(config):
    return pad_ids_only if config == "labels-left-out" else tensors


def loss_over(rows, collate, device):
    """Mean loss of a token classifier over all labelled tokens, in batches of two."""
    model = classifier().to(device)
    losses, counted = [], 0
    for batch in DataLoader(rows, batch_size=2, collate_fn=collate):
        scores = model(batch["input_ids"].to(device)).flatten(0, -2)
        labels = batch["labels"].to(device).flatten()
        losses.append(nn.functional.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum"))
        counted += int((labels != IGNORED).sum())
    return sum(losses).detach() / counted


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 8))


def reference():
    """The loss in float64 over the texts one after the other, nothing padded."""
    ids, labels = (torch.tensor([t for row in documents() for t in row[name]]) for name in ("input_ids", "labels"))
    return nn.functional.cross_entropy(classifier().double()(ids), labels).detach()


def tokenizer():
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": PAD, **{f"w{i}": i for i in range(1, 8)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="w1")


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"does not apply to {config}")


@pytest.fixture(params=["labels-left-out", "padded-per-chunk", "segments-of-two-sizes"])
def config(request):
    """What was not padded, or not to the same length."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device):
    loss_over(rows_of(config), broken_collate(config), device)


@pytest.mark.workaround("collator-that-pads-labels")
def test_collator_that_pads_labels(config, device, measure):
    only_for(config, "labels-left-out", "padded-per-chunk")
    from transformers import DataCollatorForTokenClassification

    # Not the rows that were padded before: the collator does it.
    collate = DataCollatorForTokenClassification(tokenizer())
    measure.compare(loss_over(documents(), collate, device), reference(), tolerance=1e-5)


@pytest.mark.workaround("pad-sequence")
def test_pad_sequence(config, device, measure):
    only_for(config, "labels-left-out", "padded-per-chunk")

    def collate(rows):
        ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=PAD),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    measure.compare(loss_over(rows_of(config), collate, device), reference(), tolerance=1e-5)


@pytest.mark.workaround("fixed-length")
def test_fixed_length(config, device, measure):
    if config == "segments-of-two-sizes":
        rows = [segments(row, LONGEST // 2) for row in documents()]
    else:
        rows = [padded_row(row, LONGEST) for row in documents()]
    measure.compare(loss_over(rows, tensors, device), reference(), tolerance=1e-5)


@pytest.mark.dead_end("truncate-only")
def test_truncate_only(config, device):
    def cut(values):
        return [cut(part) for part in values] if isinstance(values[0], list) else values[:LONGEST]

    rows = [{name: cut(values) for name, values in row.items()} for row in rows_of(config)]
    loss_over(rows, broken_collate(config), device)


@pytest.mark.dead_end("through-numpy")
def test_through_numpy(config, device):
    def collate(rows):
        return {name: torch.from_numpy(np.array([row[name] for row in rows])) for name in ("input_ids", "labels")}

    loss_over(rows_of(config), collate, device)


@pytest.mark.dead_end("default-collate")
def test_default_collate(config, device):
    def tensor_rows(row):
        return {name: torch.tensor(values) for name, values in row.items()}

    loss_over([tensor_rows(row) for row in rows_of(config)], None, device)


@pytest.mark.dead_end("labels-padded-with-pad-id")
def test_labels_padded_with_pad_id(config, device, measure):
    only_for(config, "labels-left-out")

    def collate(rows):
        fields = {name: [torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels")}
        return {name: pad_sequence(parts, batch_first=True, padding_value=PAD) for name, parts in fields.items()}

    measure.compare(loss_over(rows_of(config), collate, device), reference(), tolerance=1e-5)


@pytest.mark.dead_end("collator-that-pads-inputs")
def test_collator_that_pads_inputs(config, device):
    only_for(config, "labels-left-out", "padded-per-chunk")
    from transformers import DataCollatorWithPadding

    loss_over(rows_of(config), DataCollatorWithPadding(tokenizer()), device)
