# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Two ranks that do not run the same collective, under the debug wrapper that compares before it runs.

Gradients are reduced by hand, one collective per tensor, as wrappers do it. The ranks differ by their batch, by code
for rank 0 only, or by an odd number of tokens. Every run checks the sums it gets.
"""

import pytest

pytestmark = pytest.mark.requires(torch=">=2.1")

PROGRAM = """
import datetime
import os

import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])
DEVICE = os.environ["KB_DEVICE"]


def text_grads(scale):
    return {"text": torch.full((4,), scale, device=DEVICE)}


def vision_grads(scale):
    return {"vision": torch.full((8,), scale, device=DEVICE)}


def reduce_all(grads):
    for name in sorted(grads):
        dist.all_reduce(grads[name])


def text_only_batch():
    # Rank 1 got a batch without images.
    grads = text_grads(1.0)
    if RANK == 0:
        grads.update(vision_grads(5.0))
    elif DUMMY_INPUTS:
        grads.update(vision_grads(0.0))
    reduce_all(grads)
    loss = torch.tensor([1.0 + RANK], device=DEVICE)
    dist.all_reduce(loss)
    assert loss.item() == 3.0
    assert grads["text"].eq(2.0).all()
    assert grads["vision"].eq(5.0).all()


def logged_on_rank_0():
    loss = torch.tensor([1.0 + RANK], device=DEVICE)
    if RANK == 0 or EVERY_RANK_REDUCES:
        dist.all_reduce(loss)
    if RANK == 0:
        assert loss.item() == 3.0
    weights = torch.full((4,), 7.0 if RANK == 0 else 0.0, device=DEVICE)
    dist.broadcast(weights, 0)
    assert weights.eq(7.0).all()


def uneven_split():
    tokens = torch.arange(7.0, device=DEVICE)
    mine = tokens.tensor_split(2)[RANK]
    if PADDED:
        mine = torch.nn.functional.pad(tokens, (0, -len(tokens) % 2)).chunk(2)[RANK]
    dist.all_reduce(mine)
    assert mine[:3].tolist() == [4.0, 6.0, 8.0]


def main():
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
    STEP()
    print("sums are right", flush=True)
    dist.barrier()
    dist.destroy_process_group()


main()
"""
DETAIL = {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}


def program(config, timeout=10, **fixes):
    """The step of a configuration; the fixes are off unless named."""
    values = {"DUMMY_INPUTS": False, "EVERY_RANK_REDUCES": False, "PADDED": False, **fixes}
    head = "".join(f"{name} = {value}\n" for name, value in {**values, "TIMEOUT": timeout}.items())
    return head + PROGRAM.replace("STEP()", f"{config.replace('-', '_')}()")


def run(run_script, code, env=DETAIL):
    printed = run_script(code, nproc=2, env=env)
    assert printed.count("sums are right") == 2, printed


def only_for(config, cause):
    if config != cause:
        pytest.skip(f"addresses another cause than {config}")


@pytest.fixture(params=["text-only-batch", "logged-on-rank-0", "uneven-split"])
def config(request):
    """Why the ranks differ."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run(run_script, program(config))


@pytest.mark.workaround("same-path-on-every-rank")
def test_same_path_on_every_rank(config, run_script):
    only_for(config, "text-only-batch")
    run(run_script, program(config, DUMMY_INPUTS=True))


@pytest.mark.workaround("collectives-outside-branches")
def test_collectives_outside_branches(config, run_script):
    only_for(config, "logged-on-rank-0")
    run(run_script, program(config, EVERY_RANK_REDUCES=True))


@pytest.mark.workaround("equal-shards")
def test_equal_shards(config, run_script):
    only_for(config, "uneven-split")
    run(run_script, program(config, PADDED=True))


@pytest.mark.workaround("name-the-call")
def test_name_the_call(config, run_script):
    with pytest.raises(Exception) as failure:
        run_script(program(config), nproc=2, env=DETAIL)
    printed = failure.value.output
    assert printed.count(f"in {config.replace('-', '_')}") >= 2
    assert printed.count("Collectives differ in the following aspects") >= 1
    assert printed.count("SequenceNumber=") >= 2


@pytest.mark.dead_end("debug-off")
def test_debug_off(config, run_script):
    run(run_script, program(config, timeout=3), env={})


@pytest.mark.dead_end("longer-timeout")
def test_longer_timeout(config, run_script):
    run(run_script, program(config, timeout=3600))
