# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "peft>=0.10", "safetensors"]
# ///
"""LoraConfig is given a key that this peft does not know.

`loralib-argument` and `misspelt` are arguments in one's own call. `file-by-hand` turns adapter_config.json into a
LoraConfig without peft's help, `newer-adapter` loads an adapter as usual with a peft before 0.14; their file has the
keys of peft 0.15 and one of a release to come. A fix is right if the adapter has the rank that was asked for and
learns, or, where one is loaded, if the model computes `x W' + b + scale * x A' B'` of the saved matrices.
"""

import inspect
import json

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1", peft=">=0.10")

WIDTH, RANK, ALPHA = 16, 3, 12
NEWER_KEYS = {"eva_config": None, "corda_config": None, "lora_bias": False, "exclude_modules": None, "not_yet": None}
TOLERANCE = 1e-4


@pytest.fixture(
    params=[
        "loralib-argument",
        "misspelt",
        "file-by-hand",
        pytest.param("newer-adapter", marks=pytest.mark.requires(peft="<0.14")),
    ]
)
def config(request):
    return request.param


def arguments(config):
    """What the script passes to LoraConfig."""
    if config == "misspelt":
        return {"rank": RANK, "lora_alpha": ALPHA, "target_modules": ["0"]}
    return {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["0"], "merge_weights": False}


def build(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()).to(device)


def inputs(device):
    return torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1)).to(device)


def saved_adapter(folder, **in_use):
    """An adapter as a newer peft writes it, with keys that an older one does not know."""
    numbers = torch.Generator().manual_seed(2)
    lora_a, lora_b = torch.randn(RANK, WIDTH, generator=numbers), torch.randn(WIDTH, RANK, generator=numbers)
    tensors = {"base_model.model.0.lora_A.weight": lora_a, "base_model.model.0.lora_B.weight": lora_b}
    if in_use.get("lora_bias"):
        tensors["base_model.model.0.lora_B.bias"] = torch.ones(WIDTH)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["0"], "inference_mode": True}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **NEWER_KEYS, **in_use}))
    return folder, tensors


def load(config, folder, device):
    base = build(device)
    if config == "newer-adapter":
        return PeftModel.from_pretrained(base, folder)
    settings = LoraConfig(**json.loads((folder / "adapter_config.json").read_text()))
    return PeftModel.from_pretrained(base, folder, config=settings)


def delete_keys(folder, keys):
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in settings.items() if key not in keys}))


def check_loaded(measure, model, tensors, device):
    base, x = build("cpu").double(), inputs("cpu").double()
    lora_a, lora_b, *bias = (tensor.double() for tensor in tensors.values())
    hidden = base[0](x) + ALPHA / RANK * (x @ lora_a.T @ lora_b.T + sum(bias))
    with torch.no_grad():
        measure.compare(model.to(device)(inputs(device)), base[1](hidden).detach(), TOLERANCE)


def check_made(measure, settings, device):
    """The adapter has the wanted rank and scale, learns, and equals its merged weights."""
    model = get_peft_model(build(device), settings)
    layer = model.base_model.model[0]
    assert tuple(layer.lora_A["default"].weight.shape) == (RANK, WIDTH)
    assert layer.scaling["default"] == ALPHA / RANK
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)

    def step():
        loss = nn.functional.mse_loss(model(inputs(device)), inputs(device).flip(0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    before = step()
    assert measure(step) < before
    with torch.no_grad():
        actual = model(inputs(device))
        measure.compare(actual, model.double().merge_and_unload()(inputs(device).double()), TOLERANCE)


def only_for(config, *names):
    if config not in names:
        pytest.skip("the key comes from another place here")


@pytest.mark.reproduces
def test_reproduces(config, device, measure, tmp_path):
    folder, _ = saved_adapter(tmp_path / "adapter")
    try:
        if config in ("file-by-hand", "newer-adapter"):
            load(config, folder, device)
        else:
            get_peft_model(build(device), LoraConfig(**arguments(config)))
    finally:
        measure.recovers(lambda: get_peft_model(build(device), LoraConfig(r=RANK, target_modules=["0"])))


@pytest.mark.workaround("remove-the-argument")
def test_remove_the_argument(config, device, measure):
    only_for(config, "loralib-argument")
    check_made(measure, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"]), device)


@pytest.mark.workaround("rename-the-argument")
def test_rename_the_argument(config, device, measure):
    only_for(config, "misspelt")
    wanted = arguments(config)
    wanted["r"] = wanted.pop("rank")
    check_made(measure, LoraConfig(**wanted), device)


@pytest.mark.workaround("read-with-peft")
@pytest.mark.requires(peft=">=0.15")
def test_read_with_peft(config, device, measure, tmp_path):
    only_for(config, "file-by-hand")
    folder, tensors = saved_adapter(tmp_path / "adapter", lora_bias=True)
    with pytest.warns(UserWarning, match="not_yet"):
        settings = PeftConfig.from_pretrained(folder)
    check_loaded(measure, PeftModel.from_pretrained(build(device), folder, config=settings), tensors, device)


@pytest.mark.workaround("delete-unknown-keys")
def test_delete_unknown_keys(config, device, measure, tmp_path):
    only_for(config, "file-by-hand", "newer-adapter")
    folder, tensors = saved_adapter(tmp_path / "adapter")
    known = inspect.signature(LoraConfig).parameters
    delete_keys(folder, [key for key in NEWER_KEYS if key not in known])
    check_loaded(measure, load(config, folder, device), tensors, device)


@pytest.mark.dead_end("set-to-none")
def test_set_to_none(config, device, tmp_path):
    if config in ("file-by-hand", "newer-adapter"):
        folder, _ = saved_adapter(tmp_path / "adapter", lora_bias=None)
        load(config, folder, device)
    else:
        unwanted = {"rank": None} if config == "misspelt" else {"merge_weights": None}
        LoraConfig(**{**arguments(config), **unwanted})


@pytest.mark.dead_end("filter-by-signature")
def test_filter_by_signature(config, device, measure):
    only_for(config, "misspelt")
    known = inspect.signature(LoraConfig).parameters
    settings = LoraConfig(**{key: value for key, value in arguments(config).items() if key in known})
    check_made(measure, settings, device)


@pytest.mark.dead_end("delete-a-key-in-use")
def test_delete_a_key_in_use(config, device, measure, tmp_path):
    only_for(config, "newer-adapter")
    folder, tensors = saved_adapter(tmp_path / "adapter", lora_bias=True)
    delete_keys(folder, NEWER_KEYS)
    check_loaded(measure, load(config, folder, device), tensors, device)
