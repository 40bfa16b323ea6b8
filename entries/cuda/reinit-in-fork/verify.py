# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "datasets"]
# ///
"""A forked child uses CUDA after its parent did. Only a build with CUDA and a card have this error.

The parent puts a tensor on the card, as training does. The children are workers of a DataLoader, of a pool, or of
`datasets.map`, and compute on the card too. Python 3.14 no longer forks by default.
"""

import pytest

pytestmark = pytest.mark.requires(torch=">=2.1", device="cuda", os="linux", python="<3.14")

PROGRAM = """
import multiprocessing
import os

import torch

DEVICE = os.environ["KB_DEVICE"]


def square(number):
    return torch.full((4,), float(number), device=IN_CHILD or DEVICE).square().cpu()


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, row):
        return square(row)


def loader_worker():
    weight = start_cuda()
    loader = torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=WORKERS, multiprocessing_context=CONTEXT)
    return sum((batch.to(DEVICE) * weight).sum().item() for batch in loader)


def pool_after_cuda():
    weight = None if CUDA_LATER else start_cuda()
    if not WORKERS:
        return sum((square(row).to(DEVICE) * weight).sum().item() for row in range(4))
    with multiprocessing.get_context(CONTEXT).Pool(WORKERS) as pool:
        weight = start_cuda() if weight is None else weight
        return sum((torch.tensor(row, device=DEVICE) * weight).sum().item() for row in pool.map(listed, range(4)))


def datasets_map():
    import datasets

    weight = start_cuda()
    rows = datasets.Dataset.from_dict({"row": list(range(4))})
    mapped = rows.map(column, num_proc=WORKERS or None)
    return sum((torch.tensor(row, device=DEVICE) * weight).sum().item() for row in mapped["squared"])


def listed(row):
    return square(row).tolist()


def column(row):
    return {"squared": listed(row["row"])}


def start_cuda():
    weight = torch.ones(4, device=DEVICE)
    if FREE_FIRST:
        del weight
        torch.cuda.empty_cache()
        return torch.ones(4)
    return weight


def main():
    SETTING
    assert CONFIG() == 4.0 * (0 + 1 + 4 + 9)
    print("sum is right")


if __name__ == "__main__":
    main()
"""
DEFAULTS = {
    "IN_CHILD": None,
    "WORKERS": 2,
    "CONTEXT": None,
    "CUDA_LATER": False,
    "FREE_FIRST": False,
}
SWALLOWED = """torch.multiprocessing.set_start_method("fork")  # a library did this at import
    try:
        torch.multiprocessing.set_start_method("spawn")
    except RuntimeError:
        pass"""


def run(run_script, config, setting="pass", **changes):
    """Run the program of a configuration, broken unless something is changed."""
    head = "".join(f"{name} = {value!r}\n" for name, value in {**DEFAULTS, **changes}.items())
    code = head + PROGRAM.replace("SETTING", setting).replace("CONFIG", config.replace("-", "_"))
    assert "sum is right" in run_script(code)


@pytest.fixture(
    params=[
        "loader-worker",
        "pool-after-cuda",
        pytest.param("datasets-map", marks=pytest.mark.requires(datasets=">=2.14")),
    ]
)
def config(request):
    """Whose children use the card."""
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run(run_script, config)


@pytest.mark.workaround("cpu-in-workers")
def test_cpu_in_workers(config, run_script):
    run(run_script, config, IN_CHILD="cpu")


@pytest.mark.workaround("spawn-context")
def test_spawn_context(config, run_script):
    if config == "datasets-map":
        pytest.skip("datasets makes its processes itself")
    run(run_script, config, CONTEXT="spawn")


@pytest.mark.workaround("set-start-method")
def test_set_start_method(config, run_script):
    module = "__import__('multiprocess')" if config == "datasets-map" else "torch.multiprocessing"
    run(run_script, config, setting=f'{module}.set_start_method("spawn", force=True)')


@pytest.mark.workaround("no-workers")
def test_no_workers(config, run_script):
    run(run_script, config, WORKERS=0)


@pytest.mark.workaround("cuda-later")
def test_cuda_later(config, run_script):
    if config != "pool-after-cuda":
        pytest.skip("these workers are made anew, long after CUDA was started")
    run(run_script, config, CUDA_LATER=True)


@pytest.mark.dead_end("spawn-for-another-module")
def test_spawn_for_another_module(config, run_script):
    if config != "datasets-map":
        pytest.skip("this module makes the processes here")
    run(run_script, config, setting='torch.multiprocessing.set_start_method("spawn", force=True)')


@pytest.mark.dead_end("swallowed-setting")
def test_swallowed_setting(config, run_script):
    if config == "datasets-map":
        pytest.skip("datasets has a module of its own for processes")
    run(run_script, config, setting=SWALLOWED)


@pytest.mark.dead_end("free-before-fork")
def test_free_before_fork(config, run_script):
    run(run_script, config, FREE_FIRST=True)
