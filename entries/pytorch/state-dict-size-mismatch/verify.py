# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=5", "accelerate>=1.0"]
# ///
"""Weights of another shape than those of the model they are loaded into.

`other-classes` loads a classifier of ten classes into one of five, `pretrained-classes` the same by `from_pretrained`;
`tokens-added` loads a language model that was fine-tuned with three more tokens into one without them, and
`pretrained-vocabulary` asks `from_pretrained` for the vocabulary of a smaller tokenizer. `other-width` loads into
a model built with another width, `dispatched-width` does so through Accelerate.
"""

import copy

import accelerate
import pytest
import torch
import transformers
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=5")

TOLERANCE = 1e-3
OLD, NEW = 10, 5
ROWS, ADDED, FEWER = 40, 3, 37
PRETRAINED, WIDTHS = ("pretrained-classes", "pretrained-vocabulary"), ("other-width", "dispatched-width")


class Classifier(nn.Module):
    def __init__(self, classes, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.GELU())
        self.fc = nn.Linear(width, classes)

    def forward(self, values):
        return self.fc(self.body(values))


def settings(**changed):
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16, "resid_pdrop": 0, "embd_pdrop": 0}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return transformers.GPT2Config(**{"vocab_size": ROWS, "attn_pdrop": 0, **shape, **ids, **changed})


def saved_model(config):
    torch.manual_seed(0)
    if config in ("other-classes", *WIDTHS):
        return Classifier(OLD)
    if config == "pretrained-classes":
        return transformers.GPT2ForSequenceClassification(settings(num_labels=OLD))
    return transformers.GPT2LMHeadModel(settings(vocab_size=ROWS + ADDED if config == "tokens-added" else ROWS))


def save(config, folder):
    model = saved_model(config)
    if config not in PRETRAINED:
        torch.save(model.state_dict(), folder / "model.pt")
    else:
        model.save_pretrained(folder / "model")
    return model


def state(folder):
    return torch.load(folder / "model.pt", map_location="cpu", weights_only=True)


def new_model(config):
    """What the broken program builds itself to load into."""
    torch.manual_seed(7)
    if config == "tokens-added":
        return transformers.GPT2LMHeadModel(settings())
    return Classifier(OLD, width=24) if config in WIDTHS else Classifier(NEW)


def load(config, model, folder, **options):
    """Into a model that the program built."""
    if config == "dispatched-width":
        accelerate.load_checkpoint_and_dispatch(model, str(folder / "model.pt"), device_map={"": "cpu"}, **options)
    else:
        model.load_state_dict(state(folder), **options)
    return model


def from_pretrained(config, folder, **options):
    if config == "pretrained-classes":
        kind, wanted = transformers.AutoModelForSequenceClassification, {"num_labels": NEW}
    else:
        kind, wanted = transformers.AutoModelForCausalLM, {"vocab_size": FEWER}
    return kind.from_pretrained(folder / "model", **wanted, **options)


def without_head(model):
    model = copy.deepcopy(model)
    setattr(model, "fc" if isinstance(model, Classifier) else "score", nn.Identity())
    return model


def results(model, device="cpu", dtype=torch.float32, tokens=FEWER):
    """Outputs and gradients; of a language model the logits of the tokens that all of them have."""
    model = copy.deepcopy(model).to(device, dtype).eval()
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, Classifier):
        outputs = model(torch.randn(4, 8, generator=generator).to(device, dtype))
    else:
        ids = torch.randint(1, FEWER, (2, 8), generator=generator)
        outputs = model(input_ids=ids.to(device)).logits
        outputs = outputs[..., :tokens] if isinstance(model, transformers.GPT2LMHeadModel) else outputs
    outputs.square().mean().backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    gradients = {name: g[:tokens] if "wte" in name else g for name, g in gradients.items()}
    return [outputs.detach().cpu(), *(gradients[name] for name in sorted(gradients))]


def close(measure, model, saved, device):
    measure.compare(results(model, device), results(saved, dtype=torch.float64), tolerance=TOLERANCE)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.fixture(params=["other-classes", "tokens-added", *WIDTHS, *PRETRAINED])
