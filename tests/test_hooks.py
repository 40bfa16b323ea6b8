"""`kb.install()`: the traceback first and unchanged, then one block; never in the way."""

from __future__ import annotations

import subprocess
import sys
import textwrap

RAISE = 'raise RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16")'


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)


def test_the_block_follows_the_unchanged_traceback() -> None:
    plain, hooked = run(RAISE), run(f"import kb; kb.install()\n{RAISE}")
    assert hooked.returncode == plain.returncode == 1
    assert hooked.stdout == ""
    shown, _, block = hooked.stderr.partition("\n\nkb: ")
    assert shown.splitlines()[-1] == plain.stderr.splitlines()[-1]
    assert block.startswith("pytorch/linear-dtype-mismatch")
    assert "Do first" in block


def test_threads_are_explained_too() -> None:
    code = f"""
    import threading, kb
    kb.install()
    def work():
        {RAISE}
    thread = threading.Thread(target=work); thread.start(); thread.join()
    """
    assert "kb: pytorch/linear-dtype-mismatch" in run(code).stderr


def test_what_is_unknown_or_asked_for_is_left_alone() -> None:
    for ending in ("raise KeyError('rows')", "raise KeyboardInterrupt", "raise SystemExit(3)"):
        plain, hooked = run(ending), run(f"import kb; kb.install()\n{ending}")
        assert hooked.returncode == plain.returncode
        assert "kb:" not in hooked.stderr


def test_hooks_that_were_there_still_run_and_come_back() -> None:
    code = f"""
    import sys, kb
    def mine(kind, error, trace):
        print("mine", kind.__name__)
    sys.excepthook = mine
    kb.install(); kb.install()
    assert sys.excepthook is not mine
    kb.uninstall(); kb.uninstall()
    assert sys.excepthook is mine
    kb.install()
    {RAISE}
    """
    done = run(code)
    assert done.stdout == "mine RuntimeError\n"
    assert "Traceback" not in done.stderr
    assert "kb: pytorch/linear-dtype-mismatch" in done.stderr


def test_a_later_hook_survives_uninstall() -> None:
    code = f"""
    import sys, kb
    kb.install()
    inner = sys.excepthook
    def later(*args):
        print("later"); inner(*args)
    sys.excepthook = later
    kb.uninstall()
    assert sys.excepthook is later
    {RAISE}
    """
    done = run(code)
    assert done.stdout == "later\n"
    assert "Traceback" in done.stderr
    assert "kb:" not in done.stderr


def test_trouble_of_its_own_is_not_shown() -> None:
    code = f"""
    import kb; kb.install()
    from kb import api
    api.match = None
    {RAISE}
    """
    done = run(code)
    assert done.stderr.count("Traceback") == 1
    assert "kb:" not in done.stderr


def test_nothing_heavy_is_loaded() -> None:
    code = f"""
    import sys, atexit, kb
    kb.install()
    atexit.register(lambda: print({{"torch", "pydantic", "typer", "jsonschema", "sqlite_utils"}} & set(sys.modules)))
    {RAISE}
    """
    run(code)  # the index may have to be built once
    assert run(code).stdout == "set()\n"
