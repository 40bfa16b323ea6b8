# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest"]
# ///
"""Programs that want the driver's library where the loader does not find it.

One opens libcuda.so.1 by name, one imports an extension that is linked with it, as TensorRT's and others' are, and one
asks pynvml for the driver's other library. The machine really has no driver. Where a fix needs the library to exist
somewhere, a few lines of C stand for it: what is shown is how the loader finds it, not what a driver would do.
"""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.requires(os="linux", device="cpu")

EXTENSION = """
#include <Python.h>

#ifdef WITH_CUDA
int cuInit(unsigned flags);
#else
static int cuInit(unsigned flags) { return 100; }
#endif
static PyObject* start(PyObject* self, PyObject* none) { return PyLong_FromLong(cuInit(0)); }
static PyObject* twice(PyObject* self, PyObject* number) { return PyLong_FromLong(2 * PyLong_AsLong(number)); }
static PyMethodDef methods[] = {{"start", start, METH_NOARGS, 0}, {"twice", twice, METH_O, 0}, {0, 0, 0, 0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native_ops", 0, -1, methods};
PyMODINIT_FUNC PyInit_native_ops(void) { return PyModule_Create(&module); }
"""

PROGRAMS = {
    "opened-by-name": """
import ctypes

driver = ctypes.CDLL("libcuda.so.1")
print("cuInit returns", driver.cuInit(0))
""",
    "linked-extension": """
import native_ops

print("twice 21 is", native_ops.twice(21))
print("cuInit returns", native_ops.start())
""",
    "management-library": """
import pynvml

pynvml.nvmlInit()
""",
}

GUARDED = """
try:
{program}
except Exception as missing:
    print("no driver:", missing)
print("goes on with", "the CPU")
"""


def compile_c(source, target, *flags):
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(target), *flags]
    subprocess.run(command, input=source, text=True, check=True)


def library(folder, name, code):
    """A library whose cuInit returns this code; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    compile_c(f"int cuInit(unsigned flags) {{ return {code}; }}", folder / name, "-Wl,-soname,libcuda.so.1")
    return folder


def extension(place, *flags):
    """Folder with the extension, compiled anew."""
    stubs = library(place / "link", "libcuda.so", 34)
    include = f"-I{sysconfig.get_path('include')}"
    compile_c(EXTENSION, place / "native_ops.so", include, f"-L{stubs}", *flags)
    shutil.rmtree(stubs)
    return place


def run(run_script, config, place, program=None, **environment):
    extension(place, "-DWITH_CUDA", "-lcuda")
    return run_script(program or PROGRAMS[config], env={"PYTHONPATH": str(place), **environment})


@pytest.fixture(params=list(PROGRAMS))
def config(request):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    if request.param == "management-library" and importlib.util.find_spec("pynvml") is None:
        pytest.skip("needs nvidia-ml-py")
    found = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout
    if "libcuda.so.1" in found or "libnvidia-ml.so.1" in found:
        pytest.skip("this machine has a driver")
    return request.param


def only_libcuda(config):
    if config == "management-library":
        pytest.skip("nothing here stands for the management library")


@pytest.mark.reproduces
def test_reproduces(config, run_script, tmp_path):
    run(run_script, config, tmp_path)


@pytest.mark.workaround("cpu-package")
def test_cpu_package(config, run_script, tmp_path):
    if config != "linked-extension":
        pytest.skip("the program itself asks for the driver")
    output = run_script(PROGRAMS[config], env={"PYTHONPATH": str(extension(tmp_path))})
    assert "twice 21 is 42" in output


@pytest.mark.workaround("guard-the-import")
def test_guard_the_import(config, run_script, tmp_path):
    program = GUARDED.format(program="".join(f"    {line}\n" for line in PROGRAMS[config].strip().splitlines()))
    output = run(run_script, config, tmp_path, program)
    assert "no driver:" in output
    assert "goes on with the CPU" in output


@pytest.mark.workaround("add-to-path")
def test_add_to_path(config, run_script, tmp_path):
    only_libcuda(config)
    folder = library(tmp_path / "wsl/lib", "libcuda.so.1", 0)
    assert "cuInit returns 0" in run(run_script, config, tmp_path, LD_LIBRARY_PATH=str(folder))


@pytest.mark.workaround("compat-or-stubs")
def test_compat_or_stubs(config, run_script, tmp_path):
    """The toolkit's stub, which answers every call with error 34, under the name that programs ask for."""
    only_libcuda(config)
    folder = library(tmp_path / "stubs", "libcuda.so", 34)
    (folder / "libcuda.so.1").symlink_to("libcuda.so")
    assert "cuInit returns 34" in run(run_script, config, tmp_path, LD_LIBRARY_PATH=str(folder))


@pytest.mark.dead_end("stubs-folder-as-it-is")
def test_stubs_folder_as_it_is(config, run_script, tmp_path):
    only_libcuda(config)
    folder = library(tmp_path / "stubs", "libcuda.so", 34)
    run(run_script, config, tmp_path, LD_LIBRARY_PATH=str(folder))


@pytest.mark.dead_end("set-path-in-the-program")
def test_set_path_in_the_program(config, run_script, tmp_path):
    only_libcuda(config)
    folder = library(tmp_path / "wsl/lib", "libcuda.so.1", 0)
    late = f"import os\nos.environ['LD_LIBRARY_PATH'] = {str(folder)!r}\n"
    run(run_script, config, tmp_path, late + PROGRAMS[config])


@pytest.mark.dead_end("toolkit-libraries")
def test_toolkit_libraries(config, run_script, tmp_path):
    toolkit = Path("/usr/local/cuda/lib64")
    if not toolkit.is_dir():
        pytest.skip("needs a toolkit in /usr/local/cuda")
    run(run_script, config, tmp_path, LD_LIBRARY_PATH=f"{toolkit}{os.pathsep}/usr/local/cuda/lib")
