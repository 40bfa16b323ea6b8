# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56"]
# ///
"""A model's own Python file asks the key-value cache for what newer releases of transformers no longer have.

The checkpoint is a tiny Llama with a modelling file of its own, which finds out how much of the prompt is in the cache
with one of five old calls. Right are the tokens that the model's logits lead to one by one in float64, without a cache.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch
import transformers
from transformers import dynamic_module_utils

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56")

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
NEW_TOKENS = 6

MODEL = """
from transformers import DynamicCache, LlamaForCausalLM
from transformers.cache_utils import Cache

class CustomModel(LlamaForCausalLM):
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **options):
        if past_key_values is not None:
            past = {past}
            input_ids = input_ids[:, past:]
        inputs = {{"input_ids": input_ids, "past_key_values": past_key_values, "attention_mask": attention_mask}}
        return inputs | {{"use_cache": options.get("use_cache")}}

    def forward(self, input_ids=None, past_key_values=None, use_cache=None, **options):
        if use_cache and not isinstance(past_key_values, Cache):
            past_key_values = {new_cache}
        return super().forward(input_ids, past_key_values=past_key_values, use_cache=use_cache, **options)
"""
CURRENT = {"past": "past_key_values.get_seq_length()", "new_cache": "DynamicCache()"}


class Old(NamedTuple):
    """Which of the two places has which old call."""

    place: str
    call: str


@pytest.fixture(
    params=[
        pytest.param(Old("past", "past_key_values.seen_tokens"), id="seen-tokens"),
        pytest.param(Old("past", "past_key_values.get_usable_length(input_ids.shape[1])"), id="get-usable-length"),
        pytest.param(
            Old("past", "past_key_values.key_cache[0].shape[-2] if past_key_values.key_cache else 0"), id="key-cache"
        ),
        pytest.param(
            Old("past", "min(past_key_values.get_max_cache_shape() or 10**9, past_key_values.get_seq_length())"),
            id="get-max-cache-shape",
            marks=pytest.mark.requires(transformers=">=5.23"),
        ),
        pytest.param(
            Old("new_cache", "DynamicCache.from_legacy_cache(past_key_values)"),
            id="from-legacy-cache",
            marks=pytest.mark.requires(transformers=">=5"),
        ),
    ]
)
def config(request, monkeypatch, tmp_path):
    # Code of checkpoints goes to this test's folder instead of the user's cache.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return request.param


@pytest.fixture
def folder(config, tiny_llama, tmp_path):
    path = tmp_path / "model"
    tiny_llama(eos_token_id=None).save_pretrained(path)
    settings = json.loads((path / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": "modeling_custom.CustomModel"}
    (path / "config.json").write_text(json.dumps(settings))
    (path / "modeling_custom.py").write_text(MODEL.format(**CURRENT | {config.place: config.call}))
    return path


def load(folder, device: str, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval().to(device)


@torch.no_grad()
def decode(config: Old, model, use_cache: bool = True, **options) -> torch.Tensor:
    """Tokens from `generate`; from a loop over the model itself where the file makes a cache of its own."""
    ids = PROMPT.to(model.device)
    if config.place == "past":
        options |= {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        return model.generate(ids, use_cache=use_cache, **options)[:, ids.shape[1] :].cpu()
    known, cache = ids, options.get("past_key_values")
    for _ in range(NEW_TOKENS):
        fed = known if cache is None else known[:, -1:]
        output = model(input_ids=fed, past_key_values=cache, use_cache=use_cache)
        cache = output.past_key_values if use_cache else None
        known = torch.cat([known, output.logits[:, -1].argmax(-1, keepdim=True)], 1)
    return known[:, ids.shape[1] :].cpu()


@torch.no_grad()
def reference(tiny_llama) -> torch.Tensor:
    model, ids = tiny_llama(torch.float64).eval(), PROMPT
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[:, -NEW_TOKENS:]


def check(measure, tiny_llama, step) -> None:
    measure.compare(measure(step), reference(tiny_llama), tolerance=0)


@pytest.mark.reproduces
def test_reproduces(config, folder, device):
    decode(config, load(folder, device, trust_remote_code=True))


@pytest.mark.workaround("built-in-model")
def test_built_in_model(config, folder, device, measure, tiny_llama):
    model = load(folder, device)
    assert type(model) is transformers.LlamaForCausalLM
    check(measure, tiny_llama, lambda: decode(config, model))


@pytest.mark.workaround("patch-the-file")
def test_patch_the_file(config, folder, device, measure, tiny_llama):
    file = folder / "modeling_custom.py"
    file.write_text(file.read_text().replace(config.call, CURRENT[config.place]))
    model = load(folder, device, trust_remote_code=True)
    check(measure, tiny_llama, lambda: decode(config, model))


@pytest.mark.workaround("add-the-attribute")
def test_add_the_attribute(config, folder, device, measure, tiny_llama, monkeypatch):
    added = {
        "seen_tokens": property(lambda self: self.get_seq_length()),
        "get_usable_length": lambda self, _new, layer=0: self.get_seq_length(layer),
        "key_cache": property(lambda self: [layer.keys for layer in self.layers if layer.keys is not None]),
        # -1 says that there is no limit, where old code expects None.
        "get_max_cache_shape": lambda self, layer=0: max(self.get_max_length(layer), 0) or None,
        "from_legacy_cache": classmethod(lambda cls, past=None: cls(past)),
    }
    for name, value in added.items():
        monkeypatch.setattr(transformers.DynamicCache, name, value, raising=False)
    model = load(folder, device, trust_remote_code=True)
    check(measure, tiny_llama, lambda: decode(config, model))


@pytest.mark.workaround("without-the-cache")
def test_without_the_cache(config, folder, device, measure, tiny_llama):
    model = load(folder, device, trust_remote_code=True)
    check(measure, tiny_llama, lambda: decode(config, model, use_cache=False))


@pytest.mark.dead_end("static-cache")
def test_static_cache(config, folder, device):
    if config.place == "new_cache":
        pytest.skip("the file makes the cache itself")
    model = load(folder, device, trust_remote_code=True)
    decode(config, model, cache_implementation="static")


@pytest.mark.dead_end("pass-a-cache")
def test_pass_a_cache(config, folder, device):
    if config.place == "new_cache":
        pytest.skip("the old call is not reached then")
    model = load(folder, device, trust_remote_code=True)
    decode(config, model, past_key_values=transformers.DynamicCache())


@pytest.mark.dead_end("trust-and-force-download")
def test_trust_and_force_download(config, folder, device):
    """Loading the same revision again brings the same file."""
    decode(config, load(folder, device, trust_remote_code=True, force_download=True))
