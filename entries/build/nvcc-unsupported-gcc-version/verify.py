# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest"]
# ///
"""nvcc refuses a host compiler that is newer than itself.

The newer compiler is played by a `gcc` and a `g++` that come first on PATH and claim to be release 99, which no toolkit
accepts; behind them stands the real compiler of this machine, which is the older one of the fixes. nvcc, its headers
and CMake are real, so the refusal is theirs. The kernel is compiled and not launched.
"""

import shutil

import pytest

pytestmark = [pytest.mark.requires(os="linux"), pytest.mark.timeout(120)]

KERNEL = """
__global__ void scale(float* values, float factor) { values[threadIdx.x] *= factor; }
extern "C" int twice(int number) { return 2 * number; }
"""

PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(ops LANGUAGES CXX CUDA)
add_library(ops SHARED ops.cu)
set_target_properties(ops PROPERTIES CUDA_ARCHITECTURES 80)
"""

PROGRAM = """
import ctypes
import os
import pathlib
import subprocess
import sys

pathlib.Path("ops.cu").write_text(KERNEL)
pathlib.Path("CMakeLists.txt").write_text(PROJECT)
pathlib.Path("newer").mkdir()
for name in ("gcc", "g++"):
    wrapper = pathlib.Path("newer", name)
    wrapper.write_text(f'#!/bin/sh\\nexec {REAL}/{name} -U__GNUC__ -D__GNUC__=99 "$@"\\n')
    wrapper.chmod(0o755)
os.environ["PATH"] = os.path.abspath("newer") + os.pathsep + os.environ["PATH"]
os.environ.update(ENVIRONMENT)
for command in COMMANDS:
    if subprocess.run(command).returncode != 0:
        sys.exit(1)
print("twice 21 is", ctypes.CDLL("./libops.so").twice(21))
assert b"scale" in pathlib.Path("libops.so").read_bytes()
"""

COMMANDS = {
    "nvcc": [["nvcc", "-shared", "-Xcompiler", "-fPIC", "-o", "libops.so", "ops.cu"]],
    "cmake": [["cmake", "-S", ".", "-B", "."], ["cmake", "--build", "."]],
}


def compiler_folder():
    return str(shutil.which("g++")).removesuffix("/g++")


def build(run_script, config, *flags, **environment):
    """Run the first command with more flags, and the others; `REAL` in them is the folder of the older compiler."""
    first, *others = COMMANDS[config]
    values = {
        "KERNEL": KERNEL,
        "PROJECT": PROJECT,
        "ENVIRONMENT": environment,
        "COMMANDS": [[first[0], *flags, *first[1:]], *others],
    }
    code = "".join(f"{name} = {value!r}\n" for name, value in {**values, "REAL": compiler_folder()}.items())
    return run_script(code + PROGRAM)


def check(output):
    assert "twice 21 is 42" in output


@pytest.fixture(params=list(COMMANDS))
def config(request):
    missing = [name for name in ("nvcc", "g++", request.param) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    build(run_script, config)


@pytest.mark.workaround("older-gcc")
def test_older_gcc(config, run_script):
    check(build(run_script, config, NVCC_PREPEND_FLAGS=f"-ccbin {compiler_folder()}/g++"))


@pytest.mark.workaround("host-compiler-of-cmake")
def test_host_compiler_of_cmake(config, run_script):
    if config == "nvcc":
        pytest.skip("the build does not use CMake")
    check(build(run_script, config, f"-DCMAKE_CUDA_HOST_COMPILER={compiler_folder()}/g++"))


@pytest.mark.workaround("older-gcc-first-on-path")
def test_older_gcc_first_on_path(config, run_script):
    check(build(run_script, config, PATH=f"{compiler_folder()}:/usr/local/bin:/usr/bin:/bin"))


@pytest.mark.dead_end("cuda-nvcc-flags")
def test_cuda_nvcc_flags(config, run_script):
    if config == "nvcc":
        pytest.skip("the build does not use CMake")
    build(run_script, config, "-DCUDA_NVCC_FLAGS=-allow-unsupported-compiler")


@pytest.mark.dead_end("set-cc-and-cxx")
def test_set_cc_and_cxx(config, run_script):
    folder = compiler_folder()
    build(run_script, config, CC=f"{folder}/gcc", CXX=f"{folder}/g++")


@pytest.mark.dead_end("older-language-standard")
def test_older_language_standard(config, run_script):
    flag = "-std=c++17" if config == "nvcc" else "-DCMAKE_CUDA_STANDARD=17"
    build(run_script, config, flag)
