# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "jax>=0.4.30"]
# ///
"""JAX is told to use a GPU, in the program or by a variable, where its backend finds none.

Runs on a machine without a GPU. A CPU-only JAX and one with the CUDA plugin say the same there. Why a driver gives no
device, and what to do about that outside of the program, is not staged here.
"""

from pathlib import Path

import pytest

pytestmark = pytest.mark.requires(jax=">=0.4.30", device="cpu")

ASKING = """
import jax
import jax.numpy as jnp

x = jax.device_put(jnp.arange(8.0), jax.devices("gpu")[0])
print("sum of squares", float((x * x).sum()))
"""

TAKING = ASKING.replace('jax.devices("gpu")', "jax.devices()")

CHOOSING = """
import jax
import jax.numpy as jnp

try:
    device = jax.devices("gpu")[0]
except RuntimeError as missing:
    print("no GPU:", missing)
    device = jax.devices("cpu")[0]
x = jax.device_put(jnp.arange(8.0), device)
print("sum of squares", float((x * x).sum()))
"""

PROGRAMS = {
    "gpu-asked-for": (ASKING, {"JAX_PLATFORMS": ""}),
    "platform-name-gpu": (TAKING, {"JAX_PLATFORM_NAME": "gpu"}),
    "platforms-gpu": (TAKING, {"JAX_PLATFORMS": "gpu"}),
}


def run(run_script, config, program=None, **environment):
    """The program, with changes to its environment."""
    written, variables = PROGRAMS[config]
    return run_script(program or written, env={**variables, **environment})


def check(output):
    assert "sum of squares 140.0" in output


@pytest.fixture(params=list(PROGRAMS))
def config(request):
    """How the GPU is asked for."""
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver")
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run(run_script, config)


@pytest.mark.workaround("cpu-on-purpose")
def test_cpu_on_purpose(config, run_script):
    if config == "gpu-asked-for":
        pytest.skip("the program itself asks for a GPU")
    check(run(run_script, config, JAX_PLATFORMS="cpu", JAX_PLATFORM_NAME=""))


@pytest.mark.workaround("let-jax-choose")
def test_let_jax_choose(config, run_script):
    check(run(run_script, config, TAKING, JAX_PLATFORMS="", JAX_PLATFORM_NAME=""))


@pytest.mark.workaround("fall-back-in-the-program")
def test_fall_back_in_the_program(config, run_script):
    if config != "gpu-asked-for":
        pytest.skip("the variable asks, not the program")
    output = run(run_script, config, CHOOSING)
    assert "no GPU:" in output
    check(output)


@pytest.mark.dead_end("platforms-cpu-beside-a-request")
def test_platforms_cpu_beside_a_request(config, run_script):
    if config != "gpu-asked-for":
        pytest.skip("the variable asks, not the program")
    run(run_script, config, JAX_PLATFORMS="cpu")


@pytest.mark.dead_end("set-visible-devices")
def test_set_visible_devices(config, run_script):
    run(run_script, config, CUDA_VISIBLE_DEVICES="0")


@pytest.mark.dead_end("no-preallocation")
def test_no_preallocation(config, run_script):
    run(run_script, config, XLA_PYTHON_CLIENT_PREALLOCATE="false")


@pytest.mark.dead_end("toolkit-on-the-path")
def test_toolkit_on_the_path(config, run_script):
    if not Path("/usr/local/cuda/lib64").is_dir():
        pytest.skip("needs a toolkit in /usr/local/cuda")
    run(run_script, config, LD_LIBRARY_PATH="/usr/local/cuda/lib64", CUDA_HOME="/usr/local/cuda")
