"""The pytest plugin that runs entries' `verify.py`.

A script is a file named `verify.py` beside an `entry.json`. Until one is collected, this plugin adds options and marker
names to pytest and nothing else: no fixture, no reordering, no output. The first script brings in `collection`,
`running` and `report`.

PYTEST_DONT_REWRITE: there is no assert here, and pytest warns where a plugin it would rewrite is imported already.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_MARKERS = (
    "reproduces: runs the broken program, which must raise the entry's error",
    "refutes: runs a program that is claimed to fail, which must finish with the right result",
    "workaround(id): runs the program with this fix, which must finish with the right result",
    "dead_end(id): runs the program with this wrong fix, which must still fail",
    "requires(capability=, gpus=, device=, os=, python=, DISTRIBUTION=RANGE): what the arm needs, else it is skipped",
    "fresh: the arm needs an interpreter of its own",
    "timeout(seconds): how long the arm may take",
)


def is_script(path: Path) -> bool:
    """Whether a file is an entry's verification script."""
    return path.name == "verify.py" and path.with_name("entry.json").is_file()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("provenfix", "entries' verification scripts")
    group.addoption("--kb-device", metavar="DEVICE", help="device under test (default: cuda if there is one, else cpu)")
    group.addoption("--kb-evidence", metavar="DIR", help="write one evidence file per entry and run to this folder")
    group.addoption(
        "--kb-timeout", metavar="SECONDS", type=float, help="no arm may take longer, whatever its marker says"
    )
    group.addoption("--kb-trials", metavar="FILE", help="append arms begun and trials finished, one JSON line each")
    group.addoption("--kb-nodes", metavar="FILE", help="write what was collected to this file, one JSON line per arm")
    group.addoption("--kb-no-cost", action="store_true", help="take no times and no peaks of memory: steps run once")
    group.addoption("--kb-contributor", metavar="NAME", help="who runs this, if not a maintainer")


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not is_script(module_path):
        return None
    # Read by the libraries of CUDA when they start, which is later. A fix is compared with a float32 reference to 1e-4
    # or so, and TF32, which convolutions use by default, has ten bits.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    from kb.verify import collection, report, running

    for part in (collection, running, report):
        if not parent.config.pluginmanager.is_registered(part):
            parent.config.pluginmanager.register(part, part.__name__)
    return collection.make_module(module_path, parent)
