# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""torch builds an extension at run time and does not find the program `ninja`.

PATH is cut down to a folder with the compilers and nothing else, which stands for a machine where ninja was never
installed (`ninja-hidden`), or for a service that was started outside the environment whose bin folder holds it
(`bin-folder-off-path`). The extension needs nothing of torch, so that compiling it takes a moment.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import load

pytestmark = [pytest.mark.requires(torch=">=2.1", os="linux"), pytest.mark.timeout(180)]

SOURCE = """
#include <Python.h>

#define JOIN(prefix, name) prefix##name
#define INIT(name) JOIN(PyInit_, name)
static PyObject* twice(PyObject*, PyObject* number) { return PyLong_FromLong(2 * PyLong_AsLong(number)); }
static PyMethodDef methods[] = {{"twice", twice, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "fused_ops", nullptr, -1, methods};
PyMODINIT_FUNC INIT(TORCH_EXTENSION_NAME)() { return PyModule_Create(&module); }
"""

SETUP = """
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

setup(
    name="fused_ops",
    ext_modules=[CppExtension("fused_ops", ["fused_ops.cpp"])],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=False)},
)
"""

COMPILERS = ("g++", "c++", "gcc", "cc", "as", "ld", "sh", "env")


@pytest.fixture(params=["ninja-hidden", "bin-folder-off-path"])
def config(request, tmp_path, monkeypatch):
    """Leaves the compilers on PATH, and ninja in the bin folder of an environment that is not activated."""
    ninja = shutil.which("ninja")
    if shutil.which("g++") is None or ninja is None:
        pytest.skip("needs g++ and ninja")
    for name in ("compilers", "environment/bin", "build"):
        (tmp_path / name).mkdir(parents=True)
    for name in filter(shutil.which, COMPILERS):
        (tmp_path / "compilers" / name).symlink_to(shutil.which(name))
    if request.param == "bin-folder-off-path":
        install(ninja, tmp_path)
    (tmp_path / "fused_ops.cpp").write_text(SOURCE)
    monkeypatch.setenv("NINJA", ninja)
    monkeypatch.setenv("PATH", str(tmp_path / "compilers"))
    monkeypatch.chdir(tmp_path)
    return request.param


def install(ninja, place):
    shutil.copy(ninja, place / "environment/bin/ninja")


def add_to_path(monkeypatch, folder):
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def build():
    return load(name="fused_ops", sources=["fused_ops.cpp"], build_directory=str(Path("build").resolve()))


@pytest.mark.reproduces
def test_reproduces(config):
    build()


@pytest.mark.workaround("install-ninja")
@pytest.mark.requires(ninja=">=1.10")
def test_install_ninja(config, monkeypatch):
    """The package from PyPI, in the environment of this interpreter, which is activated."""
    if config == "bin-folder-off-path":
        pytest.skip("it is installed")
    add_to_path(monkeypatch, Path(sys.executable).parent)
    assert build().twice(21) == 42


@pytest.mark.workaround("put-on-path")
def test_put_on_path(config, monkeypatch, tmp_path):
    if config == "ninja-hidden":
        pytest.skip("there is no ninja to put on PATH")
    add_to_path(monkeypatch, tmp_path / "environment/bin")
    assert build().twice(21) == 42


@pytest.mark.workaround("build-ahead")
def test_build_ahead(config, tmp_path):
    (tmp_path / "setup.py").write_text(SETUP)
    run_python("setup.py", "build_ext", "--inplace")
    assert run_python("-c", "import torch, fused_ops; print(fused_ops.twice(21))").split()[-1] == "42"


def run_python(*arguments):
    """Output of another interpreter that sees what this one sees."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *filter(None, sys.path)])}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout


@pytest.mark.dead_end("reinstall-ninja")
def test_reinstall_ninja(config, tmp_path):
    if config == "ninja-hidden":
        pytest.skip("it is not installed")
    install(os.environ["NINJA"], tmp_path)
    build()


@pytest.mark.dead_end("use-ninja-variable")
def test_use_ninja_variable(config, monkeypatch):
    monkeypatch.setenv("USE_NINJA", "0")
    build()


@pytest.mark.dead_end("max-jobs")
def test_max_jobs(config, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "1")
    build()
