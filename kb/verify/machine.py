"""What a run happened on, asked without importing torch and without creating a CUDA context.

A context of our own would change what arms about process forks and memory see, so the driver's tool is asked first.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One visible GPU."""

    name: str
    capability: tuple[int, ...] | None
    driver: str | None


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Visible GPUs in CUDA's order of numbering, as far as the driver's tool or a loaded torch knows them."""
    return _from_driver() or _from_torch()


def default_device() -> str:
    """`cuda` if torch would find one, else `cpu`; torch is not imported for the answer."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    version = _version("torch")
    built_for_cuda = version is not None and not version.endswith("+cpu")
    return "cuda" if built_for_cuda and _from_driver() else "cpu"


def environment(device: str, packages: Iterable[str]) -> dict[str, Any]:
    """The `environment` of an evidence file: the GPU is asked for only if the run used it."""
    cuda = device.startswith("cuda")
    gpu = gpus()[0] if cuda and gpus() else None
    versions = {name: _version(name) for name in sorted(packages)}
    return {
        "device": "cuda" if cuda else "cpu",
        "gpu": gpu.name if gpu else None,
        "compute_capability": ".".join(map(str, gpu.capability)) if gpu and gpu.capability else None,
        "driver": gpu.driver if gpu else None,
        "cuda": _cuda_version(),
        "torch": _version("torch"),
        "packages": {name: version for name, version in versions.items() if version is not None},
        "python": platform.python_version(),
        "os": _system(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda_version() -> str | None:
    """CUDA version torch was built for, from torch if it is loaded, else from its version's `+cu130`."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        built = getattr(torch.version, "cuda", None)
        return str(built) if built else None
    found = re.search(r"\+cu(\d+)(\d)$", _version("torch") or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _system() -> str:
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}".strip()
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        name = None
    return f"{name} ({kernel})" if name else kernel or sys.platform


@functools.cache
def _from_driver() -> tuple[Gpu, ...]:
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.count(",") == 4]
    return tuple(Gpu(row[2], _numbers(row[3]), row[4]) for row in _visible(rows))


def _visible(rows: list[list[str]]) -> list[list[str]]:
    """The rows that `CUDA_VISIBLE_DEVICES` leaves, in its order; it stops at the first name that is unknown."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return rows
    chosen = []
    for name in (part.strip() for part in wanted.split(",")):
        row = next((row for row in rows if name and (row[0] == name or row[1].startswith(name))), None)
        if row is None:
            break
        chosen.append(row)
    return chosen


def _from_torch() -> tuple[Gpu, ...]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(
        Gpu(torch.cuda.get_device_name(index), tuple(torch.cuda.get_device_capability(index)), None)
        for index in range(torch.cuda.device_count())
    )


def _numbers(text: str) -> tuple[int, ...] | None:
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else None
