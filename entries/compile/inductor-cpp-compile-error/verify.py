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
import torch

pytestmark = [pytest.mark.requires(torch=">=2.6", os="linux", device="cpu"), pytest.mark.timeout(240)]

WRAPPERS = {
    "compiler-hidden": None,
    "headers-hidden": 'exec {real} -nostdinc "$@"',
    "older-standard": 'exec {real} "$@" -std=c++11',
}


@pytest.fixture(params=list(WRAPPERS))
def config(request, tmp_path, monkeypatch):
    """Puts the folder on PATH; the id says what is wrong with it."""
    real = shutil.which("g++")
    if real is None:
        pytest.skip("needs g++")
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("REAL_CXX", real)
    monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
    folder = tmp_path / "bin"
    folder.mkdir()
    wrapper = WRAPPERS[request.param]
    if wrapper:
        folder.joinpath("g++").write_text(f"#!/bin/sh\n{wrapper.format(real=real)}\n")
        folder.joinpath("g++").chmod(0o755)
    # Inductor calls openssl too, so the rest of PATH stays where it does not hold a compiler.
    others = [part for part in os.environ["PATH"].split(os.pathsep) if wrapper or not shutil.which("g++", path=part)]
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), *others]))
    return request.param


def wave(x):
    return torch.sin(x) * 2 + 1


def run():
    return torch.compile(wave)(torch.linspace(-1, 1, 64))


def check(measure, result):
    measure.compare(result, wave(torch.linspace(-1, 1, 64, dtype=torch.float64)), tolerance=1e-6)


@pytest.mark.reproduces
def test_reproduces(config):
    run()


@pytest.mark.workaround("install-compiler")
def test_install_compiler(config, measure, monkeypatch):
    """The compiler and its headers are where the system's packages put them."""
    if config == "older-standard":
        pytest.skip("a compiler is installed, and finds its headers")
    monkeypatch.setenv("PATH", os.environ["REAL_PATH"])
    check(measure, run())


@pytest.mark.workaround("newer-compiler")
def test_newer_compiler(config, measure):
    if config == "compiler-hidden":
        pytest.skip("there is no other compiler to point to")
    with torch._inductor.config.patch({"cpp.cxx": (None, os.environ["REAL_CXX"])}):
        check(measure, run())


@pytest.mark.workaround("run-eager")
def test_run_eager(config, measure):
    with torch.compiler.set_stance("force_eager"):
        check(measure, run())


@pytest.mark.workaround("backend-without-compiler")
def test_backend_without_compiler(config, measure):
    compiled = torch.compile(wave, backend="aot_eager")
    check(measure, compiled(torch.linspace(-1, 1, 64)))


@pytest.mark.dead_end("set-cc")
def test_set_cc(config, monkeypatch):
    monkeypatch.setenv("CC", os.environ["REAL_CXX"])
    run()


@pytest.mark.dead_end("one-compile-thread")
def test_one_compile_thread(config):
    with torch._inductor.config.patch(compile_threads=1):
        run()
