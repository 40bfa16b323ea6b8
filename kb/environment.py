"""What is known of the user's machine: from the paste, from a file, from the machine itself.

Only for deciding which fixes apply. Unknown stays unknown.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from kb import lazy
from kb.errors import UsageError
from kb.models.result import Environment, Frame, Line

KNOWN_PACKAGES = frozenset(
    """
    accelerate apex auto-gptq autoawq bitsandbytes cupy datasets deepspeed diffusers flash-attn gptqmodel jax jaxlib
    lightning megatron-core nemo-automodel nemo-toolkit numba numpy optimum peft pytorch-lightning ray safetensors
    sentencepiece tensorflow tokenizers torch torchaudio torchvision transformer-engine transformers triton trl
    unsloth unsloth-zoo vllm xformers
    """.split()  # noqa: SIM905
)
"""Distributions believed in a two-column list; `name==version` is believed of any."""

# NVIDIA, "CUDA GPU Compute Capability", by the model as drivers print it.
_CAPABILITIES = (
    (lazy.pattern(r"\b(?:B200|GB200|B100)\b"), "10.0"),
    (lazy.pattern(r"\bRTX (?:PRO )?50\d0|\bRTX PRO 6000"), "12.0"),
    (lazy.pattern(r"\b(?:H100|H200|H800|GH200)\b"), "9.0"),
    (lazy.pattern(r"\bRTX 40\d0|\bL4\b|\bL40S?\b|\bRTX 6000 Ada"), "8.9"),
    (lazy.pattern(r"\bRTX 30\d0|\bA10G?\b|\bA40\b|\bRTX A\d000"), "8.6"),
    (lazy.pattern(r"\bA100|\bA800|\bA30\b"), "8.0"),
    (lazy.pattern(r"\bT4\b|\bRTX 20\d0|\bGTX 16\d0|\bTITAN RTX|\bQuadro RTX"), "7.5"),
    (lazy.pattern(r"\bV100|\bTITAN V\b"), "7.0"),
    (lazy.pattern(r"\bGTX 10\d0|\bP40\b|\bP4\b"), "6.1"),
    (lazy.pattern(r"\bP100\b"), "6.0"),
    (lazy.pattern(r"\bK80\b"), "3.7"),
)
_GPU = lazy.pattern(
    r"(?:NVIDIA(?!-SMI)|Tesla|GeForce|Quadro)[ -](?:[A-Za-z]+[ -]){0,2}[A-Z]{0,3}\d{1,4}[A-Za-z]{0,2}"
    r"(?: (?:Ti|SUPER|Ada|\d{2,3}GB|HBM3|PCIe|NVL|SXM\d))*"
)
_PINNED = lazy.pattern(r"(?<![\w./-])([A-Za-z][\w.-]{1,40})==(\d[\w.+!]{0,40})")
_LISTED = lazy.pattern(
    r"^[\s`*-]{0,6}([A-Za-z][\w-]{1,40})`?(?: +version)?[: ]{1,40}(\d+\.\d[\w.+]{0,40})(?:\s.{0,80})?$"
)
_TORCH = lazy.pattern(r"PyTorch version[^:]{0,20}: ?(\d[\w.+]{0,40})")
_PYTHON = lazy.pattern(r"Python version: ?(\d+\.\d+(?:\.\d+)?)")
_PYTHON_PATH = lazy.pattern(r"[/\\]python(\d\.\d{1,2})[/\\]|[/\\]Python(3)(\d{1,2})[/\\]")
_CUDA = lazy.pattern(r"CUDA used to build PyTorch: ?(\d+\.\d+)|CUDA Version: ?(\d+\.\d+)")
_DRIVER = lazy.pattern(r"(?:Nvidia driver version|Driver Version): ?(\d{3}\.\d[\d.]{0,12})")
_NAMED = (
    ("python", ("Python version",), _PYTHON),
    ("cuda", ("CUDA used to build", "CUDA Version"), _CUDA),
    ("driver", ("driver version", "Driver Version"), _DRIVER),
    ("gpu", ("NVIDIA", "Tesla", "GeForce", "Quadro"), _GPU),
)
"""What a line can name, with texts of which one stands in every line that does: most lines are spared the search."""


def from_paste(lines: Sequence[Line], frames: Iterable[Frame] = ()) -> Environment:
    """Versions, GPU, CUDA and operating system named in denoised lines or betrayed by paths of frames."""
    packages: dict[str, str] = {}
    known: dict[str, str] = {}
    for line in lines[:20_000]:
        text = line.text
        if len(text) > 2_000:
            continue
        if "==" in text:
            for name, version in _PINNED.findall(text):
                packages.setdefault(_normalised(name), version)
        if (hit := _LISTED.match(text)) and _normalised(hit[1]) in KNOWN_PACKAGES:
            packages.setdefault(_normalised(hit[1]), hit[2])
        if "PyTorch version" in text and (hit := _TORCH.search(text)):
            packages.setdefault("torch", hit[1])
        for key, marks, pattern in _NAMED:
            if key not in known and any(mark in text for mark in marks) and (hit := pattern.search(text)):
                known[key] = next((group for group in hit.groups() if group), hit.group())
    os: Literal["linux", "windows"] | None = None
    for frame in frames:
        if hit := _PYTHON_PATH.search(frame.file):
            known.setdefault("python", hit[1] or f"{hit[2]}.{hit[3]}")
        if os is None:
            os = (
                "windows"
                if re.match(r"[A-Za-z]:[\\/]", frame.file)
                else "linux"
                if frame.file.startswith("/")
                else None
            )
    if os == "linux" and any(frame.file.startswith(("/Users/", "/opt/homebrew/")) for frame in frames):
        os = None
    return Environment(
        packages=packages,
        python=known.get("python"),
        os=os,
        gpu=known.get("gpu"),
        compute_capability=capability(known["gpu"]) if "gpu" in known else None,
        cuda=known.get("cuda"),
        driver=known.get("driver"),
        device="cuda" if "gpu" in known else None,
    )


def capability(gpu: str) -> str | None:
    """Compute capability of a GPU model, None if the model is not known here."""
    return next((value for pattern, value in _CAPABILITIES if pattern.search(gpu)), None)


def from_machine() -> Environment:
    """This machine: installed distributions, interpreter, and the first GPU the driver lists. Imports no torch."""
    from importlib.metadata import distributions

    packages = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name and _normalised(name) in KNOWN_PACKAGES:
            packages[_normalised(name)] = distribution.version
    gpu, capacity, driver = _nvidia_smi()
    systems: dict[str, Literal["linux", "windows", "macos"]] = {"linux": "linux", "win32": "windows", "darwin": "macos"}
    return Environment(
        packages=packages,
        python=".".join(map(str, sys.version_info[:3])),
        os=systems.get(sys.platform),
        gpu=gpu,
        compute_capability=capacity or (capability(gpu) if gpu else None),
        driver=driver,
        device="cuda" if gpu else None,
    )


def _nvidia_smi() -> tuple[str | None, str | None, str | None]:
    import subprocess

    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None, None
    parts = [part.strip() for part in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else (None, None, None)


def from_file(path: Path) -> Environment:
    """Read the JSON object that `kb match --format json` prints as `query.environment`.

    Raises UsageError naming the file and the field if it is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as an environment: {error}", "give a JSON file") from error
    if not isinstance(data, dict):
        raise UsageError(
            f"{path}: an environment is a JSON object, found {type(data).__name__}", "see schemas/match.schema.json"
        )
    names = {item.name for item in fields(Environment)}
    for key, value in data.items():
        _check(path, key, value, names)
    packages = {_normalised(name): version for name, version in data.pop("packages", {}).items()}
    return Environment(packages=packages, **data)


