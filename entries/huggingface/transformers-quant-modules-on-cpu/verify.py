# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.56", "bitsandbytes>=0.47", "accelerate>=1.0"]
# ///
"""A quantized model does not fit where the automatic placement may put it, and is spread.

The models are tiny and really quantized by bitsandbytes; `max_memory` plays the card that is too small, on a CPU as on
a GPU. In `8bit` and `4bit` a Llama is too large for it, in `experts` a Mixtral, whose joined experts transformers 5
leaves unquantized. A fix is right if the model computes what its own dequantized weights compute in float32, within
what 8-bit arithmetic rounds.
"""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

pytestmark = pytest.mark.requires(torch=">=2.4", transformers=">=4.56", bitsandbytes=">=0.47", accelerate=">=1.0")

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
ROOM = {"8bit": 0.25, "4bit": 0.14, "experts": 0.6}
"""Memory of the card, as a share of the weights in float32."""
TOLERANCE = 0.05


@pytest.fixture(params=["8bit", "4bit", pytest.param("experts", marks=pytest.mark.requires(transformers=">=5"))])
def config(request):
    return request.param


def build(config, layers=4):
    torch.manual_seed(0)
    if config == "experts":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
        settings = transformers.MixtralConfig(vocab_size=64, num_hidden_layers=layers, **SHAPE, **experts)
        return transformers.MixtralForCausalLM(settings)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, num_hidden_layers=layers, **SHAPE))


def checkpoint(config, folder, layers=4):
    build(config, layers).save_pretrained(folder / f"model-{layers}")
    return folder / f"model-{layers}"


def bits(config, **options):
    if config == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **options)
    return BitsAndBytesConfig(load_in_8bit=True, **options)


def main(device):
    """accelerate's name for the device."""
    return 0 if device.startswith("cuda") else "cpu"


def load(path, config, device, **settings):
    room = {main(device): int(ROOM[config] * 4 * sum(p.numel() for p in build(config).parameters()))}
    settings = {"quantization_config": bits(config), "device_map": "auto", "max_memory": room, **settings}
    return AutoModelForCausalLM.from_pretrained(path, **settings)


@torch.no_grad()
def predict(model, device):
    return model.eval()(input_ids=torch.arange(3, 15, device=device)[None]).logits.float().cpu()


def check(measure, model, device, folder):
    """The layers are quantized, and compute what they hold."""
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    assert not {"cpu", "disk"} & set(getattr(model, "hf_device_map", {}).values()) - {main(device)}
    result = measure(lambda: predict(model, device))
    model.dequantize().save_pretrained(folder / "plain")
    plain = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)
    measure.compare(result, predict(plain, "cpu"), TOLERANCE)


@pytest.mark.reproduces
def test_reproduces(config, device, measure, tmp_path):
    path = checkpoint(config, tmp_path)
    try:
        load(path, config, device)
    finally:
        measure.recovers(lambda: load(path, config, device, device_map={"": main(device)}, max_memory=None))


@pytest.mark.workaround("free-or-smaller")
def test_free_or_smaller(config, device, measure, tmp_path):
    if config == "8bit":
        model = load(checkpoint(config, tmp_path), config, device, quantization_config=bits("4bit"))
    else:
        model = load(checkpoint(config, tmp_path, layers=2), config, device)
    check(measure, model, device, tmp_path)


@pytest.mark.workaround("half-precision-for-the-rest")
def test_half_precision_for_the_rest(config, device, measure, tmp_path):
    if config != "experts":
        pytest.skip("the quantized layers alone are too large here")
    model = load(checkpoint(config, tmp_path), config, device, dtype=torch.bfloat16)
    check(measure, model, device, tmp_path)


@pytest.mark.workaround("pin-to-gpu")
def test_pin_to_gpu(config, device, measure, tmp_path):
    model = load(checkpoint(config, tmp_path), config, device, device_map={"": main(device)}, max_memory=None)
    check(measure, model, device, tmp_path)


@pytest.mark.workaround("cpu-offload")
@pytest.mark.requires(device="cuda")
def test_cpu_offload(config, device, measure, tmp_path):
    parts = {"model.embed_tokens": 0, "model.layers": 0, "model.norm": "cpu", "model.rotary_emb": 0, "lm_head": "cpu"}
    quantization = bits(config, llm_int8_enable_fp32_cpu_offload=True)
    path = checkpoint(config, tmp_path)
    model = load(path, config, device, quantization_config=quantization, device_map=parts, max_memory=None)
    assert model.hf_device_map["lm_head"] == "cpu"
    pinned = load(path, config, device, device_map={"": 0}, max_memory=None)
    measure.compare(measure(lambda: predict(model, device)), predict(pinned, device), TOLERANCE)


@pytest.mark.dead_end("flag-to-from-pretrained")
def test_flag_to_from_pretrained(config, device, tmp_path):
    load(checkpoint(config, tmp_path), config, device, llm_int8_enable_fp32_cpu_offload=True)


@pytest.mark.dead_end("old-name-of-the-flag")
def test_old_name_of_the_flag(config, device, tmp_path):
    quantization = bits(config, load_in_8bit_fp32_cpu_offload=True)
    load(checkpoint(config, tmp_path), config, device, quantization_config=quantization)


@pytest.mark.dead_end("flag-with-auto")
@pytest.mark.requires(device="cpu")
def test_flag_with_auto(config, device, tmp_path):
    quantization = bits(config, llm_int8_enable_fp32_cpu_offload=True)
    model = load(checkpoint(config, tmp_path), config, device, quantization_config=quantization)
    for _token in range(2):
        predict(model, device)


@pytest.mark.dead_end("offload-folder")
def test_offload_folder(config, device, tmp_path):
    load(checkpoint(config, tmp_path), config, device, offload_folder=tmp_path / "offload")


@pytest.mark.dead_end("other-device-map")
def test_other_device_map(config, device, tmp_path):
    load(checkpoint(config, tmp_path), config, device, device_map="sequential")
