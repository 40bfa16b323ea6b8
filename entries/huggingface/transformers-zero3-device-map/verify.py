# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "transformers>=4.56", "accelerate>=1.0", "deepspeed>=0.15"]
# ///
"""A model is loaded with a device_map while ZeRO-3 is in force.

One process, a tiny Llama and the real DeepSpeed, which also divides parameters on a CPU (among one rank). In
`own-config` the script announces ZeRO-3 itself, in `training-arguments` transformers does, when the arguments are
made. A fix is right if the parameters end up divided where that was wanted, and if a training step through DeepSpeed's
engine gives the loss of plain torch and lowers it.
"""

import importlib
import os

import pytest
import torch
import torch.distributed as dist
import transformers
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

pytestmark = pytest.mark.requires(torch=">=2.4", transformers=">=4.56", accelerate=">=1.0", deepspeed=">=0.15")

TOLERANCE = 1e-3


@pytest.fixture(params=["own-config", "training-arguments"])
def config(request):
    return request.param


@pytest.fixture(autouse=True)
def one_rank(device, tmp_path, monkeypatch):
    """What a launcher would set for a single process, without a port."""
    if device == "cpu":
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        # A shortcut through shared memory, which would have to be compiled first. One rank has nobody to talk to.
        monkeypatch.setattr(importlib.import_module("deepspeed.comm.torch"), "build_shm_op", lambda: None)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    backend = "gloo" if device == "cpu" else "nccl"
    # Kept for the life of the process: DeepSpeed remembers its first group.
    if not dist.is_initialized():
        dist.init_process_group(backend, init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)


def settings(stage, **zero):
    return {
        "train_micro_batch_size_per_gpu": 2,
        "train_batch_size": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, **zero},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }


def announce(config, stage, device, folder, **zero):
    """Puts a ZeRO stage in force for as long as the returned object lives."""
    if config == "own-config":
        return HfDeepSpeedConfig(settings(stage, **zero))
    extra = {"use_cpu": True} if device == "cpu" else {}
    extra |= {"per_device_train_batch_size": 2, "learning_rate": 1e-2}
    return transformers.TrainingArguments(str(folder / "out"), deepspeed=settings(stage, **zero), **extra)


def build():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, num_key_value_heads=4, **shape))


def checkpoint(folder):
    build().save_pretrained(folder / "model")
    return folder / "model"


def load(path, **extra):
    return transformers.AutoModelForCausalLM.from_pretrained(path, **extra)


def check(measure, model, stage, device):
    import deepspeed

    divided = {hasattr(parameter, "ds_id") and parameter.numel() == 0 for parameter in model.parameters()}
    assert divided == {stage == 3}
    engine, *_ = deepspeed.initialize(model=model, config=settings(stage))
    ids = torch.arange(3, 27).reshape(2, 12)
    losses = []
    for _ in range(2):
        loss = engine(input_ids=ids.to(engine.device), labels=ids.to(engine.device)).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    measure.compare(losses[0], build().double()(input_ids=ids, labels=ids).loss.item(), TOLERANCE)
    assert losses[1] < losses[0]


@pytest.mark.reproduces
def test_reproduces(config, device, measure, tmp_path):
    path, active = checkpoint(tmp_path), announce(config, 3, device, tmp_path)
    try:
        load(path, device_map="auto")
    finally:
        measure.recovers(lambda: load(path))
        del active


@pytest.mark.workaround("no-device-map")
def test_no_device_map(config, device, measure, tmp_path):
    path, active = checkpoint(tmp_path), announce(config, 3, device, tmp_path)
    extra = {} if is_deepspeed_zero3_enabled() else {"device_map": "auto"}
    check(measure, load(path, **extra), 3, device)
    del active


@pytest.mark.workaround("zero-2")
def test_zero_2(config, device, measure, tmp_path):
    path, active = checkpoint(tmp_path), announce(config, 2, device, tmp_path)
    place = int(os.environ["LOCAL_RANK"]) if device.startswith("cuda") else "cpu"
    check(measure, load(path, device_map={"": place}), 2, device)
    del active


@pytest.mark.dead_end("other-device-map")
def test_other_device_map(config, device, tmp_path):
    path, active = checkpoint(tmp_path), announce(config, 3, device, tmp_path)
    place = int(os.environ["LOCAL_RANK"]) if device.startswith("cuda") else "cpu"
    load(path, device_map={"": place})
    del active


@pytest.mark.dead_end("low-cpu-mem-usage-false")
def test_low_cpu_mem_usage_false(config, device, tmp_path):
    path, active = checkpoint(tmp_path), announce(config, 3, device, tmp_path)
    load(path, device_map="auto", low_cpu_mem_usage=False)
    del active


@pytest.mark.dead_end("offload-in-the-deepspeed-config")
def test_offload_in_the_deepspeed_config(config, device, tmp_path):
    path, active = checkpoint(tmp_path), announce(config, 3, device, tmp_path, offload_param={"device": "cpu"})
    load(path, device_map="auto")
    del active
