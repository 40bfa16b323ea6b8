# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.41", "peft>=0.11"]
# ///
"""`backward()` on a loss without a graph, on a tiny Llama with LoRA adapters.

`frozen-embeddings` trains the adapters under reentrant gradient checkpointing, and `frozen-features` does so with
features of a frozen tower in place of token ids. `inference-adapters` has loaded the adapters the way one does for
inference, and `rebuilt-loss` collects the losses of micro-batches as plain numbers.
"""

import peft
import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.41", peft=">=0.11")

REENTRANT = {"use_reentrant": True}


def adapted(tiny_llama, device, dtype=torch.float32):
    """Frozen model, trainable adapters; the same numbers every time."""
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.0)
    base = tiny_llama(dtype)
    torch.manual_seed(0)
    return peft.get_peft_model(base, settings).to(device).train()


def batch(device):
    return torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1)).to(device)


def loss_of(model):
    ids = batch(model.device)
    return model(input_ids=ids, labels=ids).loss


def features(model):
    """What a frozen vision or audio tower would hand over."""
    values = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(2))
    return values.to(model.device, model.dtype)


def features_loss(model, require_grad=False):
    return model(inputs_embeds=features(model).requires_grad_(require_grad), labels=batch(model.device)).loss


def rebuilt_loss(model):
    """The mean over micro-batches, made from numbers."""
    parts = [model(input_ids=row, labels=row).loss.item() for row in batch(model.device).split(2)]
    return torch.tensor(parts, device=model.device).mean()


def summed_loss(model):
    """The mean over micro-batches, kept in torch all the way."""
    parts = [model(input_ids=row, labels=row).loss for row in batch(model.device).split(2)]
    return torch.stack(parts).mean()


def gradients(model):
    """Gradient of each adapter weight, zero where none arrived."""
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in adapters.items()}


def reference(tiny_llama, config="ids"):
    """In float64, without checkpointing."""
    model = adapted(tiny_llama, "cpu", torch.float64)
    (features_loss if config == "frozen-features" else loss_of)(model).backward()
    return gradients(model)


def reloaded(tiny_llama, device, folder, trainable):
    adapted(tiny_llama, "cpu").save_pretrained(folder)
    return peft.PeftModel.from_pretrained(tiny_llama(), folder, is_trainable=trainable).to(device).train()


def broken(config, tiny_llama, device, folder):
    """The model as each cause leaves it, and the loss it is trained with."""
    if config == "inference-adapters":
        return reloaded(tiny_llama, device, folder, trainable=False), loss_of
    model = adapted(tiny_llama, device)
    if config == "rebuilt-loss":
        return model, rebuilt_loss
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=REENTRANT)
    return model, features_loss if config == "frozen-features" else loss_of


def kept_bytes(model, loss_of):
    """Bytes that the graph of one forward pass keeps, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model)
    del loss
    return sum(kept.values())


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(
    params=[
        pytest.param("frozen-embeddings", marks=pytest.mark.requires(transformers="<5")),
        "frozen-features",
        "inference-adapters",
        "rebuilt-loss",
    ]
)
def config(request):
    """Why the loss hangs on no graph. Since transformers 5 text models let their embeddings require a gradient."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, device, tiny_llama, tmp_path):
    model, loss = broken(config, tiny_llama, device, tmp_path)
    loss(model).backward()


@pytest.mark.workaround("input-require-grads")
def test_input_require_grads(config, device, tiny_llama, measure):
    only_for(config, "frozen-embeddings")
    model = adapted(tiny_llama, device)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=REENTRANT)
    loss_of(model).backward()
    measure.compare(gradients(model), reference(tiny_llama), tolerance=1e-3)


@pytest.mark.workaround("non-reentrant")
def test_non_reentrant(config, device, tiny_llama, measure):
    only_for(config, "frozen-embeddings", "frozen-features")
    model, loss = broken(config, tiny_llama, device, None)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    measure.record("kept_bytes", kept_bytes(model, loss))
    loss(model).backward()
    measure.compare(gradients(model), reference(tiny_llama, config), tolerance=1e-3)


@pytest.mark.workaround("features-require-grad")
def test_features_require_grad(config, device, tiny_llama, measure):
    only_for(config, "frozen-features")
    model, _ = broken(config, tiny_llama, device, None)
    features_loss(model, require_grad=True).backward()
    measure.compare(gradients(model), reference(tiny_llama, config), tolerance=1e-3)


@pytest.mark.workaround("checkpointing-off")
def test_checkpointing_off(config, device, tiny_llama, measure):
    only_for(config, "frozen-embeddings", "frozen-features")
    model, loss = broken(config, tiny_llama, device, None)
    model.gradient_checkpointing_disable()
    measure.record("kept_bytes", kept_bytes(model, loss))
    loss(model).backward()
    measure.compare(gradients(model), reference(tiny_llama, config), tolerance=1e-3)


@pytest.mark.workaround("unfreeze")
def test_unfreeze(config, device, tiny_llama, tmp_path, measure):
    only_for(config, "inference-adapters")
    model = reloaded(tiny_llama, device, tmp_path, trainable=True)
    loss_of(model).backward()
    measure.compare(gradients(model), reference(tiny_llama), tolerance=1e-3)


@pytest.mark.workaround("keep-the-graph")
def test_keep_the_graph(config, device, tiny_llama, measure):
    only_for(config, "rebuilt-loss")
    model = adapted(tiny_llama, device)
    summed_loss(model).backward()
    measure.compare(gradients(model), reference(tiny_llama), tolerance=1e-3)


@pytest.mark.dead_end("loss-requires-grad")
def test_loss_requires_grad(config, device, tiny_llama, tmp_path, measure):
    model, loss = broken(config, tiny_llama, device, tmp_path)
    loss(model).requires_grad_(True).backward()
    measure.compare(gradients(model), reference(tiny_llama), tolerance=1e-3)


@pytest.mark.dead_end("enable-grad")
def test_enable_grad(config, device, tiny_llama, tmp_path):
    model, loss = broken(config, tiny_llama, device, tmp_path)
    with torch.enable_grad():
        loss(model.train()).backward()


@pytest.mark.dead_end("input-grads-without-trainable")
def test_input_grads_without_trainable(config, device, tiny_llama, tmp_path, measure):
    only_for(config, "inference-adapters")
    model, loss = broken(config, tiny_llama, device, tmp_path)
    model.enable_input_require_grads()
    loss(model).backward()
    measure.compare(gradients(model), reference(tiny_llama), tolerance=1e-3)


@pytest.mark.dead_end("input-grads-with-own-embeddings")
def test_input_grads_with_own_embeddings(config, device, tiny_llama):
    only_for(config, "frozen-features")
    model, loss = broken(config, tiny_llama, device, None)
    model.enable_input_require_grads()
    loss(model).backward()