def _check(path: Path, key: str, value: Any, names: set[str]) -> None:
    if key not in names:
        raise UsageError(f"{path}: unknown field `{key}`", f"one of {', '.join(sorted(names))}")
    if key == "packages":
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise UsageError(f"{path}: packages: expected names with version strings", 'for example {"torch": "2.6.0"}')
    elif value is not None and not isinstance(value, str):
        raise UsageError(f"{path}: {key}: expected a string, found {type(value).__name__}", "quote it")


def merged(strongest: Environment, *weaker: Environment) -> Environment:
    """Fill what the strongest leaves open from the weaker ones, in their order."""
    result = strongest
    for other in weaker:
        filled: dict[str, Any] = {
            item.name: getattr(other, item.name)
            for item in fields(Environment)
            if item.name != "packages" and getattr(result, item.name) is None
        }
        result = replace(result, packages={**other.packages, **result.packages}, **filled)
    return result


def applies(condition: dict[str, Any] | None, environment: Environment) -> tuple[bool | None, str]:
    """Whether a record's `applies_when` holds, and the words for it. None: not enough is known.

    One known mismatch decides; a match needs every condition known.
    """
    if not condition:
        return None, ""
    verdicts = list(_verdicts(condition, environment))
    if failed := [words for holds, words in verdicts if holds is False]:
        return False, "; ".join(failed)
    if verdicts and all(holds for holds, _ in verdicts):
        return True, "; ".join(words for _, words in verdicts)
    return None, ""


def _verdicts(condition: dict[str, Any], environment: Environment) -> Iterable[tuple[bool | None, str]]:
    for name, wanted in (condition.get("packages") or {}).items():
        yield _version(name, environment.packages.get(_normalised(name)), wanted)
    if wanted := condition.get("compute_capability"):
        yield _version("compute capability", environment.compute_capability, wanted)
    if wanted := condition.get("python"):
        yield _version("Python", environment.python, wanted)
    for key, label in (("os", "operating system"), ("device", "device")):
        wanted = condition.get(key)
        found = getattr(environment, key)
        if wanted:
            accepted = [wanted] if isinstance(wanted, str) else list(wanted)
            holds = None if found is None else found in accepted
            yield holds, f"{label} is {found}" + ("" if holds else f", this is for {' or '.join(accepted)}")


def _version(name: str, found: str | None, wanted: str) -> tuple[bool | None, str]:
    if found is None:
        return None, ""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        holds = SpecifierSet(wanted).contains(Version(found), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return None, ""
    return holds, f"{name} is {found}" + ("" if holds else f", this needs {wanted}")


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
