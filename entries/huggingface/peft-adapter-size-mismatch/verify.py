# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "transformers>=4.40", "peft>=0.14", "safetensors"]
# ///
"""An adapter whose matrices do not fit the model they are loaded into.

The models are tiny random Llamas, saved to disk like the real ones. `other-base` is a wider model than the adapter was
trained on, `other-rank` a LoraConfig written by hand, `empty-shards` an adapter that two FSDP processes saved without
gathering it (ZeRO-3 leaves the same empty tensors), `added-tokens` one trained after the vocabulary grew. A fix is
right if the loaded model predicts what the trained one did.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.40", peft=">=0.14")

ADDED = 3
TOLERANCE = 1e-4


@pytest.fixture(
    params=[
        "other-base",
        "other-rank",
        pytest.param("empty-shards", marks=pytest.mark.requires(os="linux")),
        "added-tokens",
    ]
)
def config(request):
    return request.param


def base_folder(folder, width=32):
    """A saved base model; the folder's name tells its width."""
    target = folder / f"base-{width}"
    if not target.exists():
        torch.manual_seed(0)
        shape = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
        LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=width, **shape)).save_pretrained(target)
    return target


def load_base(folder, width=32):
    return AutoModelForCausalLM.from_pretrained(base_folder(folder, width))


def trained(config, folder):
    """A model with an adapter whose weights are not those of a fresh one."""
    base = load_base(folder)
    saved = None
    if config == "added-tokens":
        base.resize_token_embeddings(64 + ADDED, mean_resizing=False)
        saved = ["embed_tokens", "lm_head"]
    torch.manual_seed(1)
    names = ["q_proj", "v_proj"]
    settings = LoraConfig(r=4, lora_alpha=16, target_modules=names, modules_to_save=saved, task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5 if "lora_" in name else 0.02)
    return model


def save_from_fsdp(rank, gather, folder):
    """What one of two processes does: shard the model, take part in saving it."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    model = trained("empty-shards", folder)
    sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    # The adapter's tensors hold this process's share until somebody asks for all of them.
    if gather:
        with FullyShardedDataParallel.summon_full_params(sharded, writeback=False):
            model.save_pretrained(folder / "adapter", is_main_process=rank == 0)
    else:
        model.save_pretrained(folder / "adapter", is_main_process=rank == 0)
    dist.barrier()
    dist.destroy_process_group()


def saved_adapter(config, folder, gather=False):
    """The folder of the adapter, and what the trained model predicts."""
    model = trained(config, folder)
    if config == "empty-shards":
        mp.start_processes(save_from_fsdp, (gather, folder), nprocs=2, start_method="fork")
    else:
        model.save_pretrained(folder / "adapter")
    return folder / "adapter", predict(model, config, "cpu")


@torch.no_grad()
def predict(model, config, device):
    ids = torch.arange(3, 15)
    if config == "added-tokens":
        ids[-ADDED:] = torch.arange(64, 64 + ADDED)
    return model.to(device).eval()(input_ids=ids[None].to(device)).logits.cpu()


def load_by_hand(base, adapter, **settings):
    """The LoraConfig is written down again instead of read from the file."""
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings))
    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
    return model


@pytest.mark.reproduces
def test_reproduces(config, measure, tmp_path):
    adapter, _ = saved_adapter(config, tmp_path)
    base = load_base(tmp_path, width=64 if config == "other-base" else 32)
    try:
        if config == "other-rank":
            load_by_hand(base, adapter, r=8)
        else:
            PeftModel.from_pretrained(base, adapter)
    finally:
        trained(config, tmp_path).save_pretrained(tmp_path / "whole")
        measure.recovers(lambda: PeftModel.from_pretrained(load_base_for(config, tmp_path), tmp_path / "whole"))


def load_base_for(config, folder):
    base = load_base(folder)
    if config == "added-tokens":
        base.resize_token_embeddings(64 + ADDED)
    return base


@pytest.mark.workaround("load-the-right-base")
def test_load_the_right_base(config, device, measure, tmp_path):
    if config != "other-base":
        pytest.skip("the base model is the right one here")
    adapter, wanted = saved_adapter(config, tmp_path)
    name = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), adapter)
    measure.compare(predict(model, config, device), wanted, TOLERANCE)


@pytest.mark.workaround("let-peft-read-the-config")
def test_let_peft_read_the_config(config, device, measure, tmp_path):
    if config != "other-rank":
        pytest.skip("the configuration is read from the file here")
    adapter, wanted = saved_adapter(config, tmp_path)
    model = PeftModel.from_pretrained(load_base(tmp_path), adapter)
    measure.compare(predict(model, config, device), wanted, TOLERANCE)


@pytest.mark.workaround("gather-when-saving")
def test_gather_when_saving(config, device, measure, tmp_path):
    if config != "empty-shards":
        pytest.skip("the adapter was saved whole here")
    adapter, wanted = saved_adapter(config, tmp_path, gather=True)
    model = PeftModel.from_pretrained(load_base(tmp_path), adapter)
    measure.compare(predict(model, config, device), wanted, TOLERANCE)


@pytest.mark.workaround("resize-embeddings")
def test_resize_embeddings(config, device, measure, tmp_path):
    if config != "added-tokens":
        pytest.skip("the vocabulary is the same here")
    adapter, wanted = saved_adapter(config, tmp_path)
    base = load_base(tmp_path)
    base.resize_token_embeddings(64 + ADDED)
    measure.compare(predict(PeftModel.from_pretrained(base, adapter), config, device), wanted, TOLERANCE)


@pytest.mark.dead_end("strict-false")
def test_strict_false(config, tmp_path):
    adapter, _ = saved_adapter(config, tmp_path)
    settings = PeftConfig.from_pretrained(adapter)
    if config == "other-rank":
        settings.r = 8
    model = get_peft_model(load_base(tmp_path, width=64 if config == "other-base" else 32), settings)
    tensors = load_file(adapter / "adapter_model.safetensors")
    where = {"lora_A.weight": "lora_A.default.weight", "lora_B.weight": "lora_B.default.weight"}
    where |= {f"{name}.weight": f"{name}.modules_to_save.default.weight" for name in ("embed_tokens", "lm_head")}
    for old, new in where.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=False)


@pytest.mark.dead_end("ignore-mismatched-sizes")
def test_ignore_mismatched_sizes(config, device, measure, tmp_path):
    adapter, wanted = saved_adapter(config, tmp_path)
    base = load_base(tmp_path, width=64 if config == "other-base" else 32)
    if config == "other-rank":
        model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        tensors = load_file(adapter / "adapter_model.safetensors")
        set_peft_model_state_dict(model, tensors, ignore_mismatched_sizes=True)
    else:
        model = PeftModel.from_pretrained(base, adapter, ignore_mismatched_sizes=True)
    predicted = model.cpu().eval()(input_ids=torch.arange(3, 15)[None]).logits.detach()
    measure.compare(predicted, wanted[..., : predicted.shape[-1]], TOLERANCE)


@pytest.mark.dead_end("correct-the-rank-only")
def test_correct_the_rank_only(config, device, measure, tmp_path):
    if config != "other-rank":
        pytest.skip("the configuration is read from the file here")
    adapter, wanted = saved_adapter(config, tmp_path)
    model = load_by_hand(load_base(tmp_path), adapter, r=4)
    measure.compare(predict(model, config, device), wanted, TOLERANCE)
