"""Arms in processes of their own: whatever one of them does, the others run and the record says what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kb.errors import KbError, UsageError
from kb.models.evidence import Evidence
from kb.verify import processes, runner
from kb.verify.runner import Report, ScriptRun
from tests.verify_entries import HEAD, write_entry

pytestmark = pytest.mark.skipif(not processes.can_fork(), reason="needs processes that can be forked")

GOOD = """
@pytest.mark.workaround("use-three")
def test_use_three(config, measure):
    measure.compare(1 / (config + 3), 1 / 3, 1e-6)
"""
Run = Callable[..., ScriptRun]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs one script; what became of it."""

    def one(source: str, **options: Any) -> ScriptRun:
        changes = options.pop("entry", {})
        script = write_entry(tmp_path, source, **changes)
        report = runner.run([script.parent], device="cpu", grace=0.5, **options)
        assert len(report.runs) == 1
        return report.runs[0]

    return one


def arm(marker: str, *lines: str) -> str:
    return "\n".join(
        [f"@pytest.mark.{marker}", "def test_arm(config, measure):", *(f"    {line}" for line in lines), ""]
    )


def outcomes(one: ScriptRun) -> list[tuple[str, str, str, str | None]]:
    return [(trial["id"] or trial["arm"], trial["config"], trial["outcome"], trial["control"]) for trial in one.trials]


def test_arms_are_paired_with_their_controls_and_written_down(tmp_path: Path) -> None:
    source = HEAD + GOOD + arm('dead_end("try-again")', "1 / config")
    script = write_entry(tmp_path, source)
    seen = []
    report = runner.run([script.parent], device="cpu", evidence=tmp_path / "out", on_trial=seen.append)
    one = report.runs[0]
    assert outcomes(one) == [
        ("reproduce", "int", "reproduced", None),
        ("try-again", "int", "still_fails", "reproduced"),
        ("use-three", "int", "fixed", "reproduced"),
        ("reproduce", "float", "reproduced", None),
        ("try-again", "float", "still_fails", "reproduced"),
        ("use-three", "float", "fixed", "reproduced"),
    ]
    assert (report.exit_code, one.contradictions()) == (0, [])
    assert [(progress.done, progress.known, progress.against) for progress in seen] == [
        (done, 6, None) for done in range(1, 7)
    ]
    assert one.evidence
    evidence = Evidence.model_validate_json(one.evidence.read_bytes(), strict=True)
    assert [trial.outcome for trial in evidence.trials] == [trial["outcome"] for trial in one.trials]
    assert evidence.run.command == "kb verify python/zero --device cpu"
    assert not list(script.parent.glob("__pycache__"))


CONTRADICTED = {
    "a fix that breaks the numbers": (
        arm('workaround("use-two")', "measure.compare([1 / (config + 3)], [0.5], 1e-3)"),
        "wrong_result",
        "the relative error of result[0] is 0.333",
    ),
    "a dead end that suddenly works": (
        arm('dead_end("try-again")', "1 / (config + 1)"),
        "works",
        "no error was raised",
    ),
    "a fix that does not help": (arm('workaround("use-two")', "1 / config"), "not_fixed", "is still raised"),
}


@pytest.mark.parametrize(("source", "outcome", "reason"), CONTRADICTED.values(), ids=CONTRADICTED.keys())
def test_a_contradicted_claim_is_reported(run: Run, source: str, outcome: str, reason: str) -> None:
    one = run(HEAD + source, cases=["int"])
    assert one.trials[1]["outcome"] == outcome
    assert reason in one.trials[1]["reason"]
    assert [trial["test"] for trial, _ in one.contradictions()] == ["test_arm"]
    assert Report([one], 0.0).exit_code == 1


def test_a_reproduction_that_raises_another_error_proves_nothing(run: Run) -> None:
    one = run(HEAD.replace("1 / config", "{}[config]") + GOOD, cases=["int"])
    assert outcomes(one) == [
        ("reproduce", "int", "not_reproduced", None),
        ("use-three", "int", "fixed", "not_reproduced"),
    ]
    assert "KeyError" in one.trials[0]["reason"]
    assert len(one.contradictions()) == 2


