# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.46", "peft>=0.5", "bitsandbytes>=0.47", "accelerate"]
# ///
"""Merging an adapter into a base model that is quantized.

The bases are tiny random Llamas that bitsandbytes really quantizes. IA3 cannot be merged into them; LoRA could not
before peft 0.6. `gptq-marked` is a plain model that carries the mark which transformers sets on GPTQ bases, the one
thing that peft looks at; its weights are rounded to 4 bits the simple way, without GPTQ's kernels or calibration. A
merge is right if it equals base and adapter computed side by side in float64.
"""

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.4", transformers=">=4.46", peft=">=0.5", bitsandbytes=">=0.47")

TOLERANCE = 1e-4
EIGHT_BITS = 0.1
"""Allowed for what 8-bit rounding changes in the outputs of a tiny random model."""


@pytest.fixture(
    params=[
        pytest.param("ia3-8bit", marks=pytest.mark.requires(peft=">=0.10")),
        pytest.param("ia3-4bit", marks=pytest.mark.requires(peft=">=0.10")),
        pytest.param("gptq-marked", marks=pytest.mark.requires(peft=">=0.10")),
        pytest.param("lora-4bit", marks=pytest.mark.requires(peft="<0.6")),
    ]
)
def config(request):
    return request.param


def base_folder(folder):
    target = folder / "base"
    if not target.exists():
        torch.manual_seed(0)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=4, **shape)).save_pretrained(target)
    return target


def load_base(folder, device="cpu", **settings):
    """Float32, so that what a merge changes is not hidden by rounding; of a real model one takes bfloat16."""
    settings.setdefault("device_map", {"": device})
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, **settings)


def load_quantized(config, folder, device, **settings):
    if config == "ia3-8bit":
        settings["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif config != "gptq-marked":
        settings["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    base = load_base(base_folder(folder), device, **settings)
    if config == "gptq-marked":
        with torch.no_grad():
            for layer in base.model.layers:
                for weight in layer.parameters():
                    step = weight.abs().amax() / 7
                    weight.copy_((weight / step).round() * step)
        base.quantization_method = "gptq"
    return base


def adapter_folder(config, folder):
    """A saved adapter whose weights are not those of a fresh one."""
    names = ["k_proj", "v_proj", "down_proj"]
    settings = LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM")
    if config.startswith("ia3"):
        settings = IA3Config(target_modules=names, feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_base(base_folder(folder)), settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3 + ("ia3_" in name))
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


@torch.no_grad()
def predict(model, device="cpu"):
    return model.eval()(input_ids=torch.arange(3, 15, device=device)[None]).logits.cpu()


def side_by_side(base, adapter):
    """What base and adapter compute together in float64, without any merge."""
    return predict(PeftModel.from_pretrained(base, adapter).cpu().double())


@pytest.mark.reproduces
def test_reproduces(config, device, measure, tmp_path):
    adapter = adapter_folder(config, tmp_path)
    model = PeftModel.from_pretrained(load_quantized(config, tmp_path, device), adapter)
    try:
        model.merge_and_unload()
    finally:
        measure.recovers(lambda: torch.isfinite(predict(model, device)).all().item())


@pytest.mark.workaround("merge-into-16-bit-base")
def test_merge_into_16_bit_base(config, device, measure, tmp_path):
    adapter = adapter_folder(config, tmp_path)
    model = PeftModel.from_pretrained(load_base(base_folder(tmp_path)), adapter).merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    merged = load_base(tmp_path / "merged", device)
    measure.compare(predict(merged, device), side_by_side(load_base(base_folder(tmp_path)), adapter), TOLERANCE)


@pytest.mark.workaround("dequantize-then-merge")
def test_dequantize_then_merge(config, device, measure, tmp_path):
    if config == "gptq-marked":
        pytest.skip("transformers dequantizes bitsandbytes weights, not GPTQ's")
    adapter = adapter_folder(config, tmp_path)
    load_quantized(config, tmp_path, device).dequantize().save_pretrained(tmp_path / "plain")
    model = PeftModel.from_pretrained(load_base(tmp_path / "plain", device), adapter).merge_and_unload()
    measure.compare(predict(model, device), side_by_side(load_base(tmp_path / "plain"), adapter), TOLERANCE)


@pytest.mark.workaround("keep-the-adapter")
def test_keep_the_adapter(config, device, measure, tmp_path):
    adapter = adapter_folder(config, tmp_path)
    model = PeftModel.from_pretrained(load_quantized(config, tmp_path, device), adapter)
    plain = load_quantized(config, tmp_path, device)
    if config != "gptq-marked":
        plain.dequantize().save_pretrained(tmp_path / "plain")
        plain = load_base(tmp_path / "plain")
    tolerance = EIGHT_BITS if config == "ia3-8bit" else TOLERANCE
    measure.compare(predict(model, device), side_by_side(plain, adapter), tolerance)


@pytest.mark.workaround("quantize-after-merging")
def test_quantize_after_merging(config, device, measure, tmp_path):
    adapter = adapter_folder(config, tmp_path)
    model = PeftModel.from_pretrained(load_base(base_folder(tmp_path)), adapter).merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    eight_bits = BitsAndBytesConfig(load_in_8bit=True)
    quantized = load_base(tmp_path / "merged", device, quantization_config=eight_bits)
    assert quantized.get_memory_footprint() < model.get_memory_footprint()
    measure.compare(predict(quantized, device), predict(model), EIGHT_BITS)


@pytest.mark.dead_end("merge-adapter")
def test_merge_adapter(config, device, tmp_path):
    adapter = adapter_folder(config, tmp_path)
    PeftModel.from_pretrained(load_quantized(config, tmp_path, device), adapter).merge_adapter()


@pytest.mark.dead_end("cast-to-16-bit")
def test_cast_to_16_bit(config, device, tmp_path):
    adapter = adapter_folder(config, tmp_path)
    base = load_quantized(config, tmp_path, device).to(torch.bfloat16)
    PeftModel.from_pretrained(base, adapter).merge_and_unload()


@pytest.mark.dead_end("clear-the-mark")
def test_clear_the_mark(config, device, tmp_path):
    if config == "gptq-marked":
        pytest.skip("the mark is all that this stand-in has of GPTQ")
    adapter = adapter_folder(config, tmp_path)
    model = PeftModel.from_pretrained(load_quantized(config, tmp_path, device), adapter)
    base = model.base_model.model
    base.is_loaded_in_8bit = base.is_loaded_in_4bit = False
    model.merge_and_unload()


@pytest.mark.dead_end("offload-the-quantized-base")
def test_offload_the_quantized_base(config, device, tmp_path):
    adapter = adapter_folder(config, tmp_path)
    base = load_quantized(config, tmp_path, device, device_map="auto", offload_folder=tmp_path / "offload")
    PeftModel.from_pretrained(base, adapter).merge_and_unload()
