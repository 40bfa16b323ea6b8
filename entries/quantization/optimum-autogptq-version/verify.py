# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.45", "peft>=0.13"]
# ///
"""A GPTQ library is older than peft or optimum accept, and is found although nothing needs it.

An empty package with a version number stands for the library: only its presence and its number are looked at, by the
real peft and optimum. A fix passes if adapters attach to a tiny Llama and train, or if optimum's module can be used.
"""

import importlib
import sys

import pytest
import torch

PEFT, OPTIMUM = "peft-with-simulated-gptqmodel-5", "optimum-with-simulated-auto-gptq-0-4"
LIBRARIES = {PEFT: ("gptqmodel", "5.0.0"), OPTIMUM: ("auto-gptq", "0.4.2")}


@pytest.fixture(
    params=[
        pytest.param(PEFT, marks=pytest.mark.requires(peft=">=0.20")),
        pytest.param(OPTIMUM, marks=pytest.mark.requires(optimum=">=1.14,<1.24")),
    ]
)
def config(request):
    """Who checks which library."""
    return request.param


@pytest.fixture
def installed(config, tmp_path, monkeypatch):
    """The stand-in, on the path like an installed distribution; undone, it is uninstalled. Its folder."""
    name, version = LIBRARIES[config]
    module = name.replace("-", "_")
    record = tmp_path / f"{module}-{version}.dist-info"
    for folder in (tmp_path / module, record):
        folder.mkdir()
    (tmp_path / module / "__init__.py").write_text("")
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop(module, None)


def adapt(tiny_llama, target="q_proj"):
    import peft

    peft.import_utils.is_gptqmodel_available.cache_clear()
    settings = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    return peft.get_peft_model(tiny_llama(), settings)


def use(config, tiny_llama):
    """What the program does; it has no GPTQ model."""
    if config == PEFT:
        return adapt(tiny_llama)
    for name in [name for name in sys.modules if name.partition(".")[0] == "optimum"]:
        del sys.modules[name]
    return importlib.import_module("optimum.gptq").GPTQQuantizer


@pytest.mark.reproduces
def test_reproduces(config, installed, tiny_llama):
    use(config, tiny_llama)


@pytest.mark.workaround("uninstall-library")
def test_uninstall_library(config, installed, tiny_llama, measure, monkeypatch):
    monkeypatch.undo()
    if config == OPTIMUM:
        described = use(config, tiny_llama)(bits=4, dataset=["text"], group_size=32).to_dict()
        assert (described["bits"], described["group_size"]) == (4, 32)
        return
    model = use(config, tiny_llama)
    ids = torch.arange(12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    found = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert found
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found)
    adapted = model(input_ids=ids).logits
    measure.compare(model.merge_and_unload()(input_ids=ids).logits, adapted, tolerance=1e-4)


@pytest.mark.workaround("hide-library")
def test_hide_library(config, installed, tiny_llama, measure, monkeypatch):
    """It stays installed, and this process is told that there is none."""
    monkeypatch.setitem(sys.modules, LIBRARIES[config][0].replace("-", "_"), None)
    model = use(config, tiny_llama)
    if config == PEFT:
        ids = torch.arange(12)[None]
        adapted = model(input_ids=ids).logits
        measure.compare(model.merge_and_unload()(input_ids=ids).logits, adapted, tolerance=1e-4)


@pytest.mark.dead_end("other-target-modules")
def test_other_target_modules(config, installed, tiny_llama):
    if config == OPTIMUM:
        pytest.skip("no adapters are attached")
    adapt(tiny_llama, target="lm_head")


@pytest.mark.dead_end("import-it-first")
def test_import_it_first(config, installed, tiny_llama):
    """The library itself imports well, which proves nothing."""
    importlib.import_module(LIBRARIES[config][0].replace("-", "_"))
    use(config, tiny_llama)


@pytest.mark.dead_end("try-again")
def test_try_again(config, installed, tiny_llama):
    """A loader that catches the error once and goes on meets it again."""
    try:
        use(config, tiny_llama)
    except ImportError:
        use(config, tiny_llama)
