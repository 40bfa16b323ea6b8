# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.56", "bitsandbytes>=0.48", "accelerate>=1.0"]
# ///
"""A model that was loaded in 4 or 8 bits is cast or moved afterwards, and transformers refuses.

A Llama of two layers stands for the model. A fix passes if the logits are those of the untouched quantized model, in
the dtype that was asked for.
"""

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

pytestmark = pytest.mark.requires(transformers=">=4.56", bitsandbytes=">=0.48")

CASTS = ("half-of-4-bit", "to-dtype-of-4-bit", "half-of-8-bit")
TOLERANCE = 0.02


@pytest.fixture(
    params=[
        *CASTS,
        pytest.param("cuda-of-8-bit", marks=pytest.mark.requires(transformers=">=4.56,<6")),
        pytest.param("to-device-of-8-bit", marks=pytest.mark.requires(transformers="<5")),
    ]
)
def config(request):
    """The call, and how the model was loaded."""
    return request.param


@pytest.fixture
def checkpoint(tiny_llama, tmp_path):
    tiny_llama(torch.bfloat16, hidden_size=64).save_pretrained(tmp_path)
    return tmp_path


def load(checkpoint, config, device, dtype=torch.float32):
    bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if "4-bit" in config else {"load_in_8bit": True}
    return AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=BitsAndBytesConfig(**bits), device_map={"": device}, dtype=dtype
    )


def logits(model, device):
    ids = torch.arange(24, device=device).reshape(2, 12)
    with torch.no_grad():
        return model(input_ids=ids).logits


def call(config, model, device):
    if config.startswith("half"):
        return model.half()
    if config.startswith("to-dtype"):
        return model.to(torch.float16)
    return model.cuda() if config == "cuda-of-8-bit" else model.to(device)


def wanted_dtype(config):
    return torch.float16 if config in CASTS else torch.float32


def check(measure, model, checkpoint, config, device, quantized=True):
    """The logits of the model as it was loaded, in the dtype that was wanted, still from packed weights."""
    result = measure(lambda: logits(model, device))
    assert result.dtype == wanted_dtype(config)
    packed = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)]
    assert bool(packed) == quantized
    measure.compare(result, logits(load(checkpoint, config, device), device), tolerance=TOLERANCE)


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"does not concern {config}")


@pytest.mark.reproduces
def test_reproduces(config, device, checkpoint, measure):
    model = load(checkpoint, config, device)
    try:
        call(config, model, device)
    finally:
        measure.recovers(lambda: logits(model, device).isfinite().all())


@pytest.mark.workaround("remove-the-call")
def test_remove_the_call(config, device, checkpoint, measure):
    only_for(config, "cuda-of-8-bit", "to-device-of-8-bit")
    model = load(checkpoint, config, device)
    if not getattr(model, "is_quantized", False):
        model = model.to(device)
    check(measure, model, checkpoint, config, device)


@pytest.mark.workaround("place-when-loading")
def test_place_when_loading(config, device, checkpoint, measure):
    model = load(checkpoint, config, device, dtype=wanted_dtype(config))
    assert {parameter.device.type for parameter in model.parameters()} == {torch.device(device).type}
    check(measure, model, checkpoint, config, device)


@pytest.mark.workaround("cast-float-parameters")
def test_cast_float_parameters(config, device, checkpoint, measure):
    only_for(config, *CASTS)
    model = load(checkpoint, config, device)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float16)
    check(measure, model, checkpoint, config, device)


@pytest.mark.workaround("dequantize-first")
def test_dequantize_first(config, device, checkpoint, measure):
    only_for(config, *CASTS)
    model = load(checkpoint, config, device).dequantize()
    check(measure, model.half(), checkpoint, config, device, quantized=False)


@pytest.mark.workaround("to-instead-of-cuda")
@pytest.mark.requires(transformers=">=5")
def test_to_instead_of_cuda(config, device, checkpoint, measure):
    only_for(config, "cuda-of-8-bit")
    check(measure, load(checkpoint, config, device).to(device), checkpoint, config, device)


@pytest.mark.dead_end("another-cast")
def test_another_cast(config, device, checkpoint):
    """`.half()` is replaced by `.to(dtype)`, and `.to(dtype)` by `.float()`, which would be the way back."""
    only_for(config, *CASTS)
    model = load(checkpoint, config, device)
    if config.startswith("half"):
        model.to(dtype=torch.float16)
    else:
        model.float()


@pytest.mark.dead_end("device-and-dtype-together")
def test_device_and_dtype_together(config, device, checkpoint):
    only_for(config, *CASTS)
    load(checkpoint, config, device).to(device, torch.float16)


@pytest.mark.dead_end("cast-one-part")
def test_cast_one_part(config, device, checkpoint):
    """The guard is on the whole model, so its parts can be cast, and then do not fit each other."""
    only_for(config, *CASTS)
    model = load(checkpoint, config, device)
    model.lm_head.half()
    logits(model, device)


@pytest.mark.dead_end("cast-every-parameter")
def test_cast_every_parameter(config, device, checkpoint):
    only_for(config, "half-of-4-bit", "to-dtype-of-4-bit")
    model = load(checkpoint, config, device)
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    logits(model, device)


@pytest.mark.dead_end("evaluation-mode")
def test_evaluation_mode(config, device, checkpoint):
    model = load(checkpoint, config, device).eval().requires_grad_(False)
    with torch.no_grad():
        call(config, model, device)
