# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.38", "accelerate>=1.1", "bitsandbytes>=0.46.1"]
# ///
"""4-bit loading where bitsandbytes or accelerate is absent, and where a release before 4.41 sees no GPU.

An environment is a folder of links to the installed packages, some left out, and a process that takes its packages
from there alone. Installing is adding the links, which is what pip's work comes to for the program.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.requires(
    torch=">=2.1", transformers=">=4.38", accelerate=">=1.1", bitsandbytes=">=0.46.1", os=("linux", "macos")
)

CURRENT = pytest.mark.requires(transformers=">=4.56")

ROUNDING = 0.3
"""Largest error of a logit, relative to the largest logit, that rounding the weights to 4 bits may cause."""


@pytest.fixture(
    params=[
        pytest.param("bitsandbytes-absent", marks=CURRENT),
        pytest.param("accelerate-absent", marks=CURRENT),
        pytest.param("no-gpu-seen", marks=pytest.mark.requires(transformers="<4.41", device="cpu")),
    ]
)
def config(request):
    return request.param


@pytest.fixture
def environment(config, tmp_path):
    """The package folder of the program's interpreter."""
    folder = tmp_path / "environment"
    folder.mkdir()
    install(folder, "", without=missing(config))
    return folder


def missing(config: str) -> str:
    return "" if config == "no-gpu-seen" else config.removesuffix("-absent")


def install(folder: Path, package: str, without: str = "") -> None:
    """Link a package and its metadata into a folder: all of them for the name ``""``."""
    for path in sys.path:
        # What lies in an earlier folder hides its other releases in later ones.
        hidden = {link.name.partition("-")[0] for link in folder.iterdir()}
        for item in Path(path).iterdir() if path.endswith("-packages") else ():
            wanted = item.name.startswith(package) and not (without and item.name.startswith(without))
            if wanted and item.name.partition("-")[0] not in hidden:
                (folder / item.name).symlink_to(item)


def uninstall(folder: Path, package: str) -> None:
    for link in folder.glob(f"{package}*"):
        link.unlink()


SETTINGS = """
import os, sys
from pathlib import Path
sys.path[:] = [path for path in sys.path if not path.endswith("-packages")] + [os.environ["ENVIRONMENT"]]
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

def load(**options):
    return AutoModelForCausalLM.from_pretrained(os.environ["CHECKPOINT"], **options)

def load_in_4bit():
    return load(quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32))

def report(model):
    tokens = torch.tensor([[3, 1, 4, 1, 5]], device=model.device)
    with torch.no_grad():
        print("logits", model.eval()(tokens).logits.float().cpu().tolist())
"""
LOAD = SETTINGS + "report(load_in_4bit())"
LOAD_UNQUANTIZED = SETTINGS + "report(load())"
INSTALL_FROM_A_CELL = (
    SETTINGS
    + """
try:
    load_in_4bit()
except ImportError:
    pass
for item in Path(os.environ["ADDED"]).iterdir():
    Path(os.environ["ENVIRONMENT"], item.name).symlink_to(item)
report(load_in_4bit())
"""
)


@pytest.fixture
def run(run_script, environment, tmp_path, tiny_llama):
    """Runs a program with the environment's packages; what it printed as logits."""
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "checkpoint")

    def run(code, **variables):
        places = {"ENVIRONMENT": environment, "CHECKPOINT": tmp_path / "checkpoint", **variables}
        printed = run_script(code, env={name: str(place) for name, place in places.items()})
        line = next(line for line in printed.splitlines() if line.startswith("logits "))
        return torch.tensor(json.loads(line.removeprefix("logits ")))

    return run


def reference(tiny_llama) -> torch.Tensor:
    with torch.no_grad():
        return tiny_llama(torch.float64, hidden_size=64).eval()(torch.tensor([[3, 1, 4, 1, 5]])).logits


@pytest.mark.reproduces
def test_reproduces(run):
    run(LOAD)


@pytest.mark.workaround("install-and-restart")
def test_install_and_restart(config, environment, run, measure, tiny_llama):
    if config == "no-gpu-seen":
        pytest.skip("both packages are there")
    install(environment, missing(config))
    measure.compare(run(LOAD), reference(tiny_llama), ROUNDING)


@pytest.mark.workaround("load-unquantized")
def test_load_unquantized(run, measure, tiny_llama):
    measure.compare(run(LOAD_UNQUANTIZED), reference(tiny_llama), tolerance=1e-4)


@pytest.mark.dead_end("install-without-restart")
def test_install_without_restart(config, run, tmp_path):
    if config == "no-gpu-seen":
        pytest.skip("both packages are there")
    (tmp_path / "added").mkdir()
    install(tmp_path / "added", missing(config))
    run(INSTALL_FROM_A_CELL, ADDED=tmp_path / "added")


@pytest.mark.dead_end("upgrade-globally")
def test_upgrade_globally(config, run, tmp_path):
    if config == "no-gpu-seen":
        pytest.skip("both packages are there")
    (tmp_path / "global").mkdir()
    install(tmp_path / "global", "")
    run(LOAD)


@pytest.mark.dead_end("reinstall-the-packages")
def test_reinstall_the_packages(config, environment, run):
    if config != "no-gpu-seen":
        pytest.skip("installing is the fix here")
    for package in ("accelerate", "bitsandbytes"):
        uninstall(environment, package)
        install(environment, package)
    run(LOAD)
