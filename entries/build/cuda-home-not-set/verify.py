# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "setuptools"]
# ///
"""A setup.py with a CUDA extension, built where torch finds no nvcc.

`cpu-build-of-torch` is that build of torch itself, which never looks for a toolkit. The other two need a CUDA build: in
`toolkit-hidden` the build runs in a mount namespace whose /usr/local is empty, so that the real toolkit of this machine
is only to be found in the folder `toolkit`; in `home-without-nvcc` CUDA_HOME names a folder that holds no compiler.
The extension is compiled with the real nvcc and called; its kernel is not launched.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.requires(torch=">=2.1", os="linux"), pytest.mark.timeout(180)]

SOURCE = """
#include <Python.h>

#ifdef __CUDACC__
__global__ void scale(float* values, float factor) { values[threadIdx.x] *= factor; }
#endif
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

SETUP_FOR_BOTH = """
import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

if torch.version.cuda:
    extension = CUDAExtension("ops", ["ops.cu"])
else:
    extension = CppExtension("ops", ["ops.cpp"])
setup(name="ops", ext_modules=[extension], cmdclass={"build_ext": BuildExtension})
"""

PROGRAM = """
import os
import pathlib
import subprocess
import sys

for name, text in FILES.items():
    pathlib.Path(name).write_text(text)
for name in ("CUDA_HOME", "CUDA_PATH"):
    os.environ.pop(name, None)
for name, value in ENVIRONMENT.items():
    os.environ[name] = value.replace("$PWD", os.getcwd())
build = [sys.executable, "setup.py", "build_ext", "--inplace"]
if HIDDEN:
    pathlib.Path("toolkit").mkdir()
    script = f'mount --bind {TOOLKIT} toolkit && mount -t tmpfs none /usr/local && {PREPARE} && exec "$@"'
    build = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *build]
if subprocess.run(build).returncode != 0:
    sys.exit(1)
import torch, ops

print("twice 21 is", ops.twice(21))
"""

WHEELS = Path(sysconfig.get_path("purelib"), "nvidia/cu13")


def toolkit():
    """Folder of the real toolkit of this machine, None if there is none below /usr/local."""
    found = Path("/usr/local/cuda").resolve()
    return found if (found / "bin/nvcc").exists() else None


def build(run_script, config, setup=SETUP, prepare="true", **environment):
    """Build and call the extension. `prepare` is a shell command in the namespace, where there is one."""
    values = {
        "FILES": {"ops.cu": SOURCE, "ops.cpp": SOURCE, "setup.py": setup},
        "HIDDEN": config == "toolkit-hidden",
        "TOOLKIT": str(toolkit()),
        "PREPARE": prepare,
        "ENVIRONMENT": {"TORCH_CUDA_ARCH_LIST": "9.0", **(environment or wrong_home(config))},
    }
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + PROGRAM
    return run_script(code, env={"PYTHONPATH": os.pathsep.join([".", *filter(None, sys.path)])})


def wrong_home(config):
    return {"CUDA_HOME": "/opt"} if config == "home-without-nvcc" else {}


def home_of(config):
    return "$PWD/toolkit" if config == "toolkit-hidden" else str(toolkit())


def check(output):
    assert "twice 21 is 42" in output


def can_hide():
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/usr/local"]
    allowed = shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0
    return bool(allowed) and not sys.base_prefix.startswith("/usr/local")


@pytest.fixture(params=["cpu-build-of-torch", "toolkit-hidden", "home-without-nvcc"])
def config(request):
    if (torch.version.cuda is None) != (request.param == "cpu-build-of-torch"):
        pytest.skip(f"needs the {'CPU' if torch.version.cuda else 'CUDA'} build of torch")
    if request.param == "toolkit-hidden" and not (toolkit() and can_hide()):
        pytest.skip("needs a toolkit in /usr/local, and namespaces to hide it")
    return request.param


def needs_cuda_build(config):
    if config == "cpu-build-of-torch":
        pytest.skip("this build of torch does not look for a toolkit")
    if toolkit() is None:
        pytest.skip("needs a toolkit in /usr/local")


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    build(run_script, config)


@pytest.mark.workaround("install-toolkit")
def test_install_toolkit(config, run_script):
    """The toolkit appears in the place where NVIDIA's packages put it."""
    needs_cuda_build(config)
    if config == "home-without-nvcc":
        pytest.skip("a toolkit is installed, and the variable names another folder")
    check(build(run_script, config, prepare="mkdir /usr/local/cuda && mount --bind toolkit /usr/local/cuda"))


@pytest.mark.workaround("export-cuda-home")
def test_export_cuda_home(config, run_script):
    needs_cuda_build(config)
    check(build(run_script, config, CUDA_HOME=home_of(config)))


@pytest.mark.workaround("put-nvcc-on-path")
def test_put_nvcc_on_path(config, run_script):
    needs_cuda_build(config)
    check(build(run_script, config, PATH=f"{home_of(config)}/bin{os.pathsep}{os.environ['PATH']}"))


@pytest.mark.workaround("build-the-cpu-part")
def test_build_the_cpu_part(config, run_script):
    if config != "cpu-build-of-torch":
        pytest.skip("the CUDA part is wanted")
    check(build(run_script, config, setup=SETUP_FOR_BOTH))


@pytest.mark.dead_end("cuda-is-available")
@pytest.mark.requires(device="cuda")
def test_cuda_is_available(config, run_script):
    needs_cuda_build(config)
    assert torch.cuda.is_available()
    build(run_script, config)


@pytest.mark.dead_end("home-with-cpu-torch")
def test_home_with_cpu_torch(config, run_script):
    if config != "cpu-build-of-torch":
        pytest.skip("this build of torch does look for a toolkit")
    if toolkit() is None:
        pytest.skip("needs a toolkit in /usr/local")
    build(run_script, config, CUDA_HOME=str(toolkit()))


@pytest.mark.dead_end("home-of-the-wheels")
def test_home_of_the_wheels(config, run_script):
    needs_cuda_build(config)
    if not WHEELS.is_dir() or (WHEELS / "bin/nvcc").exists():
        pytest.skip("needs the runtime wheels without the compiler's")
    build(run_script, config, CUDA_HOME=str(WHEELS))


@pytest.mark.dead_end("library-path")
def test_library_path(config, run_script):
    build(run_script, config, **wrong_home(config), LD_LIBRARY_PATH=f"{home_of(config)}/lib64")


@pytest.mark.dead_end("force-cuda")
def test_force_cuda(config, run_script):
    build(run_script, config, **wrong_home(config), FORCE_CUDA="1")
