# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "setuptools"]
# ///
"""A setup.py with a CUDA extension, built by a toolkit of another CUDA major release than torch's.

In `toolkit-of-this-machine` that is the installed one, where torch was built for another release. In
`toolkit-says-11.4` it is a folder whose nvcc claims to be 11.4 and is the installed one behind that, which fits torch;
so the right toolkit is at hand there. torch, its check and the compilation are real; kernels are not launched.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.requires(torch=">=2.1", os="linux"), pytest.mark.timeout(180)]

SOURCE = """
#include <Python.h>

__global__ void scale(float* values, float factor) { values[threadIdx.x] *= factor; }
static PyObject* twice(PyObject*, PyObject* number) { return PyLong_FromLong(2 * PyLong_AsLong(number)); }
static PyMethodDef methods[] = {{"twice", twice, METH_O, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "ops", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_ops() { return PyModule_Create(&module); }
"""

SETUP = """
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension

setup(name="ops", ext_modules=[CUDAExtension("ops", ["ops.cu"])], cmdclass={"build_ext": BuildExtension})
"""

WITHOUT_CHECK = "import torch.utils.cpp_extension\ntorch.utils.cpp_extension._check_cuda_version = lambda *_: None\n"

NVCC = """#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release 11.4, V11.4.152" ;;
*) exec {real}/bin/nvcc "$@" ;;
esac
"""

PROGRAM = """
import os
import pathlib
import subprocess
import sys

for name, text in FILES.items():
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(name).write_text(text)
pathlib.Path("cuda-11.4/bin/nvcc").chmod(0o755)
pathlib.Path("cuda-11.4/include").symlink_to(REAL + "/include")
pathlib.Path("cuda-11.4/lib64").symlink_to(REAL + "/lib64")
os.environ.update({name: value.replace("$PWD", os.getcwd()) for name, value in ENVIRONMENT.items()})
if subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"]).returncode != 0:
    sys.exit(1)
import torch, ops

print("twice 21 is", ops.twice(21))
"""


def toolkit():
    return Path("/usr/local/cuda").resolve()


def major_of_toolkit():
    """Major release of the installed nvcc, None without one."""
    nvcc = toolkit() / "bin/nvcc"
    if not nvcc.exists():
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+)", said)[1]


def build(run_script, config, setup=SETUP, **environment):
    """Build and call the extension."""
    home = "$PWD/cuda-11.4" if config == "toolkit-says-11.4" else str(toolkit())
    values = {
        "FILES": {"ops.cu": SOURCE, "setup.py": setup, "cuda-11.4/bin/nvcc": NVCC.format(real=toolkit())},
        "REAL": str(toolkit()),
        "ENVIRONMENT": {"TORCH_CUDA_ARCH_LIST": "9.0", "CUDA_HOME": home, **environment},
    }
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + PROGRAM
    return run_script(code, env={"PYTHONPATH": os.pathsep.join([".", *filter(None, sys.path)])})


def check(output):
    assert "twice 21 is 42" in output


@pytest.fixture(params=["toolkit-of-this-machine", "toolkit-says-11.4"])
def config(request):
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")
    installed = major_of_toolkit()
    if installed is None:
        pytest.skip("needs a toolkit in /usr/local/cuda")
    if (installed == torch.version.cuda.partition(".")[0]) != (request.param == "toolkit-says-11.4"):
        pytest.skip(f"the installed toolkit is {installed}, torch is for {torch.version.cuda}")
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    build(run_script, config)


@pytest.mark.workaround("select-toolkit")
def test_select_toolkit(config, run_script):
    if config == "toolkit-of-this-machine":
        pytest.skip("the toolkit that fits is not installed here")
    check(build(run_script, config, CUDA_HOME=str(toolkit())))


@pytest.mark.workaround("disable-check")
def test_disable_check(config, run_script):
    if config == "toolkit-says-11.4":
        pytest.skip("the compiler behind the pretended version fits")
    check(build(run_script, config, setup=WITHOUT_CHECK + SETUP))


@pytest.mark.dead_end("path-alone")
def test_path_alone(config, run_script):
    if config == "toolkit-of-this-machine":
        pytest.skip("the toolkit that fits is not installed here")
    build(run_script, config, PATH=f"{toolkit()}/bin{os.pathsep}{os.environ['PATH']}")


@pytest.mark.dead_end("skip-the-abi-check")
def test_skip_the_abi_check(config, run_script):
    build(run_script, config, TORCH_DONT_CHECK_COMPILER_ABI="1")


@pytest.mark.dead_end("allow-unsupported-compiler")
def test_allow_unsupported_compiler(config, run_script):
    build(run_script, config, NVCC_PREPEND_FLAGS="-allow-unsupported-compiler")
