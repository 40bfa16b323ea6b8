# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "bitsandbytes>=0.43"]
# ///
"""torch reports CUDA and bitsandbytes cannot load a native library for it.

No GPU is needed, and none is used: torch is made to report CUDA of a certain version, and bitsandbytes then looks for
its library in earnest, which is what `simulated-…` says. A checkout that was never built is a copy of the installed
package without its libraries. A fix passes if weights come back from four bits as they should.
"""

import logging
import os
import pathlib
import shutil
from importlib import metadata

import pytest
import torch

pytestmark = pytest.mark.requires(bitsandbytes=">=0.43")


@pytest.fixture(
    params=[
        pytest.param("simulated-cuda-without-runtime", marks=pytest.mark.requires(bitsandbytes=">=0.46", device="cpu")),
        pytest.param("simulated-cuda-not-shipped", marks=pytest.mark.requires(bitsandbytes=">=0.50")),
        pytest.param("simulated-cuda-never-built", marks=pytest.mark.requires(bitsandbytes=">=0.50")),
    ]
)
def config(request):
    """Why there is no library: its runtime is missing, no wheel has one for this CUDA, or it was never compiled."""
    return request.param


def copy_package(folder, monkeypatch, libraries=True):
    """The installed package once more, in front of it on the path, with or without its native libraries."""
    installed = pathlib.Path(metadata.distribution("bitsandbytes").locate_file("bitsandbytes"))
    left_out = shutil.ignore_patterns("__pycache__", *([] if libraries else ["libbitsandbytes_*"]))
    shutil.copytree(installed, folder / "bitsandbytes", ignore=left_out)
    monkeypatch.syspath_prepend(folder)


def simulate(config, folder, monkeypatch):
    """Torch reports an A100 with CUDA 12.8, or with a version that nobody has, unless the GPU is hidden."""
    if config == "simulated-cuda-never-built":
        copy_package(folder, monkeypatch, libraries=False)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(visible))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.version, "cuda", "99.0" if config == "simulated-cuda-not-shipped" else "12.8")
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda *_: 0, raising=False)


def native_call():
    """What only the native library can do."""
    import bitsandbytes

    bitsandbytes.functional.get_paged(64, 64)


@pytest.mark.reproduces
def test_reproduces(config, tmp_path, monkeypatch):
    simulate(config, tmp_path, monkeypatch)
    native_call()


@pytest.mark.workaround("hide-the-gpu")
@pytest.mark.requires(bitsandbytes=">=0.49")
def test_hide_the_gpu(config, tmp_path, monkeypatch, measure):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    simulate(config, tmp_path, monkeypatch)
    import bitsandbytes

    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    assert packed.dtype == torch.uint8
    # NF4's widest gap is nearly a third of a block's largest number, and a value is at most half of that off.
    measure.compare(bitsandbytes.functional.dequantize_4bit(packed, state), weight, tolerance=0.2)


@pytest.mark.dead_end("cuda-version-variable-alone")
def test_cuda_version_variable_alone(config, tmp_path, monkeypatch):
    monkeypatch.setenv("BNB_CUDA_VERSION", "130" if config == "simulated-cuda-never-built" else "126")
    simulate(config, tmp_path, monkeypatch)
    native_call()


@pytest.mark.dead_end("link-libcuda")
@pytest.mark.requires(os="linux", device="cpu")
def test_link_libcuda(config, run_script):
    """The loader reads its path when a process starts, so this one is a process of its own."""
    if config != "simulated-cuda-without-runtime":
        pytest.skip("no file of the loader's is missing here")
    program = """
    import os
    os.symlink("/usr/lib/wsl/lib/libcuda.so.1", "libcuda.so")
    import torch
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *_: (8, 0)
    torch.version.cuda = "12.8"
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    import bitsandbytes
    bitsandbytes.functional.get_paged(64, 64)
    """
    run_script(program, env={"LD_LIBRARY_PATH": "."}, timeout=100)


@pytest.mark.dead_end("reinstall-same-release")
def test_reinstall_same_release(config, tmp_path, monkeypatch):
    """A fresh copy of the same files, without libraries where the release has none."""
    if config != "simulated-cuda-never-built":
        copy_package(tmp_path, monkeypatch)
    simulate(config, tmp_path, monkeypatch)
    native_call()


@pytest.mark.dead_end("silence-the-import")
def test_silence_the_import(config, tmp_path, monkeypatch):
    """The lines logged at import go away, and the first native call says the same."""
    logging.disable(logging.CRITICAL)
    simulate(config, tmp_path, monkeypatch)
    native_call()
