# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.0"]
# ///
"""An extension that was linked with a CUDA runtime the loader does not find.

`linked-for-cuda-11` and `opened-by-name` want libcudart.so.11.0, which machines of today do not have;
`linked-for-cuda-of-torch` wants the release that this torch brings in its wheels, hidden from other packages. Where
libcudart.so.11.0 has to exist somewhere, a few lines of C with the soname and symbol version of the real one stand for
it, except in the arms that install NVIDIA's own package.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.requires(torch=">=2.0", os="linux", device="cpu")

EXTENSION = """
#include <Python.h>

int cudaRuntimeGetVersion(int* version);
static PyObject* runtime(PyObject* self, PyObject* none) {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return PyLong_FromLong(version);
}
static PyMethodDef methods[] = {{"runtime", runtime, METH_NOARGS, 0}, {0, 0, 0, 0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native_ops", 0, -1, methods};
PyMODINIT_FUNC PyInit_native_ops(void) { return PyModule_Create(&module); }
"""

LINKED = """
import native_ops

print("CUDA runtime", native_ops.runtime())
"""

OPENED = """
import ctypes

version = ctypes.c_int()
ctypes.CDLL("libcudart.so.11.0").cudaRuntimeGetVersion(ctypes.byref(version))
print("CUDA runtime", version.value)
"""

LOADED = """
print("loaded", *{line.split()[-1] for line in open("/proc/self/maps") if "libcudart" in line})
"""

TOOLKIT = Path("/usr/local/cuda/lib64")
WHEEL = Path(sysconfig.get_path("purelib"), "nvidia/cuda_runtime/lib")
"""Where NVIDIA's package for CUDA 11 and 12 puts its library."""


def release_of_torch():
    """`12` of a torch built for CUDA 12.8; None for the CPU build."""
    return torch.version.cuda.partition(".")[0] if torch.version.cuda else None


def on_loader_path(name):
    return name in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout


def compile_c(source, target, *flags):
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(target), *flags]
    subprocess.run(command, input=source, text=True, check=True)


def runtime_library(folder, release="11.0"):
    """A library that calls itself libcudart of this release; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"libcudart.so.{release}"
    (folder / "versions").write_text(f"{name} {{ global: *; }};")
    code = "int cudaRuntimeGetVersion(int* version) { *version = 11080; return 0; }"
    compile_c(code, folder / name, f"-Wl,-soname,{name},--version-script,{folder / 'versions'}")
    return folder


def extension(place, library):
    """Folder with the extension, linked with this file."""
    compile_c(EXTENSION, place / "native_ops.so", f"-I{sysconfig.get_path('include')}", str(library))
    return place


def wanted(config):
    return release_of_torch() if config == "linked-for-cuda-of-torch" else "11.0"


def run(run_script, config, place, before="", **environment):
    """The program, with an extension whose runtime is gone again after linking."""
    built_with = runtime_library(place / "link", wanted(config))
    extension(place, built_with / f"libcudart.so.{wanted(config)}")
    shutil.rmtree(built_with)
    program = OPENED if config == "opened-by-name" else LINKED
    return run_script(before + program + LOADED, env={"PYTHONPATH": str(place), **environment})


@pytest.fixture(params=["linked-for-cuda-11", "opened-by-name", "linked-for-cuda-of-torch"])
def config(request):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    if request.param == "linked-for-cuda-of-torch" and release_of_torch() is None:
        pytest.skip("needs a CUDA build of torch")
    if on_loader_path(f"libcudart.so.{wanted(request.param)}"):
        pytest.skip("this machine has that runtime")
    return request.param


def not_torchs(config):
    if config == "linked-for-cuda-of-torch":
        pytest.skip("torch brings the runtime of this release")


@pytest.mark.reproduces
def test_reproduces(config, run_script, tmp_path):
    run(run_script, config, tmp_path)


@pytest.mark.workaround("add-to-path")
def test_add_to_path(config, run_script, tmp_path):
    folder = runtime_library(tmp_path / "cuda/lib64", wanted(config))
    assert "CUDA runtime 11080" in run(run_script, config, tmp_path, LD_LIBRARY_PATH=str(folder))


@pytest.mark.workaround("install-the-runtime")
@pytest.mark.requires(nvidia_cuda_runtime_cu11="*")
def test_install_the_runtime(config, run_script, tmp_path):
    """The file counts, not the version it tells: without a driver the runtime of CUDA 11 answers 0."""
    not_torchs(config)
    assert f"loaded {WHEEL}/libcudart.so.11" in run(run_script, config, tmp_path, LD_LIBRARY_PATH=str(WHEEL))


@pytest.mark.workaround("load-the-library-first")
def test_load_the_library_first(config, run_script, tmp_path):
    folder = runtime_library(tmp_path / "cuda/lib64", wanted(config))
    preload = f"import ctypes\nctypes.CDLL({str(folder)!r} + '/libcudart.so.{wanted(config)}', ctypes.RTLD_GLOBAL)\n"
    assert "CUDA runtime 11080" in run(run_script, config, tmp_path, preload)


@pytest.mark.workaround("import-torch-first")
def test_import_torch_first(config, run_script, tmp_path):
    """The version is told by the library that torch has loaded."""
    if config != "linked-for-cuda-of-torch":
        pytest.skip("torch brings the runtime of another release, or none")
    output = run(run_script, config, tmp_path, "import torch\n")
    assert f"CUDA runtime {release_of_torch()}0" in output


@pytest.mark.workaround("rebuild")
def test_rebuild(config, run_script, tmp_path):
    """Linked with the runtime of the toolkit that is installed."""
    if config == "opened-by-name":
        pytest.skip("nothing was built")
    found = next(TOOLKIT.glob("libcudart.so.*"), None)
    if found is None or not on_loader_path(found.name):
        pytest.skip("needs a toolkit in /usr/local/cuda")
    output = run_script(LINKED, env={"PYTHONPATH": str(extension(tmp_path, found))})
    assert f"CUDA runtime {found.name.removeprefix('libcudart.so.')}0" in output


@pytest.mark.dead_end("newer-system-cuda")
def test_newer_system_cuda(config, run_script, tmp_path):
    if not TOOLKIT.is_dir():
        pytest.skip("needs a toolkit in /usr/local/cuda")
    run(run_script, config, tmp_path, LD_LIBRARY_PATH=str(TOOLKIT))


@pytest.mark.dead_end("link-to-another-release")
def test_link_to_another_release(config, run_script, tmp_path):
    if config == "opened-by-name":
        pytest.skip("a library opened by name is not checked for its version")
    found = next(TOOLKIT.glob("libcudart.so.*"), None)
    if found is None:
        pytest.skip("needs a toolkit in /usr/local/cuda")
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / f"libcudart.so.{wanted(config)}").symlink_to(found)
    run(run_script, config, tmp_path, LD_LIBRARY_PATH=str(folder))


@pytest.mark.dead_end("package-alone")
@pytest.mark.requires(nvidia_cuda_runtime_cu11="*")
def test_package_alone(config, run_script, tmp_path):
    not_torchs(config)
    assert (WHEEL / "libcudart.so.11.0").exists()
    run(run_script, config, tmp_path)


@pytest.mark.dead_end("set-path-in-the-program")
def test_set_path_in_the_program(config, run_script, tmp_path):
    folder = runtime_library(tmp_path / "cuda/lib64", wanted(config))
    run(run_script, config, tmp_path, f"import os\nos.environ['LD_LIBRARY_PATH'] = {str(folder)!r}\n")
