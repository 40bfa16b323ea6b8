# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "peft>=0.14", "huggingface_hub"]
# ///
"""peft is pointed to a place without adapter_config.json.

`full-model` is the folder of a merged model, `parent-folder` a run whose adapter lies one level below, `state-dict`
holds nothing but what `torch.save` wrote, `mistyped-path` does not exist and so counts as the name of a Hub
repository, `not-in-cache` is such a name on a machine that may not reach the Hub. A fix is right if the loaded model
predicts what the trained one did.
"""

import shutil

import huggingface_hub.constants
import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40", peft=">=0.14")

TOLERANCE = 1e-4


@pytest.fixture(params=["full-model", "parent-folder", "state-dict", "mistyped-path", "not-in-cache"])
def config(request, monkeypatch):
    # What HF_HUB_OFFLINE=1 sets when the library is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return request.param


def lora():
    return LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def trained(base):
    """The model with an adapter whose weights are not those of a fresh one."""
    model = get_peft_model(base, lora())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    return model


@torch.no_grad()
def predict(model, device):
    return model.to(device).eval()(input_ids=torch.arange(3, 15, device=device)[None]).logits.cpu()


def place(config, base, folder):
    """What was left on disk, where the script looks for the adapter, and what the trained model predicts."""
    model = trained(base)
    wanted = predict(model, "cpu")
    run = folder / "outputs"
    if config == "full-model":
        model.merge_and_unload().save_pretrained(run)
    elif config == "state-dict":
        run.mkdir()
        torch.save(get_peft_model_state_dict(model), run / "adapter.bin")
    else:
        model.save_pretrained(run / "checkpoint-500")
    if config == "mistyped-path":
        return str(folder / "ouputs" / "checkpoint-500"), wanted
    if config == "not-in-cache":
        return "support-team/answers-lora", wanted
    return str(run), wanted


def only_for(config, *names):
    if config not in names:
        pytest.skip("what is missing is something else here")


@pytest.mark.reproduces
def test_reproduces(config, tiny_llama, measure, tmp_path):
    path, _ = place(config, tiny_llama(), tmp_path)
    trained(tiny_llama()).save_pretrained(tmp_path / "good")
    try:
        PeftModel.from_pretrained(tiny_llama(), path)
    finally:
        measure.recovers(lambda: PeftModel.from_pretrained(tiny_llama(), tmp_path / "good"))


@pytest.mark.workaround("point-to-the-adapter")
def test_point_to_the_adapter(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "parent-folder", "mistyped-path", "not-in-cache")
    _, wanted = place(config, tiny_llama(), tmp_path)
    (found,) = (tmp_path / "outputs").rglob("adapter_config.json")
    measure.compare(predict(PeftModel.from_pretrained(tiny_llama(), found.parent), device), wanted, TOLERANCE)


@pytest.mark.workaround("subfolder")
def test_subfolder(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "parent-folder")
    path, wanted = place(config, tiny_llama(), tmp_path)
    model = PeftModel.from_pretrained(tiny_llama(), path, subfolder="checkpoint-500")
    measure.compare(predict(model, device), wanted, TOLERANCE)


@pytest.mark.workaround("load-full-model-plainly")
def test_load_full_model_plainly(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "full-model")
    path, wanted = place(config, tiny_llama(), tmp_path)
    measure.compare(predict(AutoModelForCausalLM.from_pretrained(path), device), wanted, TOLERANCE)


@pytest.mark.workaround("save-adapter-again")
def test_save_adapter_again(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "state-dict", "full-model")
    _, wanted = place(config, tiny_llama(), tmp_path)
    trained(tiny_llama()).save_pretrained(tmp_path / "adapter")
    measure.compare(predict(PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter"), device), wanted, TOLERANCE)


@pytest.mark.workaround("rebuild-around-the-state-dict")
def test_rebuild_around_the_state_dict(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "state-dict")
    path, wanted = place(config, tiny_llama(), tmp_path)
    model = get_peft_model(tiny_llama(), lora())
    loaded = set_peft_model_state_dict(model, torch.load(f"{path}/adapter.bin", weights_only=True))
    assert not loaded.unexpected_keys
    measure.compare(predict(model, device), wanted, TOLERANCE)


@pytest.mark.dead_end("auto-class")
def test_auto_class(config, tiny_llama, tmp_path):
    path, _ = place(config, tiny_llama(), tmp_path)
    AutoPeftModelForCausalLM.from_pretrained(path)


@pytest.mark.dead_end("local-files-only")
def test_local_files_only(config, tiny_llama, tmp_path):
    path, _ = place(config, tiny_llama(), tmp_path)
    PeftModel.from_pretrained(tiny_llama(), path, local_files_only=True)


@pytest.mark.dead_end("config-json-renamed")
def test_config_json_renamed(config, tiny_llama, tmp_path):
    only_for(config, "full-model")
    path, _ = place(config, tiny_llama(), tmp_path)
    shutil.copy(f"{path}/config.json", f"{path}/adapter_config.json")
    PeftModel.from_pretrained(tiny_llama(), path)


@pytest.mark.dead_end("config-of-another-adapter")
def test_config_of_another_adapter(config, tiny_llama, tmp_path):
    only_for(config, "full-model", "state-dict")
    path, _ = place(config, tiny_llama(), tmp_path)
    lora().save_pretrained(path)
    PeftModel.from_pretrained(tiny_llama(), path)
