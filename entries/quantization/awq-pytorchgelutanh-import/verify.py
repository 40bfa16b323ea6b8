# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.57,<5", "peft>=0.10,<0.18", "autoawq>=0.2.7"]
# ///
"""AutoAWQ imports an activation by a name that transformers 4.57 no longer has.

The real packages are needed: the last release of AutoAWQ, a transformers that renamed the class, and a peft that looks
for AWQ layers. A tiny Llama gets adapters, and a fix passes if they train; AWQ's layer has to give the product with the
weights it was packed from.
"""

import importlib
import sys
import warnings

import peft
import pytest
import torch
import transformers
import transformers.activations as activations

pytestmark = pytest.mark.requires(autoawq=">=0.2.7", transformers=">=4.57,<5", peft="<0.18")

WIDTH, GROUP = 64, 32


@pytest.fixture(params=["lora-without-awq-model", "import-awq"])
def config(request, monkeypatch):
    """Who imports it: peft, whatever is adapted, or a program that uses AWQ. Nothing has imported it before."""
    warnings.simplefilter("ignore")
    for name in [name for name in sys.modules if name.partition(".")[0] == "awq"]:
        monkeypatch.delitem(sys.modules, name)
    peft.import_utils.is_auto_awq_available.cache_clear()
    return request.param


def adapt(tiny_llama, target="q_proj"):
    settings = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    return peft.get_peft_model(tiny_llama(), settings)


def awq_layers():
    return importlib.import_module("awq.modules.linear")


def run(config, tiny_llama):
    return adapt(tiny_llama) if config == "lora-without-awq-model" else awq_layers()


def set_alias(monkeypatch):
    if not hasattr(activations, "PytorchGELUTanh"):
        monkeypatch.setattr(activations, "PytorchGELUTanh", activations.GELUTanh, raising=False)


def check_adapters(model, measure):
    """The adapters get the gradients that the merged weight has, seen through the low rank."""
    ids = torch.arange(12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    found = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert found and all(gradient.isfinite().all() and gradient.any() for gradient in found)
    adapted = model(input_ids=ids).logits
    measure.compare(model.merge_and_unload()(input_ids=ids).logits, adapted, tolerance=1e-4)


def check_awq_layer(measure):
    """AWQ's own packing of a matrix whose numbers four bits can hold, and its product."""
    layer = awq_layers().WQLinear_GEMM
    codes = torch.randint(0, 16, (WIDTH, WIDTH), generator=torch.Generator().manual_seed(0))
    scales = torch.full((WIDTH, WIDTH // GROUP), 0.05)
    zeros = torch.full((WIDTH, WIDTH // GROUP), 8)
    linear = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    linear.weight.data = (codes - 8) * 0.05
    packed = layer.from_linear(linear.half(), 4, GROUP, scales=scales.t(), zeros=zeros.t().contiguous())
    unpack = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    found = unpack(packed.qweight, packed.qzeros, packed.scales, 4, GROUP)
    measure.compare(found.t(), (codes - 8) * 0.05, tolerance=2e-3)


@pytest.mark.reproduces
def test_reproduces(config, tiny_llama, measure, monkeypatch):
    try:
        run(config, tiny_llama)
    finally:
        set_alias(monkeypatch)
        measure.recovers(lambda: run(config, tiny_llama) is not None)


@pytest.mark.workaround("uninstall-autoawq")
def test_uninstall_autoawq(config, tiny_llama, measure, monkeypatch):
    """Simulated: Python is told that there is no module of that name."""
    if config == "import-awq":
        pytest.skip("this program needs it")
    monkeypatch.setitem(sys.modules, "awq", None)
    check_adapters(adapt(tiny_llama), measure)


@pytest.mark.workaround("alias")
def test_alias(config, tiny_llama, measure, monkeypatch):
    set_alias(monkeypatch)
    if config == "import-awq":
        check_awq_layer(measure)
        return
    check_adapters(adapt(tiny_llama), measure)


@pytest.mark.dead_end("latest-autoawq")
@pytest.mark.requires(autoawq=">=0.2.9")
def test_latest_autoawq(config, tiny_llama):
    """There is no release after this one."""
    run(config, tiny_llama)


@pytest.mark.dead_end("other-target-modules")
def test_other_target_modules(config, tiny_llama):
    if config == "import-awq":
        pytest.skip("no adapters are attached")
    adapt(tiny_llama, target="lm_head")


@pytest.mark.dead_end("alias-on-the-package")
def test_alias_on_the_package(config, tiny_llama, monkeypatch):
    monkeypatch.setattr(transformers, "PytorchGELUTanh", activations.GELUTanh, raising=False)
    run(config, tiny_llama)


@pytest.mark.dead_end("import-it-earlier")
def test_import_it_earlier(config, tiny_llama):
    awq_layers()
    run(config, tiny_llama)
