"""`%load_ext kb` in a real IPython shell."""

from __future__ import annotations

import subprocess
import sys
import textwrap

RAISE = 'raise RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16")'


def cells(*sources: str) -> str:
    """Output of a shell that runs cells one after the other."""
    code = f"""
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance(colors="nocolor")
    for source in {list(sources)!r}:
        shell.run_cell(source)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_answer_stands_below_the_traceback() -> None:
    shown = cells("%load_ext kb", RAISE)
    assert shown.index("Traceback") < shown.index("kb: pytorch/linear-dtype-mismatch")
    assert shown.count("RuntimeError: mat1 and mat2") == 1


def test_an_unknown_error_looks_as_ever() -> None:
    assert cells("%load_ext kb", "raise KeyError('rows')") == cells("raise KeyError('rows')")


def test_the_magic_gives_the_whole_answer_and_entries() -> None:
    shown = cells("%load_ext kb", "%kb", RAISE, "%kb", "%kb pytorch/load-weights-only")
    assert "there was no exception yet" in shown
    assert "Do not" in shown
    assert "pytorch/load-weights-only" in shown


def test_it_can_be_unloaded() -> None:
    assert "kb:" not in cells("%load_ext kb", "%unload_ext kb", RAISE)


def test_a_notebook_gets_markdown() -> None:
    from kb import api
    from kb.integrations.notebook import Answer

    result = api.match("RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16")
    assert Answer(result)._repr_markdown_().startswith("### pytorch/linear")
    assert Answer(result, brief=True)._repr_markdown_().startswith("```text\nkb: pytorch/linear")
