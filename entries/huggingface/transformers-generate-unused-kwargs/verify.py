# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56", "tokenizers"]
# ///
"""Four kinds of argument that `generate` refuses: outputs of the tokenizer, a misspelt option, another model's input.

The models are a tiny Llama and, for the image, a tiny Llava. Right are the tokens that the model's logits lead to one
by one in float64, without a cache: as many as asked for, and with the image seen.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56")

WORDS = ["the", "report", "was", "late", "again", "<unk>", "<image>"]
PROMPT = "the report was"
NEW_TOKENS = 6
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(params=["token-type-ids", "offset-mapping", "misspelt-option", "image-for-a-text-model"])
def config(request):
    return request.param


def load_tokenizer(config: str) -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (config == "token-type-ids")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", model_input_names=names)


def encode(config: str, tokenizer) -> dict[str, torch.Tensor]:
    text = "<image> <image> <image> <image> " + PROMPT if config == "image-for-a-text-model" else PROMPT
    inputs = tokenizer(text, return_tensors="pt", return_offsets_mapping=config == "offset-mapping")
    if config == "image-for-a-text-model":
        inputs["pixel_values"] = torch.linspace(-1, 1, 3 * 4 * 4).reshape(1, 3, 4, 4)
    return inputs


def text_model():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(WORDS), **SHAPE)).eval()


def image_model():
    torch.manual_seed(2)  # with this seed it never answers with an image token
    settings = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=4, patch_size=2, **SHAPE),
        text_config=transformers.LlamaConfig(vocab_size=len(WORDS), **SHAPE),
        image_token_id=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(settings).eval()


def generate(model, inputs, **options) -> torch.Tensor:
    options = options or {"max_new_tokens": NEW_TOKENS}
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    tokens = model.generate(**on_device, do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    return tokens[:, inputs["input_ids"].shape[1] :].cpu()


def program(config: str, model, inputs) -> torch.Tensor:
    if config == "misspelt-option":
        return generate(model, inputs, max_new_token=NEW_TOKENS)
    return generate(model, inputs)


@torch.no_grad()
def reference(config: str) -> torch.Tensor:
    inputs = encode(config, load_tokenizer(config))
    ids, image = inputs["input_ids"], {}
    model = text_model().double()
    if config == "image-for-a-text-model":
        model, image = image_model().double(), {"pixel_values": inputs["pixel_values"].double()}
    for _ in range(NEW_TOKENS):
        following = model(input_ids=ids, use_cache=False, **image).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], 1)
    return ids[:, -NEW_TOKENS:]


@pytest.mark.reproduces
def test_reproduces(config, device):
    program(config, text_model().to(device), encode(config, load_tokenizer(config)))


@pytest.mark.workaround("drop-the-field")
def test_drop_the_field(config, device, measure):
    if config not in ("token-type-ids", "offset-mapping"):
        pytest.skip("the tokenizer returned nothing extra")
    model, tokenizer = text_model().to(device), load_tokenizer(config)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    measure.compare(measure(lambda: generate(model, inputs)), reference(config), tolerance=0)


@pytest.mark.workaround("name-the-inputs")
def test_name_the_inputs(config, device, measure):
    if config != "token-type-ids":
        pytest.skip("the field was asked for, or does not come from the tokenizer")
    model, tokenizer = text_model().to(device), load_tokenizer(config)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    inputs = encode(config, tokenizer)
    measure.compare(measure(lambda: generate(model, inputs)), reference(config), tolerance=0)


@pytest.mark.workaround("keep-what-forward-takes")
def test_keep_what_forward_takes(config, device, measure):
    if config not in ("token-type-ids", "offset-mapping"):
        pytest.skip("what would be left out matters: see the dead end")
    model, inputs = text_model().to(device), encode(config, load_tokenizer(config))
    takes = inspect.signature(model.forward).parameters
    kept = {name: value for name, value in inputs.items() if name in takes}
    measure.compare(measure(lambda: generate(model, kept)), reference(config), tolerance=0)


@pytest.mark.workaround("correct-the-option")
def test_correct_the_option(config, device, measure):
    if config != "misspelt-option":
        pytest.skip("all options are spelt well")
    model, inputs = text_model().to(device), encode(config, load_tokenizer(config))
    tokens = measure(lambda: generate(model, inputs, max_new_tokens=NEW_TOKENS))
    measure.compare(tokens, reference(config), tolerance=0)


@pytest.mark.workaround("use-the-right-class")
def test_use_the_right_class(config, device, measure, tmp_path):
    if config != "image-for-a-text-model":
        pytest.skip("the class is right")
    image_model().save_pretrained(tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval().to(device)
    inputs = encode(config, load_tokenizer(config))
    measure.compare(measure(lambda: generate(model, inputs)), reference(config), tolerance=0)


@pytest.mark.dead_end("leave-it-out")
def test_leave_it_out(config, device, measure):
    if config not in ("misspelt-option", "image-for-a-text-model"):
        pytest.skip("leaving it out is right")
    model, inputs = text_model().to(device), encode(config, load_tokenizer(config))
    inputs.pop("pixel_values", None)
    options = {"max_new_tokens": NEW_TOKENS} if config == "image-for-a-text-model" else {"use_cache": True}
    measure.compare(generate(model, inputs, **options), reference(config), tolerance=0)


@pytest.mark.dead_end("generation-config")
def test_generation_config(config, device, measure):
    if config != "misspelt-option":
        pytest.skip("it is not an option")
    model, inputs = text_model().to(device), encode(config, load_tokenizer(config))
    settings = transformers.GenerationConfig(max_new_token=NEW_TOKENS)
    measure.compare(generate(model, inputs, generation_config=settings), reference(config), tolerance=0)
