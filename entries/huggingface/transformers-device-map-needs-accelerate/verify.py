# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch", "transformers>=4.51", "accelerate"]
# ///
"""device_map, or a default device, where accelerate is absent from the environment or too old.

An environment is a folder of links to the installed packages without accelerate, and a process that takes its packages
from there alone. Installing is adding the links, which is what pip's work comes to for the program.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.1", transformers=">=4.51", os=("linux", "macos"))
CURRENT = pytest.mark.requires(accelerate=">=1.1")


@pytest.fixture(
    params=[
        pytest.param("device-map-auto", marks=CURRENT),
        pytest.param("default-device", marks=[CURRENT, pytest.mark.requires(device="cuda")]),
        pytest.param("accelerate-too-old", marks=pytest.mark.requires(transformers=">=5", accelerate="<1.1")),
    ]
)
def config(request):
    return request.param


@pytest.fixture
def environment(config, tmp_path):
    """The package folder of the program's interpreter."""
    folder = tmp_path / "environment"
    folder.mkdir()
    install(folder, "", without="" if config == "accelerate-too-old" else "accelerate")
    return folder


def install(folder: Path, package: str, without: str = "") -> None:
    """Link a package and its metadata into a folder: all of them for the name ``""``."""
    for path in sys.path:
        # What lies in an earlier folder hides its other releases in later ones.
        hidden = {link.name.partition("-")[0] for link in folder.iterdir()}
        for item in Path(path).iterdir() if path.endswith("-packages") else ():
            wanted = item.name.startswith(package) and not (without and item.name.startswith(without))
            if wanted and item.name.partition("-")[0] not in hidden:
                (folder / item.name).symlink_to(item)


SETTINGS = """
import os, sys
from pathlib import Path
sys.path[:] = [path for path in sys.path if not path.endswith("-packages")] + [os.environ["ENVIRONMENT"]]
import torch
from transformers import AutoModelForCausalLM

device = os.environ["KB_DEVICE"]
checkpoint = os.environ["CHECKPOINT"]

def load():
    if os.environ["CONFIG"] == "default-device":
        with torch.device(device):
            return AutoModelForCausalLM.from_pretrained(checkpoint)
    return AutoModelForCausalLM.from_pretrained(checkpoint, device_map="auto")

def report(model):
    tokens = torch.tensor([[3, 1, 4, 1, 5]], device=model.device)
    with torch.no_grad():
        print("logits", model.eval()(tokens).logits.float().cpu().tolist())
"""
LOAD = SETTINGS + "report(load())"
PLACE_BY_HAND = SETTINGS + "report(AutoModelForCausalLM.from_pretrained(checkpoint).to(device))"
INSTALL_FROM_A_CELL = (
    SETTINGS
    + """
try:
    load()
except (ImportError, ValueError):
    for item in Path(os.environ["ADDED"]).iterdir():
        Path(os.environ["ENVIRONMENT"], item.name).symlink_to(item)
    if "RESTART" in os.environ:
        os.execv(sys.executable, [sys.executable, *sys.argv])
report(load())
"""
)


@pytest.fixture
def run(config, run_script, environment, tmp_path, tiny_llama):
    """Runs a program with the environment's packages; what it printed as logits."""
    tiny_llama().save_pretrained(tmp_path / "checkpoint")

    def run(code, **variables):
        places = {"CONFIG": config, "ENVIRONMENT": environment, "CHECKPOINT": tmp_path / "checkpoint", **variables}
        printed = run_script(code, env={name: str(place) for name, place in places.items()})
        line = next(line for line in printed.splitlines() if line.startswith("logits "))
        return torch.tensor(json.loads(line.removeprefix("logits ")))

    return run


@pytest.fixture
def added(config, tmp_path):
    """What pip adds."""
    if config == "accelerate-too-old":
        pytest.skip("a newer accelerate is not at hand in this configuration")
    folder = tmp_path / "added"
    folder.mkdir()
    install(folder, "accelerate")
    return folder


def check(measure, logits, tiny_llama) -> None:
    with torch.no_grad():
        reference = tiny_llama(torch.float64).eval()(torch.tensor([[3, 1, 4, 1, 5]])).logits
    measure.compare(logits, reference, tolerance=1e-4)


@pytest.mark.reproduces
def test_reproduces(run):
    run(LOAD)


@pytest.mark.workaround("install-with-the-same-python")
def test_install_with_the_same_python(environment, added, run, measure, tiny_llama):
    install(environment, "accelerate")
    check(measure, run(LOAD), tiny_llama)


@pytest.mark.workaround("restart-the-kernel")
def test_restart_the_kernel(added, run, measure, tiny_llama):
    check(measure, run(INSTALL_FROM_A_CELL, ADDED=added, RESTART=1), tiny_llama)


@pytest.mark.workaround("place-by-hand")
def test_place_by_hand(run, measure, tiny_llama):
    check(measure, run(PLACE_BY_HAND), tiny_llama)


@pytest.mark.dead_end("pip-in-another-python")
def test_pip_in_another_python(run, tmp_path):
    (tmp_path / "another").mkdir()
    install(tmp_path / "another", "")
    run(LOAD)


@pytest.mark.dead_end("reinstall-without-restart")
def test_reinstall_without_restart(added, run):
    run(INSTALL_FROM_A_CELL, ADDED=added)
