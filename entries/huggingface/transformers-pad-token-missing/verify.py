# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56", "tokenizers"]
# ///
"""Padding without a pad token, in the tokenizer and in a classification head.

The tokenizer is a word list with the special tokens of a Llama 3 checkpoint, the models are tiny Llamas. Every fix is
measured by what padding must not change: the numbers of each sentence computed alone, without padding, in float64.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56")

SENTENCES = ["the report was late again", "late again", "the report"]
WORDS = ["the", "report", "was", "late", "again", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<unk>"]
TOLERANCE = 1e-4


@pytest.fixture(params=["tokenizer-call", "collator", "bare-tokenizer-file", "classification-head"])
def config(request):
    return request.param


def word_tokenizer(**special) -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<|end_of_text|>", **special
    )


def checkpoint(folder):
    """A folder whose tokenizer has a pad token; returned is the path of its bare `tokenizer.json`."""
    word_tokenizer(pad_token="<|finetune_right_pad_id|>").save_pretrained(folder)
    return folder / "tokenizer.json"


def load_tokenizer(config: str, folder) -> transformers.PreTrainedTokenizerFast:
    if config == "classification-head":
        return word_tokenizer(pad_token="<|finetune_right_pad_id|>")
    if config == "bare-tokenizer-file":
        file = str(checkpoint(folder))
        return transformers.PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|end_of_text|>")
    return word_tokenizer()


def load_model(config: str, device: str):
    torch.manual_seed(0)
    kind = transformers.LlamaForCausalLM
    if config == "classification-head":
        kind = transformers.LlamaForSequenceClassification
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = transformers.LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=4, eos_token_id=5, **shape)
    return kind(settings).eval().to(device)


def encode(config: str, tokenizer):
    if config == "collator":
        collator = transformers.DataCollatorWithPadding(tokenizer)
        return collator([tokenizer(sentence) for sentence in SENTENCES])
    return tokenizer(SENTENCES, padding=True, return_tensors="pt")


@torch.no_grad()
def scores(config: str, model, tokenizer) -> torch.Tensor:
    """Per sentence the class scores, or the prediction after its last word."""
    batch = encode(config, tokenizer).to(model.device)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if config == "classification-head":
        return logits
    return logits[torch.arange(len(logits)), batch["attention_mask"].sum(1) - 1, : len(WORDS)]


@torch.no_grad()
def alone(config: str, model) -> torch.Tensor:
    """The same, one sentence at a time and so without padding, in float64 on the CPU."""
    reference = load_model(config, "cpu")
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    # Rows that a fix adds to the vocabulary are of no concern to the reference.
    reference.load_state_dict({name: weights[name][: len(kept)] for name, kept in reference.state_dict().items()})
    ids = [word_tokenizer(padding_side="right")(sentence, return_tensors="pt").input_ids for sentence in SENTENCES]
    logits = [reference.double()(row).logits for row in ids]
    return torch.cat([row if row.dim() == 2 else row[:, -1] for row in logits])


@pytest.mark.reproduces
def test_reproduces(config, device, tmp_path):
    scores(config, load_model(config, device), load_tokenizer(config, tmp_path))


@pytest.mark.workaround("eos-as-pad")
def test_eos_as_pad(config, device, measure, tmp_path):
    model, tokenizer = load_model(config, device), load_tokenizer(config, tmp_path)
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    measure.compare(measure(lambda: scores(config, model, tokenizer)), alone(config, model), TOLERANCE)
    measure.record("end tokens left in the labels of a language model", end_tokens_in_labels(tokenizer))


@pytest.mark.workaround("new-pad-token")
def test_new_pad_token(config, device, measure, tmp_path):
    model, tokenizer = load_model(config, device), load_tokenizer(config, tmp_path)
    if tokenizer.add_special_tokens({"pad_token": "[PAD]"}):
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    measure.compare(measure(lambda: scores(config, model, tokenizer)), alone(config, model), TOLERANCE)
    measure.record("end tokens left in the labels of a language model", end_tokens_in_labels(tokenizer))


@pytest.mark.workaround("reserved-token")
def test_reserved_token(config, device, measure, tmp_path):
    model, tokenizer = load_model(config, device), load_tokenizer(config, tmp_path)
    tokenizer.pad_token = "<|finetune_right_pad_id|>"
    model.config.pad_token_id = tokenizer.pad_token_id
    assert len(tokenizer) == len(WORDS)
    measure.compare(measure(lambda: scores(config, model, tokenizer)), alone(config, model), TOLERANCE)
    measure.record("end tokens left in the labels of a language model", end_tokens_in_labels(tokenizer))


@pytest.mark.workaround("right-tokenizer")
def test_right_tokenizer(config, device, measure, tmp_path):
    if config != "bare-tokenizer-file":
        pytest.skip("the tokenizer is the model's own here")
    checkpoint(tmp_path)
    model, tokenizer = load_model(config, device), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    measure.compare(measure(lambda: scores(config, model, tokenizer)), alone(config, model), TOLERANCE)


@pytest.mark.dead_end("model-config-only")
def test_model_config_only(config, device, measure, tmp_path):
    model, tokenizer = load_model(config, device), load_tokenizer(config, tmp_path)
    model.config.pad_token_id = model.config.eos_token_id
    measure.compare(scores(config, model, tokenizer), alone(config, model), TOLERANCE)


@pytest.mark.dead_end("tokenizer-only")
def test_tokenizer_only(config, device, tmp_path):
    if config != "classification-head":
        pytest.skip("it is the tokenizer that complains here")
    model, tokenizer = load_model(config, device), load_tokenizer(config, tmp_path)
    tokenizer.pad_token = tokenizer.eos_token
    scores(config, model, tokenizer)


@pytest.mark.dead_end("new-token-without-resize")
def test_new_token_without_resize(config, device, tmp_path):
    model, tokenizer = load_model(config, device), load_tokenizer(config, tmp_path)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.config.pad_token_id = tokenizer.pad_token_id
    scores(config, model, tokenizer)


@pytest.mark.dead_end("left-padding")
def test_left_padding(config, device, tmp_path):
    model, tokenizer = load_model(config, device), load_tokenizer(config, tmp_path)
    tokenizer.padding_side = "left"
    scores(config, model, tokenizer)


def end_tokens_in_labels(tokenizer) -> int:
    """How many of two end tokens the collator of causal language models leaves to be learned."""
    rows = [tokenizer(f"{sentence} {tokenizer.eos_token}") for sentence in SENTENCES[:2]]
    labels = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"]
    return int((labels == tokenizer.eos_token_id).sum())
