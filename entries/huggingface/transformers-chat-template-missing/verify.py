# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56", "tokenizers", "jinja2>=3.1"]
# ///
"""Messages given to a tokenizer or processor that has no chat template.

Two folders are made: `original` with a template, as an instruct model has it, and `model`, the same files without it:
a base model never had one, a conversion left chat_template.jinja behind, a processor (of speech here) keeps one of its
own. A fix is right if it renders the prompt that the original renders, or if a plain prompt is continued as in float64.
"""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56", jinja2=">=3.1")

WORDS = ["<|user|>", "<|assistant|>", "<|end|>", "is", "the", "report", "late", "?", "yes", "no", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "is the report late ?"}]
PROMPT = "<|user|> is the report late ? <|end|> <|assistant|>"
NEW_TOKENS = 5


@pytest.fixture(params=["base-model", "lost-in-conversion", "processor"])
def config(request):
    return request.param


def save(config: str, folder, template: str | None) -> None:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<|end|>")
    if config == "processor":
        sound = transformers.EncodecFeatureExtractor()
        transformers.CsmProcessor(sound, tokenizer, chat_template=template).save_pretrained(folder)
    else:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)


@pytest.fixture
def folders(config, tmp_path):
    original, model = tmp_path / "original", tmp_path / "model"
    save(config, original, TEMPLATE)
    if config == "base-model":
        save(config, model, None)
    else:
        shutil.copytree(original, model, ignore=shutil.ignore_patterns("chat_template*"))
    return original, model


def load(config: str, folder):
    if config == "processor":
        return transformers.CsmProcessor.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def render(tokenizer, **options) -> str:
    return tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **options)


def reference(model, ids) -> torch.Tensor:
    """The likeliest continuation, one token at a time without a cache, in float64 on the CPU."""
    model, ids = model.cpu().double(), ids.cpu()
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            following = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], 1)
    return ids


@pytest.mark.reproduces
def test_reproduces(config, folders):
    render(load(config, folders[1]))


@pytest.mark.workaround("use-the-instruct-model")
def test_use_the_instruct_model(config, folders, measure):
    if config != "base-model":
        pytest.skip("it is an instruct model that lost its template")
    tokenizer = load(config, folders[0])
    assert measure(lambda: render(tokenizer)) == PROMPT


@pytest.mark.workaround("copy-the-original-template")
def test_copy_the_original_template(config, folders, measure):
    if config == "base-model":
        pytest.skip("there is no original that had one")
    original, model = folders
    tokenizer = load(config, model)
    tokenizer.chat_template = load(config, original).chat_template
    tokenizer.save_pretrained(model)
    again = load(config, model)
    assert measure(lambda: render(again)) == PROMPT


@pytest.mark.workaround("pass-a-template")
def test_pass_a_template(config, folders, measure, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    tokenizer = load(config, folders[1])
    assert measure(lambda: render(tokenizer, chat_template=file.read_text())) == PROMPT


@pytest.mark.workaround("plain-completion")
def test_plain_completion(config, folders, device, measure, tiny_llama):
    if config == "processor":
        pytest.skip("a processor feeds other models")
    tokenizer, model = load(config, folders[1]), tiny_llama(vocab_size=len(WORDS)).eval().to(device)
    inputs = tokenizer("is the report late ?", return_tensors="pt").to(device)
    output = measure(lambda: model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None))
    measure.compare(output, reference(model, inputs.input_ids), tolerance=0)


@pytest.mark.dead_end("copy-tokenizer-json")
def test_copy_tokenizer_json(config, folders):
    original, model = folders
    shutil.copy(original / "tokenizer.json", model / "tokenizer.json")
    render(load(config, model))


@pytest.mark.dead_end("save-again")
def test_save_again(config, folders):
    _, model = folders
    load(config, model).save_pretrained(model)
    render(load(config, model))


@pytest.mark.dead_end("template-on-the-tokenizer")
def test_template_on_the_tokenizer(config, folders):
    if config != "processor":
        pytest.skip("there is only the tokenizer")
    processor = load(config, folders[1])
    processor.tokenizer.chat_template = TEMPLATE
    render(processor)


@pytest.mark.dead_end("default-chat-template")
def test_default_chat_template(config, folders):
    tokenizer = load(config, folders[1])
    tokenizer.chat_template = tokenizer.default_chat_template
    render(tokenizer)
