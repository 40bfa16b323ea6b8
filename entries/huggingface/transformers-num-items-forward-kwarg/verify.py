# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "accelerate"]
# ///
"""The Trainer hands `num_items_in_batch` to a model that passes it on to a `forward` without it.

A tagger of one's own in a wrapper, or compiled; and, for the releases that guessed wrong, a tiny EncoderDecoderModel. A
fix passes if one step changes the weights by what float64 gives for the mean over all tokens.
"""

import ast
import copy
import site
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel, Trainer, TrainingArguments

LEARNING_RATE = 0.5
IDS = torch.arange(6) * 3 + torch.arange(4)[:, None]
LABELS = IDS % 4
ROWS = [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)]


class Tagger(nn.Module):
    """A model of one's own with a fixed signature."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embedding(input_ids))
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **kwargs):
        return self.inner(**kwargs)


class NamedWrapper(Wrapper):
    def forward(self, input_ids, labels=None):
        return self.inner(input_ids, labels=labels)


class SwallowingWrapper(Wrapper):
    def forward(self, num_items_in_batch=None, **kwargs):  # noqa: ARG002
        return self.inner(**kwargs)


NEW = pytest.mark.requires(transformers=">=5")


@pytest.fixture(
    params=[
        pytest.param("wrapper", marks=NEW),
        pytest.param("wrapper-accumulated", marks=NEW),
        pytest.param("compiled-module", marks=NEW),
        pytest.param("encoder-decoder-4-47", marks=pytest.mark.requires(transformers=">=4.46,<4.48")),
        pytest.param("wrapper-beside-4-45", marks=pytest.mark.requires(transformers="<4.46")),
    ]
)
def config(request):
    """What passes the argument on. `beside-4-45`: it is a newer release beside the one that runs this which fails."""
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def encoder_decoder():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    half = {"vocab_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **shape}
    decoder = BertConfig(**half, is_decoder=True, add_cross_attention=True)
    settings = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**half), decoder)
    settings.pad_token_id, settings.decoder_start_token_id = 31, 1
    return EncoderDecoderModel(settings)


def build(config, wrapper=Wrapper):
    torch.manual_seed(0)
    if config.startswith("encoder-decoder"):
        return encoder_decoder()
    return torch.compile(Tagger(), backend="eager") if config == "compiled-module" else wrapper(Tagger())


def train(config, folder, model, **options):
    """The change of the weights in one step over all rows."""
    accumulated = config.endswith("accumulated")
    fixed = {
        "per_device_train_batch_size": 2 if accumulated else 4,
        "gradient_accumulation_steps": 2 if accumulated else 1,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    args = TrainingArguments(output_dir=str(folder), **{**fixed, **options})
    before = weights(model)
    Trainer(model=model, args=args, train_dataset=ROWS).train()
    return weights(model) - before


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def reference(config):
    """In float64; the decoder's inputs are its labels, shifted by hand."""
    torch.manual_seed(0)
    model = encoder_decoder() if config.startswith("encoder-decoder") else Tagger()
    twin, inputs = copy.deepcopy(model).double(), {"input_ids": IDS}
    if config.startswith("encoder-decoder"):
        inputs["decoder_input_ids"] = torch.cat([torch.ones_like(LABELS[:, :1]), LABELS[:, :-1]], dim=1)
    cross_entropy(twin(**inputs)["logits"].flatten(0, 1), LABELS.flatten()).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in twin.parameters()]
    return torch.cat([-LEARNING_RATE * gradient.flatten() for gradient in gradients])


def in_newer_release(run_script, lowest, call):
    """Runs a call of this module under another transformers on `sys.path`, of release `lowest` or newer."""
    for folder in [*sys.path, *site.getsitepackages()]:
        found = [d.version.split(".") for d in metadata.distributions(name="transformers", path=[folder])]
        if found and tuple(map(int, found[0][:2])) >= lowest:
            return run_script(f"{Path(__file__).read_text()}\n\n{call}\n", env={"PYTHONPATH": folder})
    return pytest.skip(f"needs a second transformers, {lowest} or newer, beside this one")


@pytest.mark.reproduces
def test_reproduces(config, measure, run_script, tmp_path):
    if config == "wrapper-beside-4-45":
        in_newer_release(run_script, (4, 46), "train('wrapper', 'out', build('wrapper'))")
    try:
        train(config, tmp_path, build(config))
    finally:
        measure.recovers(lambda: train("wrapper", tmp_path, build("wrapper", NamedWrapper)).isfinite().all())


@pytest.mark.workaround("name-the-arguments")
def test_name_the_arguments(config, measure, tmp_path):
    only_for(config, "wrapper", "wrapper-accumulated")
    result = measure(lambda: train(config, tmp_path, build(config, NamedWrapper)))
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.workaround("declare-no-loss-kwargs")
def test_declare_no_loss_kwargs(config, measure, tmp_path):
    only_for(config, "wrapper", "wrapper-accumulated", "compiled-module")
    model = build(config)
    model.accepts_loss_kwargs = False
    measure.compare(train(config, tmp_path, model), reference(config), tolerance=1e-4)


@pytest.mark.workaround("let-the-trainer-compile")
def test_let_the_trainer_compile(config, measure, tmp_path):
    only_for(config, "compiled-module")
    torch.manual_seed(0)
    result = train(config, tmp_path, Tagger(), torch_compile=True, torch_compile_backend="eager")
    measure.compare(result, reference(config), tolerance=1e-4)


@pytest.mark.workaround("upgrade-transformers")
def test_upgrade_transformers(config, measure, run_script):
    only_for(config, "encoder-decoder-4-47")
    # Releases start from different random weights, so the reference comes from the same one.
    changes = "train(name, 'out', build(name)).tolist(), reference(name).tolist()"
    call = f"name = 'encoder-decoder'\nprint('changes', {changes}, sep='|')"
    printed = in_newer_release(run_script, (4, 50), call)
    result, wanted = map(ast.literal_eval, printed.rpartition("changes|")[2].strip().split("|"))
    measure.compare(torch.tensor(result), torch.tensor(wanted), tolerance=1e-4)


@pytest.mark.workaround("pin-4-45")
def test_pin_4_45(config, measure, tmp_path):
    only_for(config, "wrapper-beside-4-45")
    measure.compare(train(config, tmp_path, build(config)), reference(config), tolerance=1e-4)


@pytest.mark.dead_end("swallow-in-the-wrapper")
def test_swallow_in_the_wrapper(config, measure, tmp_path):
    """The Trainer still sees `**kwargs` and takes every accumulated loss for divided."""
    if config != "wrapper-accumulated":
        pytest.skip("with a single batch per step the mean is the same")
    measure.compare(train(config, tmp_path, build(config, SwallowingWrapper)), reference(config), tolerance=0.1)


@pytest.mark.dead_end("average-tokens-off")
def test_average_tokens_off(config, tmp_path):
    only_for(config, "wrapper", "wrapper-accumulated", "compiled-module", "encoder-decoder-4-47")
    train(config, tmp_path, build(config), average_tokens_across_devices=False, gradient_accumulation_steps=1)


@pytest.mark.dead_end("declare-on-old-release")
def test_declare_on_old_release(config, tmp_path):
    only_for(config, "encoder-decoder-4-47")
    model = build(config)
    model.accepts_loss_kwargs = False
    train(config, tmp_path, model)
