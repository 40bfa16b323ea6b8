# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.56", "safetensors"]
# ///
"""Four folders in which from_pretrained finds no weights, though most of them hold some.

The model is a tiny Llama in shards. `parent-folder` has the weights one level down, `shards-without-index` and
`shard-missing` are downloads that broke off, and `state-dict-file` was
written with torch.save. A folder with the whole model stands for the Hub. Right is what computes the model's logits.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.56")

INDEX = "model.safetensors.index.json"
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(params=["parent-folder", "shards-without-index", "shard-missing", "state-dict-file"])
def config(request):
    return request.param


@pytest.fixture
def hub(tiny_llama, tmp_path):
    """The whole model."""
    tiny_llama().save_pretrained(tmp_path / "hub", max_shard_size="40KB")
    assert len(list((tmp_path / "hub").glob("*.safetensors"))) > 1
    return tmp_path / "hub"


@pytest.fixture
def folder(config, hub, tiny_llama, tmp_path):
    """What the program is given."""
    path = tmp_path / "model"
    if config == "parent-folder":
        shutil.copytree(hub, path / "checkpoint-500")
        shutil.copy(hub / "config.json", path)
    elif config == "shards-without-index":
        shutil.copytree(hub, path, ignore=shutil.ignore_patterns(INDEX))
    elif config == "shard-missing":
        shutil.copytree(hub, path, ignore=shutil.ignore_patterns("model-00002-*"))
    else:
        shutil.copytree(hub, path, ignore=shutil.ignore_patterns("model*"))
        torch.save(tiny_llama().state_dict(), path / "model.pt")
    return path


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS.to(model.device)).logits


def check(measure, model, device, tiny_llama) -> None:
    model.to(device)
    measure.compare(measure(lambda: logits(model)), logits(tiny_llama(torch.float64).eval()), tolerance=1e-4)


@pytest.mark.reproduces
def test_reproduces(folder):
    load(folder)


@pytest.mark.workaround("right-folder")
def test_right_folder(config, folder, device, measure, tiny_llama):
    if config != "parent-folder":
        pytest.skip("the weights lie in this folder")
    found = sorted(path.parent for path in folder.rglob(INDEX))
    check(measure, load(found[-1]), device, tiny_llama)


@pytest.mark.workaround("complete-download")
def test_complete_download(config, folder, hub, device, measure, tiny_llama):
    if config not in ("shards-without-index", "shard-missing"):
        pytest.skip("nothing was lost on the way")
    for file in hub.iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    check(measure, load(folder), device, tiny_llama)


@pytest.mark.workaround("build-index")
def test_build_index(config, folder, device, measure, tiny_llama):
    if config != "shards-without-index":
        pytest.skip("the index is there, or there are no shards")
    shards = {file.name: load_file(file) for file in folder.glob("model-*.safetensors")}
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    size = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    check(measure, load(folder), device, tiny_llama)


@pytest.mark.workaround("convert")
def test_convert(config, folder, device, measure, tiny_llama):
    if config != "state-dict-file":
        pytest.skip("the format is right")
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    model.save_pretrained(folder)
    check(measure, load(folder), device, tiny_llama)


@pytest.mark.dead_end("toggle-safetensors")
def test_toggle_safetensors(folder):
    load(folder, use_safetensors=False)


@pytest.mark.dead_end("force-download")
def test_force_download(folder):
    load(folder, force_download=True)


@pytest.mark.dead_end("rename-a-file")
def test_rename_a_file(config, folder, device, measure, tiny_llama):
    if config not in ("shards-without-index", "state-dict-file"):
        pytest.skip("there is no file to rename")
    file = next(folder.glob("model-00001-*" if config == "shards-without-index" else "model.pt"))
    file.rename(folder / "model.safetensors")
    check(measure, load(folder), device, tiny_llama)
