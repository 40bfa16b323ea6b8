# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56"]
# ///
"""Four checkpoints whose `model_type` says nothing to the auto classes.

`newer-architecture` is a tiny Qwen3 under a name that no release has, in place of a model newer than the release.
`own-code` is a model with a Python file of its own to which config.json has no pointer, as a fine-tuning script saves
it. `component-folder` keeps the language model in a subfolder, beside the settings of a pipeline. `model-type-lost` is
a Llama whose config.json a conversion wrote without the key. Right is what computes the logits of the saved model.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
import transformers
from transformers import dynamic_module_utils

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56")

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
TOLERANCE = 1e-4

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class CustomConfig(LlamaConfig):
    model_type = "custom_llama"

class CustomModel(LlamaForCausalLM):
    config_class = CustomConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output
"""


@pytest.fixture(params=["newer-architecture", "own-code", "component-folder", "model-type-lost"])
def config(request, monkeypatch, tmp_path):
    # Code of checkpoints goes to this test's folder instead of the user's cache.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "package")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "modeling_custom.py").write_text(OWN_CODE)
    yield request.param
    sys.modules.pop("modeling_custom", None)


def build(config: str):
    torch.manual_seed(0)
    if config == "newer-architecture":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE, **HEADS, head_dim=8)).eval()
    if config == "own-code":
        from modeling_custom import CustomConfig, CustomModel

        return CustomModel(CustomConfig(**SHAPE, **HEADS)).eval()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **HEADS)).eval()


def edit(folder, **changes) -> None:
    """Write keys of config.json; None removes one."""
    settings = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in settings.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.fixture
def folder(config, tmp_path):
    path = tmp_path / "checkpoint"
    build(config).save_pretrained(path / "language_model" if config == "component-folder" else path)
    if config == "newer-architecture":
        edit(path, model_type="qwen3_successor")
    elif config == "own-code":
        (path / "modeling_custom.py").write_text(OWN_CODE)
        edit(path, auto_map=None)
    elif config == "component-folder":
        (path / "config.json").write_text(json.dumps({"components": ["language_model"], "version": 1}))
    else:
        edit(path, model_type=None)
    return path


def load(folder, kind=transformers.AutoModelForCausalLM, **options):
    return kind.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS.to(model.device)).logits


def check(measure, config: str, device: str, model) -> None:
    model.to(device)
    measure.compare(measure(lambda: logits(model)), logits(build(config).double()), TOLERANCE)


@pytest.mark.reproduces
def test_reproduces(folder):
    load(folder)


@pytest.mark.dead_end("trust-remote-code")
def test_trust_remote_code(folder):
    load(folder, trust_remote_code=True)


@pytest.mark.dead_end("another-auto-class")
def test_another_auto_class(folder):
    load(folder, transformers.AutoModel)


@pytest.mark.dead_end("rename-the-model-type")
def test_rename_the_model_type(config, folder, device, measure):
    if config not in ("newer-architecture", "own-code"):
        pytest.skip("there is no name to change")
    edit(folder, model_type="qwen2" if config == "newer-architecture" else "llama")
    check(measure, config, device, load(folder))


@pytest.mark.workaround("right-folder")
def test_right_folder(config, folder, device, measure):
    if config != "component-folder":
        pytest.skip("the model lies in this folder")
    check(measure, config, device, load(folder / "language_model"))


@pytest.mark.workaround("concrete-class")
def test_concrete_class(config, folder, device, measure):
    if config != "model-type-lost":
        pytest.skip("this release has no class of that architecture")
    check(measure, config, device, load(folder, transformers.LlamaForCausalLM))


@pytest.mark.workaround("restore-model-type")
def test_restore_model_type(config, folder, device, measure):
    if config != "model-type-lost":
        pytest.skip("the key is there, or the file is another one")
    edit(folder, model_type="llama")
    check(measure, config, device, load(folder))


@pytest.mark.workaround("point-to-the-code")
def test_point_to_the_code(config, folder, device, measure):
    if config != "own-code":
        pytest.skip("the checkpoint has no code of its own")
    edit(
        folder,
        auto_map={
            "AutoConfig": "modeling_custom.CustomConfig",
            "AutoModelForCausalLM": "modeling_custom.CustomModel",
        },
    )
    check(measure, config, device, load(folder, trust_remote_code=True))


@pytest.mark.workaround("register-the-class")
def test_register_the_class(config, folder, device, measure):
    if config != "own-code":
        pytest.skip("the checkpoint has no code of its own")
    from modeling_custom import CustomConfig, CustomModel

    transformers.AutoConfig.register("custom_llama", CustomConfig)
    transformers.AutoModelForCausalLM.register(CustomConfig, CustomModel)
    check(measure, config, device, load(folder))
