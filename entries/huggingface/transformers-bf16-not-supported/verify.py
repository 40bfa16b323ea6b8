# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.0", "transformers>=4.30", "accelerate"]
# ///
"""bf16 is asked for where transformers finds no GPU that has it.

The program is one step of training, or one evaluation, of a tiny Llama. A fix has to end in the right numbers: the
update of that step, or that loss, as float64 gives them.
"""

import pytest
import torch
from transformers import Trainer, TrainingArguments

pytestmark = pytest.mark.requires(torch=">=2.0", transformers=">=4.30", accelerate=">=0.20")

LEARNING_RATE = 0.5
HALF, FULL = 0.03, 1e-4
"""Tolerances: bfloat16 and float16 keep 8 and 11 bits, float32 keeps 24."""
ROWS = [{"input_ids": torch.arange(9) * 3 + row, "labels": torch.arange(9) * 3 + row} for row in range(4)]

ARGUMENTS = """
from transformers import TrainingArguments

print(TrainingArguments(output_dir="out", bf16=True, report_to=[]).device)
"""


@pytest.fixture(
    params=[
        pytest.param("no-gpu-training", marks=pytest.mark.requires(device="cpu", transformers=">=4.52")),
        pytest.param("no-gpu-evaluation", marks=pytest.mark.requires(device="cpu", transformers=">=4.52")),
        pytest.param("gpu-hidden", marks=pytest.mark.requires(device="cuda", transformers=">=4.52")),
        pytest.param("card-before-ampere", marks=pytest.mark.requires(device="cuda", torch="<2.3")),
    ]
)
def config(request):
    if request.param.startswith("no-gpu") and torch.cuda.is_available():
        pytest.skip("a GPU is visible; CUDA_VISIBLE_DEVICES= hides it")
    if request.param == "card-before-ampere" and torch.cuda.get_device_capability() >= (8, 0):
        pytest.skip("the card has bfloat16")
    return request.param


def only_for(config, *names):
    if config not in names:
        pytest.skip(f"is not about {config}")


def flag(config, dtype="bf16"):
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


@pytest.mark.workaround("say-use-cpu")
def test_say_use_cpu(config, measure, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    check(config, measure, tiny_llama, tmp_path, HALF, use_cpu=True, **flag(config))


@pytest.mark.workaround("float32")
def test_float32(config, measure, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation", "card-before-ampere")
    check(config, measure, tiny_llama, tmp_path, FULL, bf16=False, fp16=False)


@pytest.mark.workaround("use-fp16")
def test_use_fp16(config, measure, tiny_llama, tmp_path):
    only_for(config, "card-before-ampere")
    check(config, measure, tiny_llama, tmp_path, HALF, bf16=False, fp16=True)


@pytest.mark.dead_end("deepspeed-json-only")
def test_deepspeed_json_only(config, tmp_path):
    """The json's own values do not matter: the arguments are checked before DeepSpeed is even imported."""
    only_for(config, "no-gpu-training", "card-before-ampere")
    json = {"bf16": {"enabled": False}, "fp16": {"enabled": True}, "train_micro_batch_size_per_gpu": "auto"}
    arguments(tmp_path, bf16=True, deepspeed=json)


@pytest.mark.dead_end("fp16-without-a-gpu")
def test_fp16_without_a_gpu(config, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training")
    model, seen = tiny_llama(), []
    model.lm_head.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    work(config, arguments(tmp_path, fp16=True), model)
    assert set(seen) == {torch.float16}, f"asked for fp16, computed in {seen[0]} on {model.device}"


@pytest.mark.dead_end("cpu-by-environment")
def test_cpu_by_environment(config, monkeypatch, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    work(config, arguments(tmp_path, **flag(config)), tiny_llama())


@pytest.mark.dead_end("model-in-bf16")
def test_model_in_bf16(config, tiny_llama, tmp_path):
    only_for(config, "no-gpu-training", "no-gpu-evaluation")
    model = tiny_llama(dtype=torch.bfloat16)
    work(config, arguments(tmp_path, **flag(config)), model)
