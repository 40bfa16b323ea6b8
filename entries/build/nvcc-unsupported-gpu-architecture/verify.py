# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""nvcc, or torch's list in front of it, is asked for an architecture it does not know.

A small library is compiled with the real nvcc of this machine, as a build file would: for an architecture that CUDA 13
has dropped, for one that only CUDA 13.5 and later have, and for what TORCH_CUDA_ARCH_LIST says. The kernel is compiled
and not launched.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytestmark = [pytest.mark.requires(torch=">=2.1", os="linux"), pytest.mark.timeout(120)]

PROGRAM = r'''
import ctypes
import pathlib
import re
import subprocess
import sys

from torch.utils.cpp_extension import _get_cuda_arch_flags

pathlib.Path("ops.cu").write_text("""
__global__ void scale(float* values, float factor) { values[threadIdx.x] *= factor; }
extern "C" int twice(int number) { return 2 * number; }
""")
flags = FLAGS or _get_cuda_arch_flags([])
command = [NVCC, *flags, "--no-compress", "-shared", "-Xcompiler", "-fPIC", "-o", "libops.so", "ops.cu"]
if subprocess.run(command).returncode != 0:
    sys.exit(1)
assert ctypes.CDLL("./libops.so").twice(21) == 42
code = pathlib.Path("libops.so").read_bytes()
print("PTX for", re.findall(rb"\.target (sm_\w+)", code), "machine code", b".nv.info._Z5scalePff" in code)
'''

DROPPED, NEWER, COMMON = "70", "107", "90"


def gencode(arch, code):
    return [f"-gencode=arch=compute_{arch},code={code}"]


def build(run_script, flags=(), nvcc="nvcc", arch_list="13.7"):
    """Compile with these flags or, where there are none, with those that torch makes of TORCH_CUDA_ARCH_LIST."""
    settings = f"NVCC = {str(nvcc)!r}\nFLAGS = {list(flags)!r}\n"
    return run_script(settings + PROGRAM, env={"TORCH_CUDA_ARCH_LIST": arch_list})


def asked(config):
    return {"architecture-dropped": DROPPED, "card-newer-than-toolkit": NEWER}.get(config)


@pytest.fixture(params=["architecture-dropped", "card-newer-than-toolkit", "list-newer-than-torch"])
def config(request):
    if shutil.which("nvcc") is None or shutil.which("g++") is None:
        pytest.skip("needs nvcc and g++")
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    if f"compute_{asked(request.param)}" in known:
        pytest.skip(f"this nvcc knows compute_{asked(request.param)}")
    return request.param


def broken_flags(config):
    number = asked(config)
    return gencode(number, f"sm_{number}") if number else ()


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    build(run_script, broken_flags(config))


@pytest.mark.workaround("newer-toolkit")
@pytest.mark.requires(nvidia_cuda_nvcc=">=13.5")
def test_newer_toolkit(config, run_script):
    """The compiler of the packages on PyPI, which is newer than the one on PATH."""
    if config != "card-newer-than-toolkit":
        pytest.skip("a newer toolkit knows no more of this architecture")
    nvcc = Path(sysconfig.get_path("purelib"), "nvidia/cu13/bin/nvcc")
    assert "sm_107" in build(run_script, gencode(NEWER, f"compute_{NEWER}"), nvcc)


@pytest.mark.workaround("compile-for-older-arch")
def test_compile_for_older_arch(config, run_script):
    if config == "architecture-dropped":
        pytest.skip("the card is older than anything this toolkit knows")
    flags = gencode(COMMON, f"compute_{COMMON}") if config == "card-newer-than-toolkit" else ()
    assert "sm_90" in build(run_script, flags, arch_list="9.0+PTX")


@pytest.mark.workaround("remove-dropped-arch")
def test_remove_dropped_arch(config, run_script):
    if config != "architecture-dropped":
        pytest.skip("the architecture is wanted")
    assert "machine code True" in build(run_script, arch_list="8.0;9.0")


@pytest.mark.workaround("unset-arch-list")
@pytest.mark.requires(device="cuda")
def test_unset_arch_list(config, run_script):
    if config != "list-newer-than-torch":
        pytest.skip("the build file names the architecture itself")
    assert "machine code True" in build(run_script, arch_list="")


@pytest.mark.dead_end("unset-list-without-gpu")
@pytest.mark.requires(device="cpu")
def test_unset_list_without_gpu(config, run_script):
    if config != "list-newer-than-torch":
        pytest.skip("the build file names the architecture itself")
    build(run_script, arch_list="")


@pytest.mark.dead_end("change-code-only")
def test_change_code_only(config, run_script):
    number = asked(config)
    if number is None:
        pytest.skip("torch makes both halves of the flag")
    build(run_script, gencode(COMMON, f"sm_{number}"))


@pytest.mark.dead_end("allow-unsupported-compiler")
def test_allow_unsupported_compiler(config, run_script):
    flags = broken_flags(config)
    build(run_script, [*flags, "-allow-unsupported-compiler"] if flags else ())
