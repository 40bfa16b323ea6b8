# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56"]
# ///
"""FlashAttention asked for where flash_attn is not installed: by the caller, or by a model's own Python file.

A tiny Llama saved to a folder stands for the checkpoint. For `remote-file` the folder also holds a modelling file
which imports flash_attn inside the branch that uses it, as many remote files do.
"""

from __future__ import annotations

import importlib.util
import json
from unittest.mock import patch

import pytest
import torch
import transformers
from transformers import dynamic_module_utils

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56")

REMOTE_FILE = """
from transformers import LlamaForCausalLM

class CustomModel(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        if self.config._attn_implementation == "flash_attention_2":
            from flash_attn import flash_attn_func
        return super().forward(*args, **kwargs)
"""
GUARDED_FILE = REMOTE_FILE.replace(
    "            from flash_attn import flash_attn_func",
    """            try:
                from flash_attn import flash_attn_func
            except ImportError:
                flash_attn_func = None""",
)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
TOLERANCE = 1e-4


@pytest.fixture(params=["flash-attention-2", "flash-attention-3", "remote-file"])
def config(request, monkeypatch, tmp_path):
    package = "flash_attn_interface" if request.param == "flash-attention-3" else "flash_attn"
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    # Code of checkpoints goes to this test's folder instead of the user's cache.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return request.param


@pytest.fixture
def folder(config, tiny_llama, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    if config == "remote-file":
        settings = tmp_path / "model" / "config.json"
        auto_map = {"AutoModelForCausalLM": "modeling_custom.CustomModel"}
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_map": auto_map}))
        (tmp_path / "model" / "modeling_custom.py").write_text(REMOTE_FILE)
    return tmp_path / "model"


def load(config: str, folder, device: str, attention=None, **options):
    if attention is None:
        attention = "flash_attention_3" if config == "flash-attention-3" else "flash_attention_2"
    if config == "remote-file":
        options["trust_remote_code"] = True
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, **options)
    return model.eval().to(device)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS.to(model.device)).logits


def reference(tiny_llama) -> torch.Tensor:
    model = tiny_llama(torch.float64, attn_implementation="eager").eval()
    return logits(model)


@pytest.mark.reproduces
def test_reproduces(config, device, folder):
    load(config, folder, device)


@pytest.mark.workaround("use-sdpa")
def test_use_sdpa(config, device, folder, measure, tiny_llama):
    if config == "remote-file":
        pytest.skip("the file's imports are looked at before the attention is chosen: see the dead end")
    model = load(config, folder, device, attention="sdpa")
    measure.compare(measure(lambda: logits(model)), reference(tiny_llama), TOLERANCE)


@pytest.mark.workaround("guard-the-import")
def test_guard_the_import(config, device, folder, measure, tiny_llama):
    if config != "remote-file":
        pytest.skip("no file of the model's own")
    (folder / "modeling_custom.py").write_text(GUARDED_FILE)
    model = load(config, folder, device, attention="sdpa")
    measure.compare(measure(lambda: logits(model)), reference(tiny_llama), TOLERANCE)


@pytest.mark.workaround("skip-the-import-check")
def test_skip_the_import_check(config, device, folder, measure, tiny_llama):
    if config != "remote-file":
        pytest.skip("no file of the model's own")
    get_imports = dynamic_module_utils.get_imports

    def without_flash(path):
        return [name for name in get_imports(path) if name != "flash_attn"]

    with patch("transformers.dynamic_module_utils.get_imports", without_flash):
        model = load(config, folder, device, attention="sdpa")
    measure.compare(measure(lambda: logits(model)), reference(tiny_llama), TOLERANCE)


@pytest.mark.dead_end("sixteen-bit-dtype")
def test_sixteen_bit_dtype(config, device, folder):
    load(config, folder, device, dtype=torch.bfloat16)


@pytest.mark.dead_end("switch-after-loading")
def test_switch_after_loading(config, device, folder):
    if config == "remote-file":
        pytest.skip("the model does not load")
    model = load(config, folder, device, attention="sdpa")
    model.set_attn_implementation(config.replace("flash-attention-", "flash_attention_"))
    logits(model)


@pytest.mark.dead_end("sdpa-for-a-remote-file")
def test_sdpa_for_a_remote_file(config, device, folder):
    if config != "remote-file":
        pytest.skip("no file of the model's own")
    load(config, folder, device, attention="sdpa")