DISASTERS = {
    "segfault": (["import ctypes; ctypes.string_at(0)"], "crashed", "the process was ended by SIGSEGV"),
    "abort": (["import os; os.abort()"], "crashed", "the process was ended by SIGABRT"),
    "exit": (["import os; os._exit(0)"], "crashed", "the process ended with exit code 0 before the arm did"),
    "hang": (["while True: pass"], "timed_out", "no end after 1 s"),
    "deaf hang": (
        ["import signal, time", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])", "time.sleep(600)"],
        "timed_out",
        "no end after 1 s",
    ),
    "runaway allocation": (
        ["held = []", "while True: held.append(bytearray(8_000_000))"],
        "crashed",
        "killed, because it held more memory than allowed",
    ),
    "allocation by a child": (
        ["import os", "os.waitpid(os.fork() or hold(), 0)"],
        "crashed",
        "killed, because it held more memory than allowed",
    ),
    "kills its server": (
        ["import os; os.kill(os.getppid(), 9)", "import time; time.sleep(60)"],
        "crashed",
        "killed from",
    ),
}
if processes.LINUX:
    lines = [
        "import os, pathlib, time",
        "server = pathlib.Path(f'/proc/{os.getppid()}/stat').read_text()",
        "os.kill(int(server.rpartition(')')[2].split()[1]), 9)",
        "time.sleep(60)",
    ]
    DISASTERS["kills them all"] = (lines, "crashed", "killed from")
HOLD = """
def hold():
    held = []
    while True: held.append(bytearray(8_000_000))
"""


@pytest.mark.parametrize(("lines", "outcome", "reason"), DISASTERS.values(), ids=DISASTERS.keys())
def test_a_disaster_is_recorded_and_stays_alone(run: Run, lines: list[str], outcome: str, reason: str) -> None:
    one = run(
        HEAD + HOLD + arm('workaround("use-two")', *lines) + GOOD, cases=["int"], timeout=1.0, memory_limit=400 << 20
    )
    assert outcomes(one) == [
        ("reproduce", "int", "reproduced", None),
        ("use-two", "int", outcome, "reproduced"),
        ("use-three", "int", "fixed", "reproduced"),
    ]
    assert one.trials[1]["reason"].startswith(reason)
    assert [trial["id"] for trial, _ in one.contradictions()] == ["use-two"]


def test_what_a_crashed_process_printed_is_kept(run: Run) -> None:
    lines = ["import os", "os.write(2, b'terminate: division by zero in /home/jane/x\\n')", "os.abort()"]
    trial = run(HEAD + arm('workaround("use-two")', *lines), cases=["int"]).trials[1]
    assert "terminate: division by zero in ~/x" in trial["traceback"]
    assert "Fatal Python error: Aborted" in trial["traceback"]
    assert trial["regex_matched"] is True


def test_local_paths_stay_out_of_the_record(run: Run, tmp_path: Path) -> None:
    source = HEAD + arm('workaround("use-two")', "measure.compare(1, 2, 0)")
    crash = ["import os, tempfile", "print(os.getcwd(), tempfile.gettempdir(), __file__, flush=True)", "os.abort()"]
    one = run(source + arm('workaround("use-three")', *crash).replace("test_arm", "test_crash"), cases=["int"])
    text = "\n".join(trial["traceback"] for trial in one.trials)
    assert one.trials[1]["outcome"] == "wrong_result"
    for local in (str(tmp_path), "kb-verify-", "measure.py", str(Path(__file__).parents[1])):
        assert local not in text


def test_a_reproduction_that_crashes_is_no_control(run: Run) -> None:
    one = run(HEAD.replace("1 / config", "__import__('os').abort()") + GOOD, cases=["int"])
    assert outcomes(one) == [("reproduce", "int", "crashed", None), ("use-three", "int", "fixed", "crashed")]
    assert len(one.contradictions()) == 2


