# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.6"]
# ///
"""Inductor asks the host for a C++ compiler, and what stands on PATH does not do.

Three folders are put on PATH in turn: an empty one, which stands for a machine where no compiler is installed; one with
a `g++` that finds no headers; and one with a `g++` that stays at C++11, which stands for a compiler years older than
torch. The two are short shell scripts around the g++ of this machine, so every complaint is the compiler's own.
"""

import os
import shutil

import pytest

pytestmark = [pytest.mark.requires(torch=">=2.6", os="linux", device="cpu"), pytest.mark.timeout(240)]

PROGRAM = """
import torch


def wave(x):
    return torch.sin(x) * 2 + 1


x = torch.linspace(-1, 1, 64)
compiled = torch.compile(wave)
torch.testing.assert_close(compiled(x).double(), wave(x.double()), rtol=1e-6, atol=1e-6)
print("as in float64")
"""

WRAPPERS = {
    "compiler-hidden": None,
    "headers-hidden": 'exec {real} -nostdinc "$@"',
    "older-standard": 'exec {real} "$@" -std=c++11',
}


def real_compiler():
    return str(shutil.which("g++"))


def path_with(folder, wrapper):
    """PATH with this folder first and, if it holds no compiler, without any folder that does."""
    folder.mkdir()
    others = os.environ["PATH"].split(os.pathsep)
    if wrapper:
        folder.joinpath("g++").write_text(f"#!/bin/sh\n{wrapper.format(real=real_compiler())}\n")
        folder.joinpath("g++").chmod(0o755)
    else:
        others = [part for part in others if not shutil.which("g++", path=part)]
    return os.pathsep.join([str(folder), *others])


@pytest.fixture(params=list(WRAPPERS))
def config(request, tmp_path):
    """What is wrong with the compiler."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return request.param


def run(run_script, config, place, program=PROGRAM, **environment):
    variables = {"PATH": path_with(place / "bin", WRAPPERS[config]), "TORCHINDUCTOR_CACHE_DIR": str(place / "cache")}
    return run_script(program, env={**variables, **environment}, timeout=200)


def check(output):
    assert "as in float64" in output


@pytest.mark.reproduces
def test_reproduces(config, run_script, tmp_path):
    run(run_script, config, tmp_path)


@pytest.mark.workaround("install-compiler")
def test_install_compiler(config, run_script, tmp_path):
    """The compiler and its headers are where the system's packages put them."""
    if config == "older-standard":
        pytest.skip("a compiler is installed, and finds its headers")
    check(run(run_script, config, tmp_path, PATH=os.environ["PATH"]))


@pytest.mark.workaround("newer-compiler")
def test_newer_compiler(config, run_script, tmp_path):
    if config == "compiler-hidden":
        pytest.skip("there is no other compiler to point to")
    check(run(run_script, config, tmp_path, CXX=real_compiler()))


@pytest.mark.workaround("run-eager")
def test_run_eager(config, run_script, tmp_path):
    check(run(run_script, config, tmp_path, TORCHDYNAMO_DISABLE="1"))


@pytest.mark.workaround("backend-without-compiler")
def test_backend_without_compiler(config, run_script, tmp_path):
    program = PROGRAM.replace("torch.compile(wave)", 'torch.compile(wave, backend="aot_eager")')
    check(run(run_script, config, tmp_path, program))


@pytest.mark.dead_end("set-cc")
def test_set_cc(config, run_script, tmp_path):
    run(run_script, config, tmp_path, CC=real_compiler())


@pytest.mark.dead_end("one-compile-thread")
def test_one_compile_thread(config, run_script, tmp_path):
    run(run_script, config, tmp_path, TORCHINDUCTOR_COMPILE_THREADS="1")
