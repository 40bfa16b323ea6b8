# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.30", "accelerate"]
# ///
"""tf32 is asked for where there is no Ampere card: one step of training of a tiny Llama.

A fix passes if the weights change by what float64 gives.
"""

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.30", accelerate=">=0.20")

LEARNING_RATE = 0.5
HALF, FULL = 0.03, 1e-4
"""Tolerances: float16 and bfloat16 keep 11 and 8 bits, float32 keeps 24."""
ROWS = [{"input_ids": torch.arange(9) * 3 + row, "labels": torch.arange(9) * 3 + row} for row in range(4)]

ARGUMENTS = """
import torch
from transformers import TrainingArguments

TrainingArguments(output_dir="out", tf32=True, report_to=[])
print("allowed:", torch.backends.cuda.matmul.allow_tf32, torch.cuda.get_device_name())
"""


@pytest.fixture(
    params=[
        pytest.param("no-gpu", marks=pytest.mark.requires(device="cpu")),
        pytest.param("no-gpu-command-line", marks=pytest.mark.requires(device="cpu")),
        pytest.param("gpu-hidden", marks=pytest.mark.requires(device="cuda", capability=(8, 0))),
        pytest.param("card-before-ampere", marks=pytest.mark.requires(device="cuda")),
    ]
)
def config(request):
    if request.param.startswith("no-gpu") and torch.cuda.is_available():
        pytest.skip("a GPU is visible; CUDA_VISIBLE_DEVICES= hides it")
    if request.param == "card-before-ampere" and torch.cuda.get_device_capability() >= (8, 0):
        pytest.skip("the card has tf32")
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def arguments(config, folder, **options):
    fixed = {
        "output_dir": str(folder),
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **options,
    }
    if config != "no-gpu-command-line":
        return TrainingArguments(**fixed)
    words = [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
    return HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words)[0]


def weights(model):
    return torch.cat([p.detach().double().flatten().cpu() for p in model.parameters()])


def update(args, model):
    """The change of the weights in one step."""
    before = weights(model)
    Trainer(model=model, args=args, train_dataset=ROWS).train()
    return weights(model) - before


def reference(model):
    """The same in float64."""
    ids = torch.stack([row["input_ids"] for row in ROWS])
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([-LEARNING_RATE * p.grad.flatten() for p in model.parameters()])


def check(config, measure, tiny_llama, folder, tolerance=FULL, **options):
    result = measure(lambda: update(arguments(config, folder, **options), tiny_llama()))
    measure.compare(result, reference(tiny_llama(dtype=torch.float64)), tolerance)


@pytest.mark.reproduces
def test_reproduces(config, measure, run_script, tmp_path):
    if config == "gpu-hidden":
        run_script(ARGUMENTS, env={"CUDA_VISIBLE_DEVICES": ""})
    try:
        arguments(config, tmp_path, tf32=True)
    finally:
        measure.recovers(lambda: arguments(config, tmp_path))


@pytest.mark.workaround("tf32-off")
def test_tf32_off(config, measure, tiny_llama, tmp_path):
    only_for(config, "no-gpu", "no-gpu-command-line", "card-before-ampere")
    check(config, measure, tiny_llama, tmp_path, tf32=False)


@pytest.mark.workaround("make-gpu-visible")
def test_make_gpu_visible(config, run_script):
    only_for(config, "gpu-hidden")
    assert "allowed: True" in run_script(ARGUMENTS)


@pytest.mark.workaround("fp16-instead")
def test_fp16_instead(config, measure, tiny_llama, tmp_path):
    only_for(config, "card-before-ampere")
    check(config, measure, tiny_llama, tmp_path, tolerance=HALF, fp16=True)


@pytest.mark.workaround("bf16-on-the-cpu")
def test_bf16_on_the_cpu(config, measure, tiny_llama, tmp_path):
    only_for(config, "no-gpu", "no-gpu-command-line")
    check(config, measure, tiny_llama, tmp_path, tolerance=HALF, bf16=True, use_cpu=True)


@pytest.mark.dead_end("allow-tf32-in-torch")
def test_allow_tf32_in_torch(config, monkeypatch, tmp_path):
    only_for(config, "no-gpu", "no-gpu-command-line", "card-before-ampere")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    arguments(config, tmp_path, tf32=True)


@pytest.mark.dead_end("use-cpu")
def test_use_cpu(config, tmp_path):
    only_for(config, "no-gpu", "no-gpu-command-line")
    arguments(config, tmp_path, tf32=True, use_cpu=True)


@pytest.mark.dead_end("bf16-off-only")
def test_bf16_off_only(config, tmp_path):
    only_for(config, "no-gpu", "no-gpu-command-line", "card-before-ampere")
    arguments(config, tmp_path, bf16=False, fp16=False, tf32=True)
