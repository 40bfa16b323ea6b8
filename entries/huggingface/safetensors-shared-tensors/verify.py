# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "safetensors>=0.4", "transformers>=4.40", "accelerate>=1.0"]
# ///
"""Tensors that share memory, on their way into a safetensors file.

A state dict with tied embeddings given to `save_file`; a plain module with tied layers saved by the Trainer; a class of
transformers that ties two layers and does not say so; and two slices of one tensor that overlap.
"""

from __future__ import annotations

import pathlib

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

pytestmark = pytest.mark.requires(torch=">=2.1", safetensors=">=0.4", transformers=">=4.40")

WIDTH = 8


@pytest.fixture(params=["tied-embeddings", "trainer-of-a-plain-module", "tie-undeclared", "overlapping-slices"])
def config(request) -> str:
    return request.param


class Tied(nn.Module):
    """Encoder and decoder with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.Linear(WIDTH, WIDTH)
        self.decoder.weight = self.encoder.weight

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(rows))


class Undeclared(transformers.PreTrainedModel):
    config_class = transformers.LlamaConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.Linear(WIDTH, WIDTH)
        self.decoder.weight = self.encoder.weight
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Layers keep what torch gave them."""


class Declared(Undeclared):
    """The same, and transformers 5 is told which weight is which; before, it was a list of names."""

    _tied_weights_keys = {"decoder.weight": "encoder.weight"}  # noqa: RUF012


def build(config: str) -> nn.Module:
    torch.manual_seed(0)
    if config == "trainer-of-a-plain-module":
        return Tied()
    if config == "tie-undeclared":
        return Undeclared(settings())
    return transformers.LlamaForCausalLM(settings(tie_word_embeddings=True))


def settings(**more) -> transformers.LlamaConfig:
    shape = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaConfig(vocab_size=16, num_key_value_heads=2, **shape, **more)


def state(config: str) -> dict[str, torch.Tensor]:
    if config == "overlapping-slices":
        frames = torch.arange(24.0).reshape(6, 4)
        return {"past": frames[:4], "future": frames[2:]}
    return build(config).state_dict()


def save(config: str, folder: pathlib.Path, model: nn.Module | None = None, **options) -> None:
    """As the program saves in this configuration."""
    if config == "trainer-of-a-plain-module":
        trainer(build(config), folder, **options).save_model(folder)
    elif config == "tie-undeclared":
        (model or build(config)).save_pretrained(folder, **options)
    else:
        safetensors.torch.save_file(state(config), folder / "model.safetensors")


def trainer(model: nn.Module, folder: pathlib.Path, **options) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], **options)
    return transformers.Trainer(model=model, args=arguments)


def saved(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def tied_pair(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(model, transformers.LlamaForCausalLM):
        return model.model.embed_tokens.weight, model.lm_head.weight
    return model.encoder.weight, model.decoder.weight


def check(measure, model: nn.Module, config: str) -> None:
    """All weights are those that were saved, and the tied ones are still one."""
    measure.compare(dict(model.state_dict()), dict(build(config).state_dict()), tolerance=0.0)
    first, second = tied_pair(model)
    assert first.data_ptr() == second.data_ptr()


def skip_unless(applies: bool, reason: str) -> None:
    if not applies:
        pytest.skip(reason)


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    save(config, tmp_path)


@pytest.mark.workaround("save-model")
def test_save_model(config, tmp_path, measure):
    skip_unless(config != "overlapping-slices", "there is no module, and no name that covers the whole memory")
    safetensors.torch.save_model(build(config), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    fresh = build(config)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    safetensors.torch.load_model(fresh, tmp_path / "model.safetensors")
    check(measure, fresh, config)


@pytest.mark.workaround("save-pretrained")
def test_save_pretrained(config, tmp_path, measure):
    skip_unless(config == "tied-embeddings", "only a model of transformers that declares its ties knows how")
    build(config).save_pretrained(tmp_path)
    check(measure, transformers.LlamaForCausalLM.from_pretrained(tmp_path), config)


@pytest.mark.workaround("declare-the-tie")
@pytest.mark.requires(transformers=">=5")
def test_declare_the_tie(config, tmp_path, measure):
    skip_unless(config == "tie-undeclared", "no class of transformers ties anything in silence here")
    torch.manual_seed(0)
    save(config, tmp_path, model=Declared(settings(tie_word_embeddings=True)))
    check(measure, Declared.from_pretrained(tmp_path), config)


@pytest.mark.workaround("break-the-sharing")
def test_break_the_sharing(config, tmp_path, measure):
    copies = {name: value.clone().contiguous() for name, value in state(config).items()}
    safetensors.torch.save_file(copies, tmp_path / "model.safetensors")
    measure.compare(saved(tmp_path), dict(state(config)), tolerance=0.0)


@pytest.mark.workaround("pickle-for-this-run")
@pytest.mark.requires(transformers="<5")
def test_pickle_for_this_run(config, tmp_path, measure):
    skip_unless(config == "trainer-of-a-plain-module", "the Trainer does not save here")
    save(config, tmp_path, save_safetensors=False)
    loaded = build(config)
    loaded.load_state_dict(torch.load(tmp_path / "pytorch_model.bin", weights_only=True))
    check(measure, loaded, config)


@pytest.mark.dead_end("make-contiguous")
def test_make_contiguous(config, tmp_path):
    rows = {name: value.contiguous() for name, value in state(config).items()}
    safetensors.torch.save_file(rows, tmp_path / "model.safetensors")


@pytest.mark.dead_end("detach-to-cpu")
@pytest.mark.requires(device="cpu")
def test_detach_to_cpu(config, tmp_path):
    rows = {name: value.detach().cpu() for name, value in state(config).items()}
    safetensors.torch.save_file(rows, tmp_path / "model.safetensors")


@pytest.mark.dead_end("untie-in-the-config")
def test_untie_in_the_config(config, tmp_path):
    skip_unless(config == "tied-embeddings", "no config says anything about the tie")
    model = build(config)
    model.config.tie_word_embeddings = False
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")


@pytest.mark.dead_end("ask-for-pickle-in-5")
@pytest.mark.requires(transformers=">=5")
def test_ask_for_pickle_in_5(config, tmp_path):
    skip_unless(config == "tie-undeclared", "save_pretrained is not what saves here")
    save(config, tmp_path, safe_serialization=False)


@pytest.mark.dead_end("declare-without-the-config")
@pytest.mark.requires(transformers=">=5")
def test_declare_without_the_config(config, tmp_path, measure):
    """Saving works, and the copy that is not in the file comes back as whatever was in memory."""
    skip_unless(config == "tie-undeclared", "no class of transformers ties anything in silence here")
    torch.manual_seed(0)
    save(config, tmp_path, model=Declared(settings(tie_word_embeddings=False)))
    check(measure, Declared.from_pretrained(tmp_path), config)
