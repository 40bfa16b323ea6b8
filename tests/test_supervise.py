"""`kb run -- CMD`: the program as if it had been started directly, then an explanation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kb.integrations.supervise import Tail

RAISE = 'raise RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16")'
posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


def kb_run(*command: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "kb", "run", "--", *command], capture_output=True, text=True, check=False, **more
    )


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


def test_output_passes_and_a_death_is_explained() -> None:
    done = kb_run(*python(f"print('step 1'); {RAISE}"))
    assert done.returncode == 1
    assert done.stdout == "step 1\n"
    traceback, _, block = done.stderr.partition("\n\nkb: ")
    assert traceback.rstrip().endswith("Float and BFloat16")
    assert block.startswith("pytorch/linear-dtype-mismatch")


def test_success_is_silent() -> None:
    done = kb_run(*python("print('fine')"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_exit_codes_are_kept() -> None:
    assert kb_run(*python("raise SystemExit(7)")).returncode == 7


@posix
def test_a_signal_is_told_as_shells_tell_it() -> None:
    assert kb_run(*python("import os; os.kill(os.getpid(), 9)")).returncode == 137


def test_standard_input_goes_to_the_program() -> None:
    assert kb_run(*python("print(input())"), input="hello\n").stdout == "hello\n"


def test_a_program_that_is_not_there() -> None:
    done = kb_run("no-such-program-anywhere")
    assert done.returncode == 2
    assert "cannot start no-such-program-anywhere" in done.stderr


def test_options_of_the_program_are_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kb", "run", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--full", "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "['--full', '--help']\n"


@posix
def test_what_is_sent_to_us_reaches_the_program() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saving', flush=True), sys.exit(5)))\n"
        "print('ready', flush=True)\ntime.sleep(30)"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "kb", "run", "--", *python(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("saving\n", 5)


@posix
def test_a_terminal_stands_for_a_terminal() -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kb", "run", "--", *python("import sys; print(sys.stdout.isatty(), 'x')")]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while b"\n" not in shown:
        shown += os.read(ours, 1024)
    assert process.wait(timeout=20) == 0
    os.close(ours)
    assert shown.replace(b"\r\n", b"\n").startswith(b"True x\n")


@posix
def test_a_process_left_behind_is_not_waited_for() -> None:
    done = kb_run("sh", "-c", "sleep 60 & echo started", timeout=30)
    assert (done.stdout, done.returncode) == ("started\n", 0)


def test_what_a_worker_left_in_its_error_file_is_explained(tmp_path: Path) -> None:
    told = {"message": {"message": "…", "extraInfo": {"py_callstack": "Traceback (most recent call last):\n  File \"t.py\", line 1, in <module>\nRuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16\n"}}}  # fmt: skip
    (tmp_path / "told.json").write_text(json.dumps(told), encoding="utf-8")
    code = (
        "import os, shutil, sys\n"
        f"shutil.copy({str(tmp_path / 'told.json')!r}, os.environ['TORCHELASTIC_ERROR_FILE'])\n"
        "print('torch.distributed.elastic.multiprocessing.errors.ChildFailedError:', file=sys.stderr)\nsys.exit(1)"
    )
    assert "kb: pytorch/linear-dtype-mismatch" in kb_run(*python(code)).stderr


def test_a_long_log_is_kept_at_both_ends() -> None:
    tail = Tail(head=10, tail=100)
    for number in range(1_000):
        tail.add(b"%04d " % number)
    text = tail.text()
    assert text.startswith("0000 0001 ")
    assert text.endswith("0998 0999 ")
    assert len(text) < 200
    assert f"{tail.dropped} bytes left out" in text


def test_an_error_at_the_end_of_a_long_run_is_found() -> None:
    done = kb_run(*python(f"for n in range(300000): print('step', n, 'loss', 0.5)\n{RAISE}"))
    assert done.stdout.count("\n") == 300_000
    assert "kb: pytorch/linear-dtype-mismatch" in done.stderr
