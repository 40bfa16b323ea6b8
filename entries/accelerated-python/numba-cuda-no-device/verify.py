# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "numba>=0.57", "numpy"]
# ///
"""The first CUDA call of a Numba program on a machine where the driver has nothing to offer.

`no-driver-library` is this machine as it is, without libcuda. In the other two a library of three lines of C stands for
the driver of a machine whose driver answers cuInit with an error: 100 where the process sees no GPU, 803 where driver
and library do not fit. Numba, and what it makes of the answer, is real.
"""

import ctypes.util
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.requires(numba=">=0.57", os="linux", device="cpu")

PROGRAM = """
import numpy as np
from numba import cuda

@cuda.jit
def double(values):
    index = cuda.grid(1)
    if index < values.size:
        values[index] *= 2

values = np.arange(32, dtype=np.float32)
double[1, 32](values)
print("sum", values.sum())
"""

CHOOSING = """
import numpy as np
from numba import cuda, njit

@cuda.jit
def double_on_gpu(values):
    index = cuda.grid(1)
    if index < values.size:
        values[index] *= 2

@njit
def double_on_cpu(values):
    for index in range(values.size):
        values[index] *= 2

values = np.arange(32, dtype=np.float32)
if cuda.is_available():
    double_on_gpu[1, 32](values)
else:
    print("no CUDA:", cuda.cuda_error() or "no driver")
    double_on_cpu(values)
print("sum", values.sum())
"""

LATE = "import os\nimport numba.cuda\nos.environ['NUMBA_ENABLE_CUDASIM'] = '1'\n"
CODES = {"no-driver-library": None, "driver-sees-no-device": 100, "driver-and-library-differ": 803}


def check(output):
    assert "sum 992.0" in output


@pytest.fixture(params=list(CODES))
def config(request, tmp_path):
    """Environment variables under which the program runs."""
    if ctypes.util.find_library("cuda") is not None:
        pytest.skip("this machine has a driver")
    code = CODES[request.param]
    if code is None:
        return {}
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = tmp_path / "libcuda.so.1"
    source = f"int cuInit(unsigned flags) {{ return {code}; }}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=source, text=True, check=True)
    return {"NUMBA_CUDA_DRIVER": str(library)}


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run_script(PROGRAM, env=config)


@pytest.mark.workaround("simulator")
def test_simulator(config, run_script):
    check(run_script(PROGRAM, env={**config, "NUMBA_ENABLE_CUDASIM": "1"}))


@pytest.mark.workaround("ask-first")
def test_ask_first(config, run_script):
    output = run_script(CHOOSING, env=config)
    assert "no CUDA:" in output
    check(output)


@pytest.mark.dead_end("set-visible-devices")
def test_set_visible_devices(config, run_script):
    run_script(PROGRAM, env={**config, "CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.dead_end("disable-jit")
def test_disable_jit(config, run_script):
    run_script(PROGRAM, env={**config, "NUMBA_DISABLE_JIT": "1"})


@pytest.mark.dead_end("simulator-after-import")
def test_simulator_after_import(config, run_script):
    run_script(LATE + PROGRAM, env=config)


@pytest.mark.dead_end("install-toolkit")
def test_install_toolkit(config, run_script):
    if shutil.which("nvcc") is None:
        pytest.skip("needs a toolkit")
    run_script(PROGRAM, env={**config, "CUDA_HOME": "/usr/local/cuda", "LD_LIBRARY_PATH": "/usr/local/cuda/lib64"})
