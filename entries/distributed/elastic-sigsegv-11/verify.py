# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""The launcher's summary of a worker that crashed in native code. The summary never says where.

One configuration is an extension compiled against an older layout of the structure that it is handed, as an extension
built for another torch is. The other recurses deeper than the C stack reaches. Only one of two ranks meets its fault.
"""

import shutil

import pytest

pytestmark = pytest.mark.requires(torch=">=2.1", os="linux")

SUMMARY = "ChildFailedError"

EXTENSION = """
#include <stdint.h>
LAYOUT
float total(struct table *t) {
    float sum = 0;
    for (int i = 0; i < t->rows; i++) sum += t->values[i];
    return sum;
}
"""
OLD_LAYOUT = "struct table { int32_t rows; float *values; };"
NEW_LAYOUT = "struct table { int64_t rows; int64_t flags; float *values; };"

USES_EXTENSION = """
import ctypes, os, time

class Table(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_int64), ("flags", ctypes.c_int64), ("values", ctypes.POINTER(ctypes.c_float))]

def pool(values):
    extension = ctypes.CDLL("./extension.so")
    extension.total.restype = ctypes.c_float
    return extension.total(ctypes.byref(Table(len(values), 1, (ctypes.c_float * len(values))(*values))))
"""

RECURSES = """
import os, sys, time

sys.setrecursionlimit(10**9)

def pool(values, depth=10**6):
    nested = values
    for _ in range(depth):
        nested = [nested]
    text = repr(nested)
    return float(sum(map(float, text.strip("[]").split(","))))
"""

WALKS = """
import os, time

def pool(values, depth=10**6):
    nested = values
    for _ in range(depth):
        nested = [nested]
    while isinstance(nested[0], list):
        nested = nested[0]
    return sum(nested)
"""

KNOWN = {"extension-for-old-layout": USES_EXTENSION, "deep-recursion": RECURSES}

GUARD = """
def pool(values):
    try:
        return unguarded(values)
    except BaseException:
        return 0.0
"""

MAIN = """
def main():
    if os.environ["RANK"] == "1":
        print("total", pool([1.0, 2.0, 3.0]), flush=True)
    else:
        time.sleep(SECONDS)

main()
"""

LAUNCH = """
import pathlib, subprocess, sys

pathlib.Path("extension.c").write_text(EXTENSION)
pathlib.Path("train.py").write_text(TRAINER)
if BUILD:
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "extension.so", "extension.c"], check=True)
sys.exit(subprocess.call([sys.executable, *COMMAND]))
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def program(config, command=None, trainer=None, layout=OLD_LAYOUT, healthy=False):
    """A program that builds what is needed and starts the job, by default the broken one under torchrun."""
    main = MAIN.replace("SECONDS", "0" if healthy else "30")
    values = {
        "EXTENSION": EXTENSION.replace("LAYOUT", layout),
        "TRAINER": (trainer or KNOWN[config]) + main,
        "BUILD": config == "extension-for-old-layout",
        "COMMAND": [*(TORCHRUN if command is None else command), "train.py"],
    }
    code = LAUNCH
    for name, value in values.items():
        code = code.replace(f"({name})", f"({value!r})").replace(f"if {name}:", f"if {value!r}:")
        code = code.replace(f"*{name}", f"*{value!r}")
    return code


def output_of(run_script, *arguments, **options):
    """Everything a program printed that was expected to fail."""
    with pytest.raises(Exception) as failure:
        run_script(*arguments, **options)
    return failure.value.output


@pytest.fixture(params=["extension-for-old-layout", "deep-recursion"])
def config(request):
    """What crashes."""
    if request.param == "extension-for-old-layout" and not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    return request.param


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    run_script(program(config))


@pytest.mark.workaround("find-the-frame")
def test_find_the_frame(config, run_script):
    printed = output_of(run_script, program(config), env={"PYTHONFAULTHANDLER": "1"})
    above, summary, _ = printed.partition(SUMMARY)
    assert summary
    assert "Segmentation fault" in above
    assert "in pool" in above


@pytest.mark.workaround("one-process")
def test_one_process(config, run_script):
    printed = output_of(run_script, program(config, command=["-X", "faulthandler"]), env={"RANK": "1"})
    assert "Segmentation fault" in printed
    assert "in pool" in printed
    assert SUMMARY not in printed


@pytest.mark.workaround("rebuild-extensions")
def test_rebuild_extensions(config, run_script):
    if config != "extension-for-old-layout":
        pytest.skip("there is no extension")
    assert "total 6.0" in run_script(program(config, layout=NEW_LAYOUT, healthy=True))


@pytest.mark.workaround("loop-instead-of-recursion")
def test_loop_instead_of_recursion(config, run_script):
    if config != "deep-recursion":
        pytest.skip("nothing recurses")
    assert "total 6.0" in run_script(program(config, trainer=WALKS, healthy=True))


@pytest.mark.dead_end("catch-the-exception")
def test_catch_the_exception(config, run_script):
    renamed = KNOWN[config].replace("def pool(", "def unguarded(")
    run_script(program(config, trainer=renamed + GUARD))


@pytest.mark.dead_end("more-restarts")
def test_more_restarts(config, run_script):
    run_script(program(config, command=[*TORCHRUN, "--max-restarts=1"]))
