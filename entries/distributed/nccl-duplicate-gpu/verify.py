# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Two ranks of one NCCL group on one GPU. NCCL only, so every arm needs a GPU, and those that spread ranks need two."""

import pytest
import torch

pytestmark = [pytest.mark.requires(torch=">=2.1", device="cuda", gpus=1), pytest.mark.timeout(120)]

PROGRAM = """
import datetime
import os

import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])
DEVICE = torch.device(BACKEND_DEVICE)


def main():
    if DEVICE.type == "cuda":
        torch.cuda.set_device(DEVICE)
    dist.init_process_group(BACKEND, timeout=datetime.timedelta(seconds=30))
    value = torch.full((4,), 1.0 + RANK, device=DEVICE)
    dist.all_reduce(value)
    world = dist.get_world_size()
    assert value.tolist() == [world * (world + 1) / 2] * 4
    print("sum is right", flush=True)
    dist.destroy_process_group()


main()
"""
TWO = pytest.mark.requires(gpus=2)


def program(device="cuda:0", backend="nccl"):
    """Every rank on this device; `cuda:{RANK}` gives each its own."""
    chosen = "f'cuda:{RANK}'" if device == "cuda:{RANK}" else repr(device)
    return PROGRAM.replace("BACKEND_DEVICE", chosen).replace("BACKEND", repr(backend))


def run(run_script, code, nproc=2, env=None):
    printed = run_script(code, nproc=nproc, env=env, timeout=90)
    assert printed.count("sum is right") == nproc, printed


@pytest.fixture(params=["device-not-set", "more-ranks-than-gpus"])
def config(request):
    """Why two ranks share a GPU: nobody chose one per rank, or only one is visible."""
    return request.param


def visible(config):
    return {"CUDA_VISIBLE_DEVICES": "0"} if config == "more-ranks-than-gpus" else None


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run(run_script, program(), env=visible(config))


@pytest.mark.workaround("set-device")
@TWO
def test_set_device(config, run_script):
    if config != "device-not-set":
        pytest.skip("there is no other device to choose")
    run(run_script, program("cuda:{RANK}"))


@pytest.mark.workaround("as-many-ranks-as-gpus")
def test_as_many_ranks_as_gpus(config, run_script):
    if config != "more-ranks-than-gpus":
        pytest.skip("the GPUs are enough, the choice is missing")
    run(run_script, program(), nproc=1, env=visible(config))


@pytest.mark.workaround("visible-devices")
@TWO
def test_visible_devices(config, run_script):
    if config != "more-ranks-than-gpus":
        pytest.skip("all GPUs are visible")
    run(run_script, program("cuda:{RANK}"), env={"CUDA_VISIBLE_DEVICES": "0,1"})


@pytest.mark.workaround("gloo-for-tests")
def test_gloo_for_tests(config, run_script):
    run(run_script, program(backend="gloo"), env=visible(config))


@pytest.mark.workaround("multi-rank-gpu")
def test_multi_rank_gpu(config, run_script):
    if torch.cuda.nccl.version() < (2, 30):
        pytest.skip("this NCCL does not know the variable")
    run(run_script, program(), env={**(visible(config) or {}), "NCCL_MULTI_RANK_GPU_ENABLE": "1"})


@pytest.mark.workaround("warnings-of-nccl")
def test_warnings_of_nccl(config, run_script):
    with pytest.raises(Exception) as failure:
        run_script(program(), nproc=2, env={**(visible(config) or {}), "NCCL_DEBUG": "WARN"}, timeout=90)
    assert "NCCL WARN" in failure.value.output


@pytest.mark.dead_end("transport-switches")
def test_transport_switches(config, run_script):
    switches = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}
    run(run_script, program(), env={**(visible(config) or {}), **switches})


@pytest.mark.dead_end("launch-blocking")
def test_launch_blocking(config, run_script):
    run(run_script, program(), env={**(visible(config) or {}), "CUDA_LAUNCH_BLOCKING": "1"})
