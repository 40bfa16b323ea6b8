# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "numba>=0.57"]
# ///
"""Numba compiles a kernel and does not find libNVVM, or the libdevice that belongs to it.

Compiling to PTX needs no GPU. In `home-points-elsewhere` CUDA_HOME names a folder without a toolkit; in
`toolkit-hidden` the program runs in a mount namespace whose /usr/local is empty, as on a machine without a toolkit. The
toolkit of the fixes is made of NVIDIA's packages nvidia-cuda-nvcc-cu12 and nvidia-cuda-runtime-cu12.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.requires(numba=">=0.57", os="linux", device="cpu")

KERNEL = """
import math
from numba import cuda, float32

def scale(values):
    index = cuda.grid(1)
    if index < values.size:
        values[index] = math.sin(values[index]) * 2

ptx, _ = cuda.compile_ptx(scale, (float32[::1],), cc=(8, 0))
print("PTX for", next(line for line in ptx.splitlines() if line.startswith(".target")))
"""

PROGRAM = """
import os
import pathlib
import subprocess
import sys

pathlib.Path("kernel.py").write_text(KERNEL)
os.environ.pop("CUDA_HOME", None)
os.environ.pop("CUDA_PATH", None)
os.environ.update({name: value.replace("$PWD", os.getcwd()) for name, value in ENVIRONMENT.items()})
command = [sys.executable, "kernel.py"]
if HIDDEN:
    pathlib.Path("toolkit").mkdir()
    script = f'mount --bind {TOOLKIT} toolkit && mount -t tmpfs none /usr/local && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command]
sys.exit(subprocess.run(command).returncode)
"""

PACKAGE = Path(sysconfig.get_path("purelib"), "nvidia/cuda_nvcc")
RUNTIME = PACKAGE.with_name("cuda_runtime")
with_packages = pytest.mark.requires(nvidia_cuda_nvcc_cu12="*", nvidia_cuda_runtime_cu12="*")


def installed():
    """Folder of the toolkit below /usr/local; an empty one if there is none."""
    toolkit = Path("/usr/local/cuda").resolve()
    return toolkit if toolkit.is_dir() else Path("/opt")


def compile_kernel(run_script, config, **environment):
    broken = {"CUDA_HOME": "/opt"} if config == "home-points-elsewhere" else {}
    values = {
        "KERNEL": KERNEL,
        "ENVIRONMENT": {**broken, **environment},
        "HIDDEN": config == "toolkit-hidden",
        "TOOLKIT": str(installed()),
    }
    return run_script("".join(f"{name} = {value!r}\n" for name, value in values.items()) + PROGRAM)


def check(output):
    assert "PTX for .target sm_80" in output


def can_hide():
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/usr/local"]
    allowed = shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0
    return bool(allowed) and not sys.base_prefix.startswith("/usr/local")


@pytest.fixture(params=["home-points-elsewhere", "toolkit-hidden"])
def config(request):
    if request.param == "toolkit-hidden" and not can_hide():
        pytest.skip("needs namespaces to hide /usr/local")
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    compile_kernel(run_script, config)


def toolkit_of_packages(home):
    """The packages' files in the places, and under the names, that a toolkit has and Numba looks for."""
    for folder in ("nvvm/lib64", "lib64"):
        (home / folder).mkdir(parents=True)
    (home / "nvvm/lib64/libnvvm.so.4").symlink_to(PACKAGE / "nvvm/lib64/libnvvm.so")
    (home / "nvvm/libdevice").symlink_to(PACKAGE / "nvvm/libdevice")
    (home / "lib64/libcudart.so.12").symlink_to(RUNTIME / "lib/libcudart.so.12")
    return str(home)


@with_packages
@pytest.mark.workaround("set-cuda-home")
def test_set_cuda_home(config, run_script, tmp_path):
    check(compile_kernel(run_script, config, CUDA_HOME=toolkit_of_packages(tmp_path / "cuda-12")))


@with_packages
@pytest.mark.workaround("compiler-from-pip")
def test_compiler_from_pip(config, run_script, tmp_path):
    check(compile_kernel(run_script, config, CUDA_HOME=toolkit_of_packages(tmp_path / "from-pip")))


@with_packages
@pytest.mark.dead_end("home-of-the-package-alone")
def test_home_of_the_package_alone(config, run_script):
    if config != "toolkit-hidden":
        pytest.skip("the loader finds the library of another toolkit")
    compile_kernel(run_script, config, CUDA_HOME=str(PACKAGE))


@with_packages
@pytest.mark.dead_end("library-path")
def test_library_path(config, run_script):
    compile_kernel(run_script, config, LD_LIBRARY_PATH=f"{PACKAGE}/nvvm/lib64:{RUNTIME}/lib")


@with_packages
@pytest.mark.dead_end("numbapro-variables")
def test_numbapro_variables(config, run_script):
    library, device = PACKAGE / "nvvm/lib64/libnvvm.so", PACKAGE / "nvvm/libdevice"
    compile_kernel(run_script, config, NUMBAPRO_NVVM=str(library), NUMBAPRO_LIBDEVICE=str(device))


@with_packages
@pytest.mark.dead_end("home-one-level-down")
def test_home_one_level_down(config, run_script):
    compile_kernel(run_script, config, CUDA_HOME=str(PACKAGE / "nvvm"))


@pytest.mark.dead_end("toolkit-13-from-wheels")
def test_toolkit_13_from_wheels(config, run_script):
    if config != "toolkit-hidden":
        pytest.skip("the loader finds the library of this toolkit by itself")
    if (installed() / "nvvm/lib64").exists() or not (installed() / "nvvm").exists():
        pytest.skip("needs a toolkit laid out as NVIDIA's packages for CUDA 13")
    compile_kernel(run_script, config, CUDA_HOME="$PWD/toolkit")