def test_arms_start_in_an_empty_folder_without_network_libraries(run: Run) -> None:
    lines = [
        "import os, tempfile",
        "assert os.listdir() == []",
        "assert os.environ['HF_HUB_OFFLINE'] == os.environ['TRANSFORMERS_OFFLINE'] == '1'",
        "open('left-behind', 'w').close()",
        "measure.record('where', [os.getcwd(), tempfile.mkdtemp()])",
    ]
    one = run(HEAD + arm('workaround("use-two")', *lines))
    places = [trial["measurements"]["where"] for trial in one.trials if trial["id"]]
    assert len({folder for pair in places for folder in pair}) == 4
    assert not any(Path(folder).exists() for pair in places for folder in pair)


def test_arms_see_no_network_but_loopback_where_the_system_allows_it(run: Run) -> None:
    lines = ["import socket", "measure.record('names', [name for _, name in socket.if_nameindex()])"]
    source = HEAD + arm('workaround("use-two")', *lines)
    trial = run(source, cases=["int"]).trials[1]
    code = "from kb.verify.processes import leave_network; raise SystemExit(not leave_network())"
    root = str(Path(__file__).resolve().parents[1])
    allowed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}).returncode == 0
    assert (trial["measurements"]["names"] == ["lo"]) >= allowed


def test_processes_that_an_arm_leaves_behind_are_ended(run: Run) -> None:
    lines = [
        "import subprocess, sys",
        "left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)",
        "measure.record('pid', left.pid)",
        "left.returncode = 0",
    ]
    one = run(HEAD + arm('workaround("use-two")', *lines), cases=["int"])
    with pytest.raises(ProcessLookupError):
        os.kill(one.trials[1]["measurements"]["pid"], 0)


def test_arms_are_forked_from_one_import_unless_they_ask_for_a_fresh_interpreter(run: Run) -> None:
    record = ["import os", "measure.record('pids', [IMPORTED_IN, os.getpid()])"]
    source = HEAD + "import os\nIMPORTED_IN = os.getpid()\n"
    source += arm('workaround("use-two")', *record)
    source += arm('fresh\n@pytest.mark.workaround("use-three")', *record).replace("test_arm", "test_fresh")
    one = run(source)
    forked = [trial["measurements"]["pids"] for trial in one.trials if trial["id"] == "use-two"]
    fresh = [trial["measurements"]["pids"] for trial in one.trials if trial["id"] == "use-three"]
    assert len({imported for imported, _ in forked}) == 1
    assert len({own for _, own in forked} | {imported for imported, _ in forked}) == 3
    assert [imported for imported, _ in fresh] == [own for _, own in fresh]


def test_arms_run_side_by_side_but_those_that_measure_run_alone(run: Run, tmp_path: Path) -> None:
    source = f"""{HEAD}
import pathlib, time
def meet(config):
    pathlib.Path({str(tmp_path)!r}, str(config)).touch()
    while not all(pathlib.Path({str(tmp_path)!r}, name).exists() for name in ("0", "0.0")):
        time.sleep(0.01)
@pytest.mark.dead_end("try-again")
def test_meets_the_other(config):
    meet(config)
    1 / config
@pytest.mark.workaround("use-two")
def test_alone(config, measure):
    started = time.time()
    time.sleep(0.2)
    measure.record("time", [started, time.time()])
"""
    one = run(source, jobs=3, timeout=20.0)
    assert {trial["outcome"] for trial in one.trials} == {"reproduced", "still_fails", "fixed"}
    first, second = sorted(trial["measurements"]["time"] for trial in one.trials if trial["id"] == "use-two")
    assert first[1] <= second[0]


