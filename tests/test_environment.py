"""What a paste, a file or the machine tells of the environment, and what follows for a fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kb.denoise import denoise
from kb.environment import applies, capability, from_file, from_machine, from_paste, merged
from kb.errors import UsageError
from kb.models.result import Environment, Frame


def test_versions_named_in_a_paste() -> None:
    paste = """\
PyTorch version: 2.3.0+cu118
Python version: 3.10.13 (main)
CUDA used to build PyTorch: 11.8
Nvidia driver version: 535.104.05
GPU 0: NVIDIA A100-SXM4-80GB
- `transformers` version: 4.44.2
peft                      0.12.0
[pip3] numpy==1.26.4
train.py                  1.2
"""
    known = from_paste(denoise(paste))
    assert known.packages == {"torch": "2.3.0+cu118", "transformers": "4.44.2", "peft": "0.12.0", "numpy": "1.26.4"}
    assert (known.python, known.cuda, known.driver) == ("3.10.13", "11.8", "535.104.05")
    assert known.gpu is not None
    assert known.gpu.startswith("NVIDIA A100")
    assert known.compute_capability == "8.0"


def test_paths_betray_interpreter_and_system() -> None:
    known = from_paste([], [Frame("C:\\env\\Python311\\Lib\\site-packages\\torch\\nn.py", 1, None)])
    assert (known.os, known.python) == ("windows", "3.11")
    assert from_paste([], [Frame("/opt/conda/lib/python3.12/site-packages/x.py", 1, None)]).python == "3.12"


def test_a_driver_table_is_no_gpu() -> None:
    known = from_paste(denoise("| NVIDIA-SMI 470.86   Driver Version: 470.86   CUDA Version: 11.4 |"))
    assert (known.gpu, known.driver, known.cuda) == (None, "470.86", "11.4")


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "9.0"),
        ("NVIDIA GeForce RTX 3090", "8.6"),
        ("Tesla V100-SXM2-32GB", "7.0"),
        ("NVIDIA GeForce RTX 5060 Ti", "12.0"),
        ("Radeon", None),
    ],
)
def test_capability_by_model(gpu: str, expected: str | None) -> None:
    assert capability(gpu) == expected


def test_the_strongest_source_wins_and_the_rest_fills_in() -> None:
    paste = Environment(packages={"torch": "2.3.0"}, python="3.10")
    machine = Environment(packages={"torch": "2.6.0", "peft": "0.12"}, python="3.12", os="linux")
    assert merged(paste, machine) == Environment(packages={"torch": "2.3.0", "peft": "0.12"}, python="3.10", os="linux")


def test_one_known_mismatch_decides_and_a_match_needs_everything() -> None:
    condition = {"packages": {"torch": ">=2.1"}, "compute_capability": ">=8.0"}
    assert applies(condition, Environment(packages={"torch": "2.6.0"}))[0] is None
    assert applies(condition, Environment(packages={"torch": "2.6.0"}, compute_capability="9.0"))[0] is True
    assert applies(condition, Environment(packages={"torch": "1.13"}))[0] is False
    assert applies({"os": ["linux"]}, Environment(os="windows")) == (
        False,
        "operating system is windows, this is for linux",
    )
    assert applies(None, Environment())[0] is None


def test_nonsense_versions_are_unknown() -> None:
    assert applies({"packages": {"torch": "not a range"}}, Environment(packages={"torch": "2.6"}))[0] is None
    assert applies({"packages": {"torch": ">=2"}}, Environment(packages={"torch": "git-main"}))[0] is None


def test_this_machine_is_read_without_importing_torch() -> None:
    known = from_machine()
    assert known.python is not None
    assert known.python.startswith("3.")


def test_an_environment_file_round_trips(tmp_path: Path) -> None:
    file = tmp_path / "env.json"
    file.write_text(json.dumps({"packages": {"Flash_Attn": "2.5"}, "gpu": "NVIDIA A10G", "os": None}))
    assert from_file(file) == Environment(packages={"flash-attn": "2.5"}, gpu="NVIDIA A10G")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "cannot be read"),
        ("[]", "JSON object"),
        ('{"torch": "2"}', "unknown field `torch`"),
        ('{"packages": {"a": 1}}', "packages"),
        ('{"gpu": 3}', "gpu"),
    ],
)
def test_a_bad_environment_file_is_named_with_its_field(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "env.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=named) as caught:
        from_file(file)
    assert str(file) in str(caught.value)
