# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=5", "bitsandbytes>=0.48", "accelerate>=1.0", "safetensors"]
# ///
"""A GPTQ checkpoint is loaded, or made, where optimum and the library with the kernels are not installed.

They are really missing; where they are installed the arms are skipped. A tiny Llama is packed in GPTQ's format by hand,
so that ways round the libraries can be compared with the numbers it was packed from.
"""

import importlib
import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPTQConfig

pytestmark = pytest.mark.requires(transformers=">=5")

BITS, GROUP = 4, 32
SHIFTS = torch.arange(0, 32, BITS, dtype=torch.int32)


@pytest.fixture(params=["packed-checkpoint", "quantize-while-loading", "import"])
def config(request):
    """Who needs the libraries: the loader of a packed checkpoint, the quantizer, or an import."""
    wanted = "gptqmodel" if request.param == "import" else "optimum"
    if importlib.util.find_spec(wanted):
        pytest.skip(f"{wanted} is installed here")
    return request.param


def build(tiny_llama):
    return tiny_llama(hidden_size=64, intermediate_size=64)


def pack(matrix):
    """GPTQ's four tensors for a matrix `[out, in]`, and the matrix that they stand for."""
    values = matrix.detach().t().reshape(-1, GROUP, matrix.shape[0])
    scales = values.abs().amax(dim=1) / 7
    codes = ((values / scales[:, None]).round().clamp(-8, 7) + 8).to(torch.int32)
    meant = ((codes - 8) * scales[:, None]).reshape(-1, matrix.shape[0]).t().contiguous()
    codes = codes.reshape(-1, 32 // BITS, matrix.shape[0])
    parts = {
        "qweight": (codes << SHIFTS[None, :, None]).sum(dim=1, dtype=torch.int32),
        # The format stores each zero point less one: 7 for 8, eight of them in a word.
        "qzeros": torch.full((len(scales), matrix.shape[0] * BITS // 32), 0x77777777, dtype=torch.int32),
        "scales": scales,
        "g_idx": torch.arange(matrix.shape[1], dtype=torch.int32) // GROUP,
    }
    return parts, meant


def unpack(qweight, qzeros, scales, g_idx):
    """The matrix `[out, in]` of GPTQ's four tensors, in plain torch."""
    codes = ((qweight[:, None, :] >> SHIFTS[None, :, None]) & 15).reshape(-1, qweight.shape[1])
    zeros = ((qzeros[:, :, None] >> SHIFTS) & 15).reshape(len(qzeros), -1) + 1
    return ((codes - zeros[g_idx.long()]) * scales[g_idx.long()]).t().contiguous()


def is_packed(name):
    return "_proj.weight" in name


def save_packed(model, folder):
    """A GPTQ checkpoint of the model; the model gets the weights that it stands for."""
    tensors = {}
    for name, weight in model.state_dict().items():
        if not is_packed(name):
            tensors[name] = weight
            continue
        parts, meant = pack(weight)
        weight.copy_(meant)
        tensors |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False}
    (folder / "config.json").write_text(json.dumps(described))


def logits(model, device):
    with torch.no_grad():
        return model(input_ids=torch.arange(12, device=device)[None]).logits.float().cpu()


def calibrated():
    return GPTQConfig(bits=BITS, group_size=GROUP, dataset=["some text"], tokenizer="none")


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"does not concern {config}")


@pytest.mark.reproduces
def test_reproduces(config, device, tiny_llama, tmp_path, measure):
    model = build(tiny_llama)
    try:
        if config == "import":
            importlib.import_module("gptqmodel")
        elif config == "packed-checkpoint":
            save_packed(model, tmp_path)
            AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": device})
        else:
            model.save_pretrained(tmp_path)
            AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=calibrated(), device_map={"": device})
    finally:
        measure.recovers(lambda: logits(model, "cpu").isfinite().all())


@pytest.mark.workaround("unpack-the-checkpoint")
def test_unpack_the_checkpoint(config, device, tiny_llama, tmp_path, measure):
    only_for(config, "packed-checkpoint")
    meant = build(tiny_llama)
    save_packed(meant, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".qweight")]:
        layer = name.removesuffix("qweight")
        parts = [tensors.pop(layer + part) for part in ("qweight", "qzeros", "scales", "g_idx")]
        tensors[layer + "weight"] = unpack(*parts)
    model = build(tiny_llama)
    model.load_state_dict(tensors)
    measure.compare(logits(model.to(device), device), logits(meant, "cpu"), tolerance=1e-3)


@pytest.mark.workaround("another-quantization")
def test_another_quantization(config, device, tiny_llama, tmp_path, measure):
    only_for(config, "packed-checkpoint", "quantize-while-loading")
    original = build(tiny_llama)
    original.save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map={"": device})
    assert model.is_quantized
    measure.compare(logits(model, device), logits(original, "cpu"), tolerance=0.05)


@pytest.mark.dead_end("remove-quantization-config")
def test_remove_quantization_config(config, device, tiny_llama, tmp_path, measure):
    """It loads, and every packed layer keeps the random numbers it was made with."""
    only_for(config, "packed-checkpoint")
    meant = build(tiny_llama)
    save_packed(meant, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": device})
    measure.compare(logits(model, device), logits(meant, "cpu"), tolerance=0.05)


@pytest.mark.dead_end("another-backend")
def test_another_backend(config, device, tiny_llama, tmp_path):
    only_for(config, "packed-checkpoint")
    save_packed(build(tiny_llama), tmp_path)
    chosen = GPTQConfig(bits=BITS, backend="torch")
    AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=chosen, device_map={"": device})


@pytest.mark.dead_end("bitsandbytes-on-top")
def test_bitsandbytes_on_top(config, device, tiny_llama, tmp_path):
    only_for(config, "packed-checkpoint")
    save_packed(build(tiny_llama), tmp_path)
    other = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=other, device_map={"": device})


@pytest.mark.dead_end("float16-on-one-device")
def test_float16_on_one_device(config, device, tiny_llama, tmp_path):
    only_for(config, "packed-checkpoint")
    save_packed(build(tiny_llama), tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": device}, dtype=torch.float16)
