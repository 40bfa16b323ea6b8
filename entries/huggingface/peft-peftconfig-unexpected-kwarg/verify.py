# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "peft>=0.10"]
# ///
"""adapter_config.json is read and is not the configuration of an adapter.

`model-…` is the folder of a merged model in which config.json was copied to adapter_config.json, `truncated-…` an
adapter whose file lost its `peft_type`. `…-read` asks for the configuration alone (PeftConfig), `…-load` for the
model (PeftModel), which words the error differently. A fix is right if the model it gives predicts what the trained
one did.
"""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40", peft=">=0.10")

TOLERANCE = 1e-4


@pytest.fixture(params=["model-read", "model-load", "truncated-read", "truncated-load"])
def config(request):
    return request.param


@torch.no_grad()
def predict(model, device):
    return model.to(device).eval()(input_ids=torch.arange(3, 15, device=device)[None]).logits.cpu()


def write(folder, settings):
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def read(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def place(config, base, folder):
    """The folder that is read, and what the trained model predicts. A good copy of the adapter lies in `adapter`."""
    settings = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    wanted = predict(model, "cpu")
    model.save_pretrained(folder / "adapter")
    target = folder / "broken"
    if config.startswith("model"):
        model.merge_and_unload().save_pretrained(target)
        shutil.copy(target / "config.json", target / "adapter_config.json")
    else:
        shutil.copytree(folder / "adapter", target)
        write(target, {key: value for key, value in read(target).items() if key != "peft_type"})
    return target, wanted


def open_adapter(config, base, folder):
    """What the script does: with `read` the configuration first, then the model."""
    settings = PeftConfig.from_pretrained(str(folder)) if config.endswith("read") else None
    return PeftModel.from_pretrained(base, str(folder), config=settings)


def only_for(config, beginning):
    if not config.startswith(beginning):
        pytest.skip(f"the folder does not hold a {beginning} file here")


@pytest.mark.reproduces
def test_reproduces(config, tiny_llama, measure, tmp_path):
    folder, _ = place(config, tiny_llama(), tmp_path)
    try:
        open_adapter(config, tiny_llama(), folder)
    finally:
        measure.recovers(lambda: open_adapter(config, tiny_llama(), tmp_path / "adapter"))


@pytest.mark.workaround("use-the-adapter-folder")
def test_use_the_adapter_folder(config, tiny_llama, device, measure, tmp_path):
    _, wanted = place(config, tiny_llama(), tmp_path)
    (found,) = (file.parent for file in tmp_path.rglob("adapter_config.json") if "peft_type" in file.read_text())
    measure.compare(predict(open_adapter(config, tiny_llama(), found), device), wanted, TOLERANCE)


@pytest.mark.workaround("load-as-full-model")
def test_load_as_full_model(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "model")
    folder, wanted = place(config, tiny_llama(), tmp_path)
    (folder / "adapter_config.json").unlink()
    measure.compare(predict(AutoModelForCausalLM.from_pretrained(folder), device), wanted, TOLERANCE)


@pytest.mark.workaround("restore-peft-type")
def test_restore_peft_type(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "truncated")
    folder, wanted = place(config, tiny_llama(), tmp_path)
    write(folder, {"peft_type": "LORA", **read(folder)})
    measure.compare(predict(open_adapter(config, tiny_llama(), folder), device), wanted, TOLERANCE)


@pytest.mark.workaround("read-with-its-own-class")
def test_read_with_its_own_class(config, tiny_llama, device, measure, tmp_path):
    only_for(config, "truncated")
    folder, wanted = place(config, tiny_llama(), tmp_path)
    settings = LoraConfig.from_pretrained(str(folder))
    model = PeftModel.from_pretrained(tiny_llama(), str(folder), config=settings)
    measure.compare(predict(model, device), wanted, TOLERANCE)


@pytest.mark.dead_end("upgrade-peft")
@pytest.mark.requires(peft=">=0.20")
def test_upgrade_peft(config, tiny_llama, tmp_path):
    folder, _ = place(config, tiny_llama(), tmp_path)
    open_adapter(config, tiny_llama(), folder)


@pytest.mark.dead_end("delete-rejected-keys")
def test_delete_rejected_keys(config, tiny_llama, tmp_path):
    folder, _ = place(config, tiny_llama(), tmp_path)
    write(folder, {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM"})
    open_adapter(config, tiny_llama(), folder)


@pytest.mark.dead_end("peft-type-into-a-model-config")
def test_peft_type_into_a_model_config(config, tiny_llama, tmp_path):
    only_for(config, "model")
    folder, _ = place(config, tiny_llama(), tmp_path)
    write(folder, {"peft_type": "LORA", **read(folder)})
    open_adapter(config, tiny_llama(), folder)


@pytest.mark.dead_end("lora-config-on-a-model-config")
def test_lora_config_on_a_model_config(config, tiny_llama, tmp_path):
    only_for(config, "model")
    folder, _ = place(config, tiny_llama(), tmp_path)
    PeftModel.from_pretrained(tiny_llama(), str(folder), config=LoraConfig.from_pretrained(str(folder)))


@pytest.mark.dead_end("leave-the-file-there")
def test_leave_the_file_there(config, tiny_llama, tmp_path):
    only_for(config, "model")
    folder, _ = place(config, tiny_llama(), tmp_path)
    AutoModelForCausalLM.from_pretrained(folder)
