# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Functions without an importable name that have to be pickled.

Each configuration is a small program of its own, started afresh, since spawned processes import the main module again.
`lambda-collate` gives a lambda to a DataLoader, `lambda-in-dataset` keeps one in a dataset; `local-target` starts
processes that run a function defined inside another. The workers are spawned, as they are on Windows and macOS.
`whole-model` saves a model object that holds a lambda, with no process involved.
"""

import pytest
import torch

pytestmark = [pytest.mark.requires(torch=">=2.1"), pytest.mark.timeout(120)]

LOADERS, PROCESSES = ("lambda-collate", "lambda-in-dataset"), ("lambda-collate", "lambda-in-dataset", "local-target")
TOLERANCE = 1e-6


@pytest.fixture(params=[*PROCESSES, "whole-model"])
def config(request):
    """Who has to pickle what."""
    return request.param


HEAD = """
import functools, os, sys, torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, Dataset

OUT = {out!r}
VALUES = torch.arange(24, dtype=torch.float32).reshape(12, 2)

def scaled_sum(samples, factor):
    return torch.stack(samples) * factor + 1

def scale(value, factor):
    return value * factor + 1

class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, value):
        return scale(value, self.factor)

class Values(Dataset):
    def __init__(self, transform=None, factor=3):
        self.transform = transform or (lambda value: value * factor + 1)

    def __len__(self):
        return len(VALUES)

    def __getitem__(self, index):
        return self.transform(VALUES[index])

def read(loader):
    torch.save(torch.cat(list(loader)), OUT)

def part(rank, factor, folder):
    torch.save(VALUES[rank::2] * factor + 1, os.path.join(folder, "part%d.pt" % rank))

def collect(folder):
    parts = [torch.load(os.path.join(folder, "part%d.pt" % rank)) for rank in range(2)]
    torch.save(torch.stack(parts, dim=1).flatten(0, 1), OUT)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.activation = nn.Linear(2, 2), lambda values: values * 3 + 1

    def forward(self, values):
        return self.activation(self.linear(values))

def main():
{body}

{start}
"""
PLAIN, GUARDED = "main()", 'if __name__ == "__main__":\n    main()'
BROKEN = {
    "lambda-collate": "read(DataLoader(VALUES, 4, num_workers=2, {context}collate_fn={collate}))",
    "lambda-in-dataset": "read(DataLoader(Values(), 4, num_workers=2{context}))",
    "local-target": """
folder = os.path.dirname(OUT)
def work(rank):
    part(rank, 3, folder)
mp.spawn(work, nprocs=2)
collect(folder)
""",
    "whole-model": "torch.save(Model(), OUT)",
}
LAMBDA = "lambda samples: scaled_sum(samples, 3)"


def body(config, spawn=True, collate=LAMBDA):
    lines = BROKEN[config]
    if config == "lambda-collate":
        return lines.format(collate=collate, context='multiprocessing_context="spawn", ' if spawn else "")
    return lines.replace("{context}", ', multiprocessing_context="spawn"' if spawn else "")


@pytest.fixture
def program(run_script, tmp_path):
    """Runs a program with this body, and gives what it saved."""

    def run(lines, start=GUARDED, before=""):
        indented = "\n".join(f"    {line}" for line in lines.strip().splitlines())
        out = tmp_path / "out.pt"
        run_script(HEAD.format(out=str(out), body=indented, start=before + start), timeout=90)
        return torch.load(out, weights_only=True)

    return run


def close(measure, result):
    values = torch.arange(24, dtype=torch.float64).reshape(12, 2)
    measure.compare(result, values * 3 + 1, tolerance=TOLERANCE)


def only_for(config, *causes):
    if config not in causes:
        pytest.skip(f"concerns another cause than {config}")


@pytest.mark.reproduces
def test_reproduces(config, program):
    program(body(config), PLAIN)


@pytest.mark.workaround("function-of-the-module")
def test_function_of_the_module(config, program, measure):
    only_for(config, *PROCESSES)
    fixed = {
        "lambda-collate": body(config, collate="functools.partial(scaled_sum, factor=3)"),
        "lambda-in-dataset": body(config).replace("Values()", "Values(functools.partial(scale, factor=3))"),
        "local-target": """
folder = os.path.dirname(OUT)
mp.spawn(part, args=(3, folder), nprocs=2)
collect(folder)
""",
    }
    close(measure, program(fixed[config]))


@pytest.mark.workaround("callable-class")
def test_callable_class(config, program, measure):
    only_for(config, "lambda-in-dataset")
    close(measure, program(body(config).replace("Values()", "Values(Scale(3))")))


@pytest.mark.workaround("no-workers")
def test_no_workers(config, program, measure):
    only_for(config, *LOADERS)
    close(measure, program(body(config, spawn=False).replace("num_workers=2", "num_workers=0")))


@pytest.mark.workaround("fork")
def test_fork(config, program, measure):
    only_for(config, *LOADERS)
    close(measure, program(body(config).replace('"spawn"', '"fork"')))


@pytest.mark.workaround("save-the-state-dict")
def test_save_the_state_dict(config, program, measure):
    only_for(config, "whole-model")
    state = program("torch.save(Model().state_dict(), OUT)")
    torch.manual_seed(0)
    wanted = torch.nn.Linear(2, 2)
    loaded = torch.nn.Linear(2, 2)
    loaded.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in state.items()})
    values = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    measure.compare((loaded(values) * 3 + 1).detach(), (wanted.double()(values.double()) * 3 + 1).detach(), TOLERANCE)


@pytest.mark.dead_end("name-the-lambda")
def test_name_the_lambda(config, program):
    only_for(config, "lambda-collate")
    program(body(config, collate="collate"), before=f"collate = {LAMBDA}\n\n")


@pytest.mark.dead_end("def-in-the-function")
def test_def_in_the_function(config, program):
    only_for(config, "lambda-collate")
    nested = "def collate(samples):\n    return scaled_sum(samples, 3)\n"
    program(nested + body(config, collate="collate"))


@pytest.mark.dead_end("main-guard")
def test_main_guard(config, program):
    program(body(config), GUARDED)


@pytest.mark.dead_end("forkserver")
def test_forkserver(config, program):
    only_for(config, *LOADERS)
    program(body(config).replace('"spawn"', '"forkserver"'))
