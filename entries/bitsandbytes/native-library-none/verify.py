# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.4", "bitsandbytes>=0.43"]
# ///
"""bitsandbytes was imported without any native library, and the first call of a C function fails.

A copy of the installed package without its libraries stands for a checkout that was never built, or for a wheel that
has none for this system. The process is shown no GPU. A fix passes if the numbers are those of the formula.
"""

import importlib
import logging
import pathlib
import shutil
import sys
import warnings
from importlib import metadata

import pytest
import torch

pytestmark = pytest.mark.requires(bitsandbytes=">=0.43")


@pytest.fixture(
    params=[
        pytest.param("library-missing", marks=pytest.mark.requires(bitsandbytes=">=0.46")),
        pytest.param("library-missing-before-0-46", marks=pytest.mark.requires(bitsandbytes="<0.46")),
    ]
)
def config(request, tmp_path, monkeypatch):
    """The wording; the process is shown no GPU, and imports the copy without libraries."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    left_out = shutil.ignore_patterns("__pycache__", "libbitsandbytes_*")
    shutil.copytree(installed(), tmp_path / "bitsandbytes", ignore=left_out)
    monkeypatch.syspath_prepend(tmp_path)
    return request.param


def installed():
    return pathlib.Path(metadata.distribution("bitsandbytes").locate_file("bitsandbytes"))


def weight():
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


def round_trip():
    """To 8 bits and back."""
    import bitsandbytes

    codes, state = bitsandbytes.functional.quantize_blockwise(weight())
    assert codes.dtype == torch.uint8
    return bitsandbytes.functional.dequantize_blockwise(codes, state)


def native_call(config):
    """Old releases need their library to quantize on the CPU, recent ones for managed memory."""
    import bitsandbytes

    if config == "library-missing-before-0-46":
        round_trip()
    else:
        bitsandbytes.functional.get_paged(64, 64)


@pytest.mark.reproduces
def test_reproduces(config, measure):
    try:
        native_call(config)
    finally:
        measure.recovers(lambda: (weight() @ weight()).isfinite().all())


@pytest.mark.workaround("install-the-wheel")
@pytest.mark.requires(bitsandbytes="<0.46")
def test_install_the_wheel(config, measure, tmp_path):
    """The installed package is the wheel; the checkout is no longer in front of it."""
    sys.path.remove(str(tmp_path))
    assert list(installed().glob("libbitsandbytes_cpu*"))
    measure.compare(round_trip(), weight(), tolerance=0.05)


@pytest.mark.workaround("torch-code-of-recent-release")
@pytest.mark.requires(bitsandbytes=">=0.50")
def test_torch_code_of_recent_release(config, measure):
    """Recent releases quantize in plain torch where there is no library."""
    measure.compare(round_trip(), weight(), tolerance=0.05)


@pytest.mark.workaround("do-without-bitsandbytes")
def test_do_without_bitsandbytes(config, measure):
    parameter = torch.nn.Parameter(weight().clone())
    parameter.grad = weight().flip(0)
    torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0).step()
    # Of the first step only the signs of the gradients are left.
    gradient = weight().flip(0).double()
    measure.compare(parameter.detach(), weight().double() - 0.1 * gradient / (gradient.abs() + 1e-8), tolerance=1e-5)


@pytest.mark.dead_end("ignore-the-warning")
def test_ignore_the_warning(config):
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    native_call(config)


@pytest.mark.dead_end("name-a-cuda-version")
def test_name_a_cuda_version(config, monkeypatch):
    monkeypatch.setenv("BNB_CUDA_VERSION", "126")
    native_call(config)


@pytest.mark.dead_end("copy-a-cuda-library")
@pytest.mark.requires(device="cpu", os="linux")
def test_copy_a_cuda_library(config, tmp_path):
    """One of the wheel's CUDA libraries is put where the CPU one should be; it finds no CUDA runtime."""
    sys.path.remove(str(tmp_path))
    importlib.invalidate_caches()
    library = sorted(installed().glob("libbitsandbytes_cuda12*.so"))[-1]
    shutil.copy(library, tmp_path / "bitsandbytes" / "libbitsandbytes_cpu.so")
    sys.path.insert(0, str(tmp_path))
    native_call(config)


@pytest.mark.dead_end("import-again")
def test_import_again(config):
    import bitsandbytes.cextension

    importlib.reload(bitsandbytes.cextension)
    native_call(config)
