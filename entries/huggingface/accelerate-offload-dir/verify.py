# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.56", "peft>=0.16", "accelerate>=1.0"]
# ///
"""accelerate is to put layers on the disk and was given no folder.

The model is a tiny Llama; `max_memory` plays the small machine, with room for seven tenths of it in float32. `adapter`
attaches a LoRA to a base that accelerate has placed already, on GPU and CPU, or where there is no GPU on the CPU with
all hooks: peft then places everything a second time. `own-dispatch` calls infer_auto_device_map and dispatch_model
itself. A fix is right if the model predicts what it does in plain memory.
"""

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56", peft=">=0.16", accelerate=">=1.0")

PARTS = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
EXACT, ROUNDED = 1e-4, 0.05
"""Allowed for the same numbers in float32, and for what bfloat16 changes in a tiny random model."""


@pytest.fixture(params=["adapter", "own-dispatch"])
def config(request):
    return request.param


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder with a saved base model and a saved adapter."""
    monkeypatch.chdir(tmp_path)
    build().save_pretrained("base")
    with_adapter().save_pretrained("adapter")
    return tmp_path


def build():
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=4, **shape))


def with_adapter():
    model = get_peft_model(build(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def main(device):
    """accelerate's name for the device."""
    return 0 if device.startswith("cuda") else "cpu"


def memory(device):
    """What the small machine has, in bytes."""
    return {main(device): int(0.7 * 4 * sum(parameter.numel() for parameter in build().parameters()))}


def load_base(device, dtype=torch.float32, **settings):
    base = AutoModelForCausalLM.from_pretrained("base", dtype=dtype)
    places = {**dict.fromkeys(PARTS, main(device)), "lm_head": "cpu"}
    return dispatch_model(base, places, force_hooks=True, **settings)


def attach(base, device, **settings):
    return PeftModel.from_pretrained(base, "adapter", max_memory=memory(device), **settings)


def spread(model, device, **settings):
    places = infer_auto_device_map(model, max_memory=memory(device), no_split_module_classes=["LlamaDecoderLayer"])
    return dispatch_model(model, places, **settings)


@torch.no_grad()
def predict(model, device="cpu"):
    return model.eval()(input_ids=torch.arange(3, 15, device=device)[None]).logits.float().cpu()


def check(measure, config, model, device, tolerance=EXACT):
    plain = with_adapter() if config == "adapter" else build()
    measure.compare(measure(lambda: predict(model, device)), predict(plain.double()), tolerance)


def only_for_adapters(config):
    if config != "adapter":
        pytest.skip("no adapter is attached here")


@pytest.mark.reproduces
def test_reproduces(config, device, measure):
    try:
        if config == "adapter":
            attach(load_base(device), device)
        else:
            spread(build(), device)
    finally:
        measure.recovers(lambda: predict(load_base(device), device))


@pytest.mark.workaround("folder-for-the-dispatch")
def test_folder_for_the_dispatch(config, device, measure):
    if config == "adapter":
        model = attach(load_base(device), device, offload_folder="offload")
    else:
        model = spread(build(), device, offload_dir="offload")
    assert "disk" in model.hf_device_map.values()
    check(measure, config, model, device)


@pytest.mark.workaround("make-it-fit")
def test_make_it_fit(config, device, measure):
    model = (
        attach(load_base(device, torch.bfloat16), device) if config == "adapter" else spread(build().bfloat16(), device)
    )
    assert "disk" not in model.hf_device_map.values()
    check(measure, config, model, device, ROUNDED)


@pytest.mark.workaround("say-where")
def test_say_where(config, device, measure):
    if config == "adapter":
        model = attach(load_base(device), device, device_map={"": main(device)})
    else:
        model = dispatch_model(build(), {"": main(device)}, force_hooks=True)
    assert set(model.hf_device_map.values()) == {main(device)}
    check(measure, config, model, device)


@pytest.mark.workaround("merge-on-cpu")
def test_merge_on_cpu(config, device, measure):
    only_for_adapters(config)
    base = AutoModelForCausalLM.from_pretrained("base")
    PeftModel.from_pretrained(base, "adapter").merge_and_unload().save_pretrained("merged")
    model = AutoModelForCausalLM.from_pretrained("merged", device_map="auto", max_memory=memory(device))
    assert "disk" in model.hf_device_map.values()
    check(measure, config, model, device)


@pytest.mark.dead_end("folder-for-the-base-only")
def test_folder_for_the_base_only(config, device):
    only_for_adapters(config)
    attach(load_base(device, offload_dir="offload"), device)


@pytest.mark.dead_end("low-cpu-mem-usage")
def test_low_cpu_mem_usage(config, device):
    only_for_adapters(config)
    attach(load_base(device), device, low_cpu_mem_usage=True)


@pytest.mark.dead_end("only-create-the-folder")
def test_only_create_the_folder(config, device, folder):
    (folder / "offload").mkdir()
    if config == "adapter":
        attach(load_base(device), device)
    else:
        spread(build(), device)


@pytest.mark.dead_end("base-on-disk-by-relative-path")
def test_base_on_disk_by_relative_path(config, device, measure):
    only_for_adapters(config)
    attach(AutoModelForCausalLM.from_pretrained("base", device_map="auto", max_memory=memory(device)), device)
    # Nothing was raised. What is in the base model's own file now?
    measure.compare(predict(AutoModelForCausalLM.from_pretrained("base")), predict(build()), EXACT)