def test_without_cost_no_arm_runs_alone_and_none_is_timed(run: Run, tmp_path: Path) -> None:
    source = f"""{HEAD}
import pathlib, time
@pytest.mark.workaround("use-two")
def test_meets_the_other(config, measure):
    pathlib.Path({str(tmp_path)!r}, str(config)).touch()
    while not all(pathlib.Path({str(tmp_path)!r}, name).exists() for name in ("0", "0.0")):
        time.sleep(0.01)
    calls = []
    measure(lambda: calls.append(1))
    measure.record("calls", len(calls))
"""
    one = run(source, jobs=3, timeout=20.0, cost=False)
    fixed = [trial for trial in one.trials if trial["id"] == "use-two"]
    assert [(trial["outcome"], trial["measurements"], trial["step_seconds"]) for trial in fixed] == [
        ("fixed", {"calls": 1}, None)
    ] * 2


def test_what_cannot_run_here_is_skipped_with_its_reason(run: Run) -> None:
    source = HEAD.replace("@pytest.mark.reproduces", "@pytest.mark.requires(device='cuda')\n@pytest.mark.reproduces")
    one = run(source + GOOD, cases=["int"])
    assert [(trial["outcome"], trial["reason"]) for trial in one.trials] == [
        ("skipped", "needs cuda"),
        ("skipped", "its control was skipped: needs cuda"),
    ]
    assert Report([one], 0.0).exit_code == 3


def test_cases_bring_their_controls(run: Run) -> None:
    source = HEAD + GOOD + arm('workaround("use-two")', "pass")
    assert outcomes(run(source, cases=["use-two"])) == [
        ("reproduce", "int", "reproduced", None),
        ("use-two", "int", "fixed", "reproduced"),
        ("reproduce", "float", "reproduced", None),
        ("use-two", "float", "fixed", "reproduced"),
    ]


def test_a_case_nobody_has_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="no arm is called use-four"):
        run(HEAD, cases=["use-four"])


def test_an_entry_without_a_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no verify\.py"):
        runner.run([tmp_path])


def test_a_script_that_cannot_be_imported_does_not_stop_the_others(tmp_path: Path) -> None:
    sources = {
        "a/crash": "import os\nos.abort()\n",
        "b/error": HEAD + "1 / 0\n",
        "c/missing": '# /// script\n# dependencies = ["no-such-thing"]\n# ///\nimport no_such_thing\n',
        "d/empty": "import pytest\n",
        "e/good": HEAD,
    }
    entries = [write_entry(tmp_path, source, id=name).parent for name, source in sources.items()]
    report = runner.run(entries, device="cpu")
    problems = [(one.entry, one.problem) for one in report.runs]
    assert [name for name, _ in problems] == list(sources)
    assert [problem.skipped for _, problem in problems if problem] == [False, False, True, False]
    reasons = [problem.reason for _, problem in problems if problem]
    assert "ends the process by signal 6" in reasons[0]
    assert "ZeroDivisionError" in reasons[1]
    assert "needs no-such-thing, not installed" in reasons[2]
    assert "it has no arms" in reasons[3]
    assert [trial["outcome"] for trial in report.runs[4].trials] == ["reproduced", "reproduced"]
    assert report.exit_code == 2


def test_an_interpreter_that_cannot_run_pytest_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    script = write_entry(tmp_path, HEAD)
    with pytest.raises(KbError, match="No module named 'pytest'"):
        runner.run([script.parent], python=str(python))


INTERRUPTED = """
import sys
from pathlib import Path
from kb.verify import runner
entry, out = map(Path, sys.argv[1:])
report = runner.run([entry], device="cpu", evidence=out, on_trial=lambda progress: print(progress.done, flush=True))
raise SystemExit(report.exit_code)
"""


def test_a_ctrl_c_keeps_what_finished_and_ends_the_rest(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    lines = [
        "import os, pathlib, time",
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))",
        "time.sleep(600)",
    ]
    script = write_entry(tmp_path, HEAD + arm('workaround("use-two")', *lines))
    root = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(script.parent), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout
    with process:
        assert process.stdout.readline() == b"1\n"
        while not pid_file.exists() or not pid_file.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    [path] = (tmp_path / "out").iterdir()
    assert [trial.outcome for trial in Evidence.model_validate_json(path.read_bytes()).trials] == ["reproduced"]
