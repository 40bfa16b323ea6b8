"""What a script or an arm needs, and why it cannot run here. Standard library; `packaging` comes with pytest."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from kb.verify import machine

_HEADER = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_OWN_KEYWORDS = ("capability", "gpus", "device", "os", "python")
_OURSELVES = ("provenfix",)
_SYSTEMS = {"Linux": "linux", "Windows": "windows", "Darwin": "macos"}


def header_requirements(source: str) -> list[str]:
    """Requirements of a script's PEP 723 header. Raises ValueError if the header is not valid TOML."""
    import tomllib

    found = _HEADER.search(source)
    if found is None:
        return []
    lines = found.group("content").splitlines()
    document = tomllib.loads("\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))
    return [str(item) for item in document.get("dependencies", [])]


def unmet_requirement(requirements: Iterable[str]) -> str | None:
    """The first requirement this interpreter does not satisfy, in words."""
    from packaging.requirements import Requirement

    for text in requirements:
        requirement = Requirement(text)
        if requirement.name in _OURSELVES or (requirement.marker and not requirement.marker.evaluate()):
            continue
        if reason := _distribution(requirement.name, str(requirement.specifier)):
            return reason
    return None


def distributions(requirements: Iterable[str], marks: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of all distributions that a header and `requires` marks mention."""
    from packaging.requirements import Requirement

    named = {Requirement(text).name for text in requirements}
    for keywords in marks:
        named.update(_dashed(name) for name in keywords if name not in _OWN_KEYWORDS)
    return {name for name in named if name not in _OURSELVES}


def unmet(needed: Mapping[str, Any], device: str) -> str | None:
    """Why `requires(**needed)` is not satisfied on this machine and device, or None."""
    return next((reason for reason in _reasons(needed, device) if reason), None)


def _reasons(needed: Mapping[str, Any], device: str) -> Iterator[str | None]:
    wanted_device = needed.get("device")
    if wanted_device is not None and device.partition(":")[0] != wanted_device:
        yield f"needs {wanted_device}"
    if "os" in needed:
        yield _system(needed["os"])
    if "python" in needed:
        yield _range("Python", needed["python"], platform.python_version())
    for name, wanted in needed.items():
        if name not in _OWN_KEYWORDS:
            yield _distribution(_dashed(name), str(wanted))
    if "gpus" in needed:
        yield _gpus(int(needed["gpus"]), device)
    if "capability" in needed:
        yield _capability(tuple(needed["capability"]), device)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _system(wanted: str | Iterable[str]) -> str | None:
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    here = _SYSTEMS.get(platform.system(), sys.platform)
    return None if here in names else f"needs {' or '.join(names)}, found {here}"


def _distribution(name: str, wanted: str) -> str | None:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"needs {' '.join((name, wanted)).strip()}, not installed"
    return _range(name, wanted, found)


def _range(name: str, wanted: str, found: str) -> str | None:
    from packaging.specifiers import SpecifierSet

    if wanted in ("", "*") or SpecifierSet(wanted).contains(found, prereleases=True):
        return None
    return f"needs {name} {wanted}, found {found}"


def _gpus(wanted: int, device: str) -> str | None:
    found = len(machine.gpus()) if device.startswith("cuda") else 0
    if found >= wanted:
        return None
    return f"needs {wanted} GPU{'s' if wanted != 1 else ''}, found {found}"


def _capability(wanted: tuple[int, ...], device: str) -> str | None:
    need = f"needs compute capability {'.'.join(map(str, wanted))}"
    found = machine.gpus() if device.startswith("cuda") else ()
    if not found:
        return f"{need}, found no GPU"
    capability = found[0].capability
    if capability is None:
        return f"{need}, found a GPU that does not say"
    return None if capability >= wanted else f"{need}, found {'.'.join(map(str, capability))}"
