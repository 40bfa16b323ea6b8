# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers", "peft"]
# ///
"""A cache class that this transformers does not have is imported from it.

`remote-code` runs everywhere transformers 5 is: a checkpoint whose own Python file wants a class that transformers 5
dropped. The two others need a pair of releases that do not fit: `peft-too-old` a peft of 0.16 or 0.17 beside
transformers 5, `transformers-too-old` a current peft beside transformers before 4.43. There `import peft` itself is
what fails, so this file imports it inside its arms. A fix is right if the model predicts what the built-in class does,
or if a LoRA can be attached and trained.
"""

import importlib
import json
import shutil
import sys

import pytest
import torch
import transformers

pytestmark = pytest.mark.requires(torch=">=2.1")

TOLERANCE = 1e-4
MODEL_FILE = """
from transformers import HybridCache, LlamaForCausalLM


class OwnLlamaForCausalLM(LlamaForCausalLM):
    def forward(self, input_ids=None, past_key_values: HybridCache | None = None, **kwargs):
        return super().forward(input_ids=input_ids, past_key_values=past_key_values, **kwargs)
"""


@pytest.fixture(
    params=[
        pytest.param("remote-code", marks=pytest.mark.requires(transformers=">=5")),
        pytest.param("peft-too-old", marks=pytest.mark.requires(transformers=">=5", peft=">=0.16,<0.18")),
        pytest.param("transformers-too-old", marks=pytest.mark.requires(transformers="<4.43", peft=">=0.14")),
    ]
)
def config(request, monkeypatch, tmp_path):
    if request.param == "remote-code":
        # Code of checkpoints is copied there; not into the user's own cache.
        monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return request.param


def build():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, num_key_value_heads=4, **shape))


def checkpoint(folder, code=MODEL_FILE):
    """A Llama whose configuration points to a Python file of its own."""
    build().save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnLlamaForCausalLM"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "modeling_own.py").write_text(code)
    return folder


@torch.no_grad()
def predict(model, device):
    return model.to(device).eval()(input_ids=torch.arange(3, 15, device=device)[None]).logits.cpu()


def train_lora(device):
    """Imports peft, attaches a LoRA, takes a few steps; the first and the last loss."""
    peft = importlib.import_module("peft")
    model = peft.get_peft_model(build().to(device), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.003)
    ids, losses = torch.arange(3, 27, device=device).reshape(2, 12), []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


def load(folder, remote_code=True):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote_code)


def only_remote_code(config):
    if config != "remote-code":
        pytest.skip("the import stands in peft here")


@pytest.mark.reproduces
def test_reproduces(config, measure, tmp_path):
    try:
        if config == "remote-code":
            load(checkpoint(tmp_path / "model"))
        else:
            importlib.import_module("peft")
    finally:
        measure.recovers(build)


@pytest.mark.workaround("newer-model-file")
def test_newer_model_file(config, device, measure, tmp_path):
    only_remote_code(config)
    newer = MODEL_FILE.replace("HybridCache", "Cache")
    model = load(checkpoint(tmp_path / "model", newer))
    assert type(model).__name__ == "OwnLlamaForCausalLM"
    measure.compare(predict(model, device), predict(build(), "cpu"), TOLERANCE)


@pytest.mark.workaround("built-in-class")
def test_built_in_class(config, device, measure, tmp_path):
    only_remote_code(config)
    model = load(checkpoint(tmp_path / "model"), remote_code=False)
    measure.compare(predict(model, device), predict(build(), "cpu"), TOLERANCE)


@pytest.mark.workaround("stand-in-class")
def test_stand_in_class(config, device, measure, monkeypatch, tmp_path):
    for name in ("EncoderDecoderCache", "HybridCache"):
        if not hasattr(transformers, name):
            monkeypatch.setattr(transformers, name, type(name, (), {}), raising=False)
    if config == "remote-code":
        measure.compare(predict(load(checkpoint(tmp_path / "model")), device), predict(build(), "cpu"), TOLERANCE)
    else:
        before, after = train_lora(device)
        assert after < before


@pytest.mark.dead_end("import-from-cache-utils")
def test_import_from_cache_utils(config, tmp_path):
    only_remote_code(config)
    other = MODEL_FILE.replace(
        "from transformers import HybridCache,",
        "from transformers.cache_utils import HybridCache\nfrom transformers import",
    )
    load(checkpoint(tmp_path / "model", other))


@pytest.mark.dead_end("clear-the-module-cache")
def test_clear_the_module_cache(config, tmp_path):
    only_remote_code(config)
    folder = checkpoint(tmp_path / "model")
    with pytest.raises(ImportError):
        load(folder)
    shutil.rmtree(tmp_path / "modules")
    transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, force_download=True)


@pytest.mark.dead_end("import-a-submodule")
def test_import_a_submodule(config):
    if config == "remote-code":
        pytest.skip("peft imports without fault here")
    importlib.import_module("peft.tuners.lora")


@pytest.mark.dead_end("a-little-newer-transformers")
@pytest.mark.requires(transformers=">=4.42,<4.43")
def test_a_little_newer_transformers(config):
    sys.modules.pop("peft", None)
    importlib.import_module("peft")
