# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.0", "transformers>=4.30", "accelerate"]
# ///
"""fp16 is asked for where torch sees no GPU, with a transformers that still checks it (before 4.42).

The program is one step of training, or one evaluation, of a tiny Llama. A fix has to end in the right numbers: the
update of that step, or that loss, as float64 gives them.
"""

import site
import sys
from importlib import metadata

import pytest
import torch
from transformers import Trainer, TrainingArguments

pytestmark = pytest.mark.requires(torch=">=2.0", transformers=">=4.30,<4.42", accelerate=">=0.20")

LEARNING_RATE = 0.5
HALF, FULL = 0.03, 1e-4
"""Tolerances: bfloat16 keeps 8 bits, float32 keeps 24."""
ROWS = [{"input_ids": torch.arange(9) * 3 + row, "labels": torch.arange(9) * 3 + row} for row in range(4)]

ARGUMENTS = """
from transformers import TrainingArguments

print(TrainingArguments(output_dir="out", fp16=True, report_to=[]).device)
"""
NEWER = """
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

print("transformers", transformers.__version__)
shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
model = BertForSequenceClassification(BertConfig(**shape))
model.classifier.register_forward_hook(lambda *call: print("computed in", call[-1].dtype))
rows = [{"input_ids": torch.arange(5) + row, "labels": row % 2} for row in range(4)]
args = TrainingArguments(output_dir="out", fp16=True, max_steps=1, save_strategy="no", report_to=[])
Trainer(model=model, args=args, train_dataset=rows).train()
"""


@pytest.fixture(
    params=[
        pytest.param("no-gpu-training", marks=pytest.mark.requires(device="cpu")),
        pytest.param("no-gpu-evaluation", marks=pytest.mark.requires(device="cpu")),
        pytest.param("gpu-hidden", marks=pytest.mark.requires(device="cuda")),
    ]
)
def config(request):
    if request.param.startswith("no-gpu") and torch.cuda.is_available():
        pytest.skip("a GPU is visible; CUDA_VISIBLE_DEVICES= hides it")
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def flag(config, dtype="fp16"):
    """What the script asks for: half precision in training, or in evaluation."""
    return {f"{dtype}_full_eval" if config.endswith("evaluation") else dtype: True}


def arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder),
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        max_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options,
    )


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def work(config, args, model):
    """The change of the weights in one step, or the loss of an evaluation."""
    trainer = Trainer(model=model, args=args, train_dataset=ROWS, eval_dataset=ROWS)
    if config.endswith("evaluation"):
        return trainer.evaluate()["eval_loss"]
    before = weights(model)
    trainer.train()
    return weights(model) - before


def reference(config, model):
    """The same in float64."""
    ids = torch.stack([row["input_ids"] for row in ROWS])
    loss = model(input_ids=ids, labels=ids).loss
    if config.endswith("evaluation"):
        return loss.item()
    loss.backward()
    return torch.cat([-LEARNING_RATE * p.grad.flatten() for p in model.parameters()])


def check(config, measure, tiny_llama, folder, tolerance, **options):
    """Does the work on a fresh model each time and compares the last result."""
    result = measure(lambda: work(config, arguments(folder, **options), tiny_llama()))
    measure.compare(result, reference(config, tiny_llama(dtype=torch.float64)), tolerance)


def newer_release():
    """The folder of another transformers on `sys.path`, one that no longer checks."""
    for folder in [*sys.path, *site.getsitepackages()]:
        found = [d.version for d in metadata.distributions(name="transformers", path=[folder])]
        if found and tuple(map(int, found[0].split(".")[:2])) >= (4, 42):
            return folder
    pytest.skip("needs a second transformers, 4.42 or newer, beside this one")


@pytest.mark.reproduces
def test_reproduces(config, measure, run_script, tiny_llama, tmp_path):
    if config == "gpu-hidden":
        run_script(ARGUMENTS, env={"CUDA_VISIBLE_DEVICES": ""})
    try:
        work(config, arguments(tmp_path, **flag(config)), tiny_llama())
    finally:
        measure.recovers(lambda: arguments(tmp_path))


@pytest.mark.workaround("make-the-gpu-visible")
def test_make_the_gpu_visible(config, run_script):
    only_for(config, "gpu-hidden")
    assert "cuda" in run_script(ARGUMENTS)


@pytest.mark.workaround("fp16-off")
def test_fp16_off(config, measure, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    check(config, measure, tiny_llama, tmp_path, FULL, fp16=False, use_cpu=True)


@pytest.mark.workaround("bf16-on-the-cpu")
def test_bf16_on_the_cpu(config, measure, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    check(config, measure, tiny_llama, tmp_path, HALF, use_cpu=True, **flag(config, "bf16"))


@pytest.mark.dead_end("use-cpu-and-fp16")
def test_use_cpu_and_fp16(config, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    work(config, arguments(tmp_path, use_cpu=True, **flag(config)), tiny_llama())


@pytest.mark.dead_end("cpu-amp-backend")
def test_cpu_amp_backend(config, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    work(config, arguments(tmp_path, half_precision_backend="cpu_amp", **flag(config)), tiny_llama())


@pytest.mark.dead_end("model-in-fp16")
def test_model_in_fp16(config, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    model = tiny_llama(dtype=torch.float16)
    work(config, arguments(tmp_path, **flag(config)), model)


@pytest.mark.dead_end("only-turn-fp16-off")
def test_only_turn_fp16_off(config, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training")
    model = tiny_llama()
    work(config, arguments(tmp_path, fp16=False), model)
    assert model.device.type == "cuda", f"a GPU was wanted, and the training ran on the {model.device}"


@pytest.mark.dead_end("upgrade-transformers")
def test_upgrade_transformers(config, run_script):
    only_for(config, "no-gpu-training")
    printed = run_script(NEWER, env={"PYTHONPATH": newer_release()})
    assert "computed in torch.float16" in printed, "fp16 was wanted: " + printed[printed.index("computed in") :][:60]
