# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "tokenizers"]
# ///
"""Ids that an embedding table has no row for, on the CPU; a GPU reports the same mistake as a device-side assertion.

Tiny random models and word-level tokenizers stand for the real ones. The configurations are the ways in which such ids
come about: a token added without resizing, texts beyond the positions of GPT-2 and RoBERTa, a tokenizer of another
model, the marker -100 of labels among the input ids, and categories that count from one.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40", device="cpu")

WORDS = ["[UNK]", "[PAD]", *(f"word{number}" for number in range(30))]
POSITIONS = 16
TEXT = " ".join(WORDS[2:8])
LONG_TEXT = " ".join(WORDS[2:26])
CATEGORIES = 5


@pytest.fixture(
    params=["token-added", "gpt2-too-long", "roberta-too-long", "foreign-tokenizer", "label-marker", "counted-from-one"]
)
def config(request) -> str:
    return request.param


def tokenizer_of(words: list[str]) -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def build(config: str) -> nn.Module:
    torch.manual_seed(0)
    if config == "counted-from-one":
        return nn.EmbeddingBag(CATEGORIES, 8, mode="mean")
    if config == "roberta-too-long":
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        settings = transformers.RobertaConfig(
            vocab_size=len(WORDS), pad_token_id=1, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, **shape
        )
        return transformers.RobertaForMaskedLM(settings).eval()
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(WORDS), **shape)).eval()


def batch(config: str, tokenizer: transformers.PreTrainedTokenizerFast, **options) -> dict[str, torch.Tensor]:
    """What the program feeds to its model in this configuration."""
    if config == "counted-from-one":
        return {"input": torch.tensor([[1, 2, CATEGORIES]])}
    text = LONG_TEXT if config.endswith("too-long") else TEXT
    if config == "token-added":
        tokenizer.add_tokens(["<image>"])
        text = f"{TEXT} <image>"
    encoded = tokenizer(text, return_tensors="pt", **options)
    if config == "label-marker":
        encoded["input_ids"] = torch.cat([encoded["input_ids"], torch.full((1, 2), -100)], dim=1)
        encoded["attention_mask"] = (encoded["input_ids"] != -100).long()
    wanted = ["input_ids", "attention_mask"]
    if config == "roberta-too-long":
        encoded["token_type_ids"] = torch.zeros_like(encoded["input_ids"])
        wanted.append("token_type_ids")
    return {name: encoded[name] for name in wanted}


def tokenizer_in_use(config: str) -> transformers.PreTrainedTokenizerFast:
    """The program's tokenizer; in one configuration that of a model with a larger vocabulary."""
    strangers = [f"other{number}" for number in range(40)] if config == "foreign-tokenizer" else []
    return tokenizer_of([*WORDS[:2], *strangers, *WORDS[2:]])


def only_in(config: str, *wanted: str) -> None:
    if config not in wanted:
        pytest.skip("the ids are out of range here for another reason")


def outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result = model(**inputs)
    return result if isinstance(result, torch.Tensor) else result.logits


@pytest.mark.reproduces
def test_reproduces(config):
    outputs(build(config), batch(config, tokenizer_in_use(config)))


@pytest.mark.workaround("resize-embeddings")
def test_resize_embeddings(config, measure):
    only_in(config, "token-added")
    model, tokenizer = build(config), tokenizer_in_use(config)
    known = batch("plain", tokenizer)
    before = outputs(model, known)
    inputs = batch(config, tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    assert outputs(model, inputs).shape[-1] == len(WORDS) + 1
    measure.compare(outputs(model, inputs)[:, : before.shape[1], : len(WORDS)], before, tolerance=1e-5)


@pytest.mark.workaround("truncate")
def test_truncate(config, measure):
    only_in(config, "gpt2-too-long", "roberta-too-long")
    model, tokenizer = build(config), tokenizer_in_use(config)
    limit = model.config.max_position_embeddings - (2 if config == "roberta-too-long" else 0)
    inputs = batch(config, tokenizer, truncation=True, max_length=limit)
    assert inputs["input_ids"].shape[1] == POSITIONS
    shortened = tokenizer(" ".join(LONG_TEXT.split()[:POSITIONS]), return_tensors="pt")["input_ids"]
    measure.compare(outputs(model, inputs), outputs(model.double(), {"input_ids": shortened}), tolerance=1e-4)


@pytest.mark.workaround("matching-pair")
def test_matching_pair(config, tmp_path, measure):
    only_in(config, "foreign-tokenizer")
    original = build(config)
    original.save_pretrained(tmp_path)
    tokenizer_of(WORDS).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = batch(config, tokenizer)
    assert tokenizer.decode(inputs["input_ids"][0]) == TEXT
    measure.compare(outputs(model, inputs), outputs(original.double(), inputs), tolerance=1e-4)


@pytest.mark.workaround("clean-ids")
def test_clean_ids(config, measure):
    only_in(config, "label-marker", "counted-from-one")
    model, tokenizer = build(config), tokenizer_in_use(config)
    inputs = batch(config, tokenizer)
    if config == "counted-from-one":
        result = outputs(model, {"input": inputs["input"] - 1})
        measure.compare(result, model.weight[[0, 1, CATEGORIES - 1]].mean(dim=0, keepdim=True), tolerance=1e-5)
        return
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] < 0, tokenizer.pad_token_id)
    whole = outputs(model.double(), batch("plain", tokenizer))
    measure.compare(outputs(model.float(), inputs)[:, : whole.shape[1]], whole, tolerance=1e-4)


@pytest.mark.dead_end("assign-vocab-size")
def test_assign_vocab_size(config):
    only_in(config, "token-added", "foreign-tokenizer")
    tokenizer = tokenizer_in_use(config)
    inputs = batch(config, tokenizer)
    tokenizer.vocab_size = len(WORDS)
    outputs(build(config), inputs)


@pytest.mark.dead_end("edit-the-loaded-config")
def test_edit_the_loaded_config(config):
    if config == "counted-from-one":
        pytest.skip("a bare embedding table has no config")
    model, tokenizer = build(config), tokenizer_in_use(config)
    inputs = batch(config, tokenizer)
    model.config.vocab_size = len(tokenizer)
    model.config.max_position_embeddings = 4 * POSITIONS
    outputs(model, inputs)


@pytest.mark.dead_end("limit-without-truncation")
def test_limit_without_truncation(config):
    only_in(config, "gpt2-too-long", "roberta-too-long")
    tokenizer = tokenizer_in_use(config)
    tokenizer.model_max_length = POSITIONS
    outputs(build(config), batch(config, tokenizer, padding="max_length", max_length=POSITIONS))