def config(request):
    """Which shape differs, and who loads."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    save(config, tmp_path)
    if config in PRETRAINED:
        from_pretrained(config, tmp_path)
    else:
        load(config, new_model(config), tmp_path)


@pytest.mark.workaround("build-as-saved")
def test_build_as_saved(config, device, measure, tmp_path):
    only_for(config, "other-classes", *WIDTHS)
    saved = save(config, tmp_path)
    torch.manual_seed(7)
    classes, width = state(tmp_path)["fc.weight"].shape
    close(measure, load(config, Classifier(classes, width), tmp_path), saved, device)


@pytest.mark.workaround("replace-the-head-afterwards")
def test_replace_the_head_afterwards(config, device, measure, tmp_path):
    only_for(config, "other-classes")
    saved, model = save(config, tmp_path), Classifier(OLD)
    model.load_state_dict(state(tmp_path))
    model.fc = nn.Linear(model.fc.in_features, NEW)
    assert results(model, device)[0].shape[-1] == NEW
    close(measure, without_head(model), without_head(saved), device)


@pytest.mark.workaround("leave-the-head-out")
def test_leave_the_head_out(config, device, measure, tmp_path):
    only_for(config, "other-classes")
    saved, model, tensors = save(config, tmp_path), new_model(config), state(tmp_path)
    own = model.state_dict()
    differing = {name for name, tensor in tensors.items() if name in own and tensor.shape != own[name].shape}
    assert differing == {"fc.weight", "fc.bias"}, differing
    found = model.load_state_dict({n: t for n, t in tensors.items() if n not in differing}, strict=False)
    assert set(found.missing_keys) == differing and not found.unexpected_keys
    assert results(model, device)[0].shape[-1] == NEW
    close(measure, without_head(model), without_head(saved), device)


@pytest.mark.workaround("ignore-for-a-new-head")
def test_ignore_for_a_new_head(config, device, measure, tmp_path):
    only_for(config, "pretrained-classes")
    saved = save(config, tmp_path)
    model, found = from_pretrained(config, tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    assert {name for name, *_ in found["mismatched_keys"]} == {"score.weight"}
    assert results(model, device)[0].shape[-1] == NEW
    close(measure, without_head(model), without_head(saved), device)


@pytest.mark.workaround("resize-before-loading")
def test_resize_before_loading(config, device, measure, tmp_path):
    only_for(config, "tokens-added")
    saved, model, tensors = save(config, tmp_path), new_model(config), state(tmp_path)
    model.resize_token_embeddings(tensors["transformer.wte.weight"].shape[0])
    model.load_state_dict(tensors)
    measure.compare(
        results(model, device, tokens=ROWS + ADDED),
        results(saved, dtype=torch.float64, tokens=ROWS + ADDED),
        tolerance=TOLERANCE,
    )


@pytest.mark.workaround("resize-after-loading")
def test_resize_after_loading(config, device, measure, tmp_path):
    only_for(config, "pretrained-vocabulary")
    saved = save(config, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(FEWER)
    assert model.get_input_embeddings().num_embeddings == FEWER
    close(measure, model, saved, device)


@pytest.mark.dead_end("strict-false")
def test_strict_false(config, tmp_path):
    save(config, tmp_path)
    if config in PRETRAINED:
        from_pretrained(config, tmp_path, strict=False)
    else:
        load(config, new_model(config), tmp_path, strict=False)


@pytest.mark.dead_end("ignore-whatever-differs")
def test_ignore_whatever_differs(config, measure, tmp_path):
    only_for(config, "tokens-added", "other-width", "pretrained-vocabulary")
    saved = save(config, tmp_path)
    if config == "pretrained-vocabulary":
        model = from_pretrained(config, tmp_path, ignore_mismatched_sizes=True)
    else:
        model = new_model(config)
        own = model.state_dict()
        fitting = {name: tensor for name, tensor in state(tmp_path).items() if tensor.shape == own[name].shape}
        model.load_state_dict(fitting, strict=False)
    measure.compare(results(model)[0], results(saved, dtype=torch.float64)[0], tolerance=TOLERANCE)


@pytest.mark.dead_end("delete-and-load-strictly")
def test_delete_and_load_strictly(config, tmp_path):
    only_for(config, "other-classes")
    save(config, tmp_path)
    tensors = state(tmp_path)
    del tensors["fc.weight"], tensors["fc.bias"]
    new_model(config).load_state_dict(tensors)
