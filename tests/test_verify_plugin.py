"""Scripts of entries under the plugin: what is proven, what is contradicted, what is written down."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kb.models.evidence import Evidence
from kb.verify import collection, record, report, running
from tests.verify_entries import HEAD, write_entry

pytest_plugins = ["pytester"]

FIX = """
@pytest.mark.workaround("use-two")
def test_use_two(config, measure):
    measure.compare(measure(lambda: 1 / (config + 2)), 0.5, 1e-6)
"""
DEAD_END = """
@pytest.mark.dead_end("try-again")
def test_try_again(config):
    1 / config
"""
UNORDERED = "import pytest\n" + FIX + DEAD_END + HEAD
Verify = Callable[..., tuple[pytest.RunResult, list[dict[str, Any]]]]


LOADED = (collection, running, report)
"""Kept loaded, so that a run inside this process does not import them anew each time."""


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def verify(pytester: pytest.Pytester) -> Verify:
    """Runs a script as a user does; the run and its trials."""

    def run(source: str, *options: str, **changes: Any) -> tuple[pytest.RunResult, list[dict[str, Any]]]:
        script = write_entry(pytester.path, source, **changes)
        trials = pytester.path / "trials.jsonl"
        arguments = [*OPTIONS, f"--kb-trials={trials}", script, *options]
        result = pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True)
        lines = trials.read_text().splitlines() if trials.exists() else []
        return result, [found["trial"] for found in map(json.loads, lines) if "trial" in found]

    return run


OPTIONS = ("-p", "kb.verify.plugin", "-p", "no:cacheprovider", "--import-mode=importlib", "--kb-device=cpu")


def outcomes(trials: list[dict[str, Any]]) -> list[tuple[str, str, str, str | None]]:
    return [(trial["id"] or trial["arm"], trial["config"], trial["outcome"], trial["control"]) for trial in trials]


def test_three_arms_that_hold(verify: Verify) -> None:
    result, trials = verify(UNORDERED)
    assert result.ret == 0
    result.assert_outcomes(passed=6)
    assert outcomes(trials) == [
        ("reproduce", "int", "reproduced", None),
        ("try-again", "int", "still_fails", "reproduced"),
        ("use-two", "int", "fixed", "reproduced"),
        ("reproduce", "float", "reproduced", None),
        ("try-again", "float", "still_fails", "reproduced"),
        ("use-two", "float", "fixed", "reproduced"),
    ]
    first, fixed = trials[0], trials[2]
    assert (first["exception"], first["message"], first["regex_matched"]) == (
        "ZeroDivisionError",
        "division by zero",
        True,
    )
    assert first["traceback"].startswith('Traceback (most recent call last):\n  File "verify.py", line ')
    assert fixed["step_seconds"] >= 0
    assert fixed["reference_error"] == 0
    assert fixed["peak_bytes"] is None
    result.stdout.fnmatch_lines(["*= entries =*", "python/zero on cpu, torch *", "  reproduce  [[]int]  reproduced"])


def arm(marker: str, *lines: str) -> str:
    return "\n".join(
        [f"@pytest.mark.{marker}", "def test_arm(config, measure, run_script):", *(f"    {x}" for x in lines)]
    )


CONTRADICTED = {
    "fix-that-breaks-the-numbers": (
        arm('workaround("use-two")', "measure.compare(1 / (config + 3), 0.5, 1e-3)"),
        "wrong_result",
        "relative error",
    ),
    "fix-that-degenerates": (
        arm('workaround("use-two")', "measure.compare([float('nan')], [0.5], 1e-3)"),
        "wrong_result",
        "not finite",
    ),
    "fix-of-another-shape": (
        arm('workaround("use-two")', "measure.compare({'a': [1.0]}, {'a': [1.0, 2.0]}, 1e-3)"),
        "wrong_result",
        "another length",
    ),
    "fix-that-overflows": (
        arm('workaround("use-two")', "measure.compare(1e308, 5e-324, 1e300)"),
        "wrong_result",
        "relative error of result is inf",
    ),
    "fix-with-a-failing-assert": (arm('workaround("use-two")', "assert config == 2"), "wrong_result", "assert"),
    "fix-that-does-not-help": (arm('workaround("use-two")', "1 / config"), "not_fixed", "still raised"),
    "fix-that-fails-otherwise": (arm('workaround("use-two")', "config.nothing"), "not_fixed", "AttributeError"),
    "dead-end-that-works": (arm('dead_end("try-again")', "pass"), "works", "no error"),
    "fix-that-hangs": (
        arm('timeout(0.2)\n@pytest.mark.workaround("use-two")', "while True: pass"),
        "timed_out",
        "no end after 0.2 s",
    ),
}


@pytest.mark.parametrize(("source", "outcome", "reason"), CONTRADICTED.values(), ids=CONTRADICTED.keys())
def test_what_does_not_hold_fails_the_run(verify: Verify, source: str, outcome: str, reason: str) -> None:
    result, trials = verify(HEAD + source, "-k", "int")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    assert (trials[1]["outcome"], trials[1]["control"]) == (outcome, "reproduced")
    assert reason in trials[1]["reason"]
    assert "! " in result.stdout.str()


NOT_REPRODUCED = {
    "other-error": ("{}['x']", "KeyError"),
    "nothing": ("pass", "no error was raised"),
    "other-class": ("library_raises(ValueError('division by zero'))", "does not list this exception class"),
    "staged": ("raise ZeroDivisionError('division by zero')", "the script raised it itself"),
    "asserted": ("assert False, 'division by zero'", "the script raised it itself"),
}


@pytest.mark.parametrize(("line", "reason"), NOT_REPRODUCED.values(), ids=NOT_REPRODUCED.keys())
def test_a_reproduction_must_raise_the_entrys_own_error(verify: Verify, line: str, reason: str) -> None:
    source = f"""
import concurrent.futures
import pytest
def library_raises(error):
    future = concurrent.futures.Future()
    future.set_exception(error)
    future.result()
@pytest.mark.reproduces
def test_reproduces():
    {line}
@pytest.mark.workaround("use-two")
def test_fix():
    pass
"""
    result, trials = verify(source)
    assert result.ret == 1
    assert outcomes(trials) == [
        ("reproduce", "", "not_reproduced", None),
        ("use-two", "", "fixed", "not_reproduced"),
    ]
    assert reason in trials[0]["reason"]
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*its control is not reproduced, so it proves nothing*"])


def test_the_error_may_be_wrapped_or_grouped(verify: Verify) -> None:
    result, trials = verify(
        """
import json, pytest

@pytest.mark.reproduces
def test_wrapped():
    try:
        1 / 0
    except ZeroDivisionError as error:
        json.loads("{")

@pytest.mark.reproduces
def test_grouped():
    try:
        1 / 0
    except ZeroDivisionError as error:
        caught = error
    raise ExceptionGroup("several", [KeyError("x"), caught])
""",
        exceptions=[],
    )
    assert result.ret == 0
    assert [trial["exception"] for trial in trials] == ["ZeroDivisionError", "ZeroDivisionError"]
    assert "JSONDecodeError" in trials[0]["traceback"]
    assert "KeyError" in trials[1]["traceback"]


def test_a_refuted_claim(verify: Verify) -> None:
    source = """
import pytest
@pytest.mark.refutes
def test_refutes(measure):
    measure.compare(4 / 2, 2.0, 0)
@pytest.mark.workaround("use-two")
def test_two(measure):
    measure.compare(4 / 2, 2.0, 0)
@pytest.mark.dead_end("try-again")
def test_dead_end():
    pass
"""
    result, trials = verify(source)
    assert result.ret == 0
    assert outcomes(trials) == [
        ("refute", "", "not_reproduced", None),
        ("try-again", "", "works", "not_reproduced"),
        ("use-two", "", "works_without_fix", "not_reproduced"),
    ]


@pytest.mark.parametrize(
    ("line", "outcome"), [("1 / 0", "reproduced"), ("assert 0", "wrong_result"), ("{}[0]", "fails_differently")]
)
def test_a_refutation_that_does_not_hold(verify: Verify, line: str, outcome: str) -> None:
    result, trials = verify(f"import pytest\n@pytest.mark.refutes\ndef test_refutes():\n    {line}\n")
    assert result.ret == 1
    assert trials[0]["outcome"] == outcome


def test_a_fix_without_a_reproduction_in_its_configuration_proves_nothing(verify: Verify) -> None:
    result, trials = verify(HEAD + '@pytest.mark.workaround("use-two")\ndef test_fix():\n    pass\n')
    assert result.ret == 1
    assert outcomes(trials)[-1] == ("use-two", "", "fixed", None)
    result.stdout.fnmatch_lines(["*nothing reproduces the error in this configuration*"])


def test_an_arm_may_be_run_alone(verify: Verify) -> None:
    result, trials = verify(HEAD + FIX, "-k", "two")
    assert result.ret == 0
    assert {trial["control"] for trial in trials} == {None}
    result.stdout.fnmatch_lines(["*control not run*"])


REQUIRES = {
    'device="cuda"': "needs cuda",
    "capability=(8, 0)": "needs compute capability 8.0, found no GPU",
    "gpus=2": "needs 2 GPUs, found 0",
    'pytest=">=999"': f"needs pytest >=999, found {pytest.__version__}",
    'no_such_thing=">=1"': "needs no-such-thing >=1, not installed",
    'python=">=99"': "needs Python >=99, found ",
    'os="plan9"': "needs plan9, found ",
}


@pytest.mark.parametrize(("needed", "reason"), REQUIRES.items(), ids=REQUIRES.keys())
def test_unmet_needs_skip_with_their_reason(verify: Verify, needed: str, reason: str) -> None:
    result, trials = verify(f"{HEAD}\npytestmark = pytest.mark.requires({needed})\n{FIX}")
    assert result.ret == 0
    result.assert_outcomes(skipped=4)
    assert all(trial["outcome"] == "skipped" and trial["reason"].startswith(reason) for trial in trials)
    result.stdout.fnmatch_lines([f"- reproduce  [[]int]  skipped: {reason}*"])


def test_met_needs_do_not_skip(verify: Verify) -> None:
    met = 'requires(pytest=">=8", python=">=3.11", device="cpu", os=("linux", "macos", "windows"), gpus=0)'
    result, _ = verify(f"{HEAD}\npytestmark = pytest.mark.{met}\n")
    result.assert_outcomes(passed=2)


def test_arms_are_skipped_with_their_control(verify: Verify) -> None:
    source = HEAD.replace("@pytest.mark.reproduces", "@pytest.mark.reproduces\n@pytest.mark.requires(device='cuda')")
    result, trials = verify(source + FIX + DEAD_END)
    assert result.ret == 0
    assert {trial["outcome"] for trial in trials} == {"skipped"}
    assert trials[-1]["reason"] == "its control was skipped: needs cuda"


def test_a_missing_package_of_the_header_skips_the_script(verify: Verify) -> None:
    header = '# /// script\n# dependencies = ["pytest", "no-such-thing>=1"]\n# ///\nimport no_such_thing\n'
    result, trials = verify(header + HEAD, "-rs")
    assert trials == []
    result.stdout.fnmatch_lines(["*needs no-such-thing >=1, not installed*"])


def test_a_skip_inside_an_arm_keeps_its_reason(verify: Verify) -> None:
    _, trials = verify(HEAD + arm('workaround("use-two")', 'pytest.skip("not here")'), "-k", "int")
    assert (trials[1]["outcome"], trials[1]["reason"]) == ("skipped", "not here")


def test_a_fixture_that_raises_is_recorded(verify: Verify) -> None:
    source = (
        HEAD
        + "\n@pytest.fixture\ndef bad(): {}['x']\n@pytest.mark.workaround('use-two')\ndef test_fix(config, bad): 1\n"
    )
    result, trials = verify(source, "-k", "int")
    assert result.ret == 1
    assert (trials[1]["outcome"], trials[1]["exception"]) == ("crashed", "KeyError")


def test_what_is_measured_is_kept(verify: Verify) -> None:
    source = HEAD + arm(
        'workaround("use-two")',
        "steps = []",
        "assert measure(lambda: steps.append(1) or len(steps), repeat=4) == 5",
        "measure.compare({'a': [1.0, 2.0]}, {'a': [1.0, 2.5]}, tolerance=0.3)",
        "measure.record('loss', [float('inf'), 1])",
        "assert not measure.recovers(lambda: 1 / 0)",
    )
    _, trials = verify(source, "-k", "int")
    fixed = trials[1]
    assert fixed["outcome"] == "fixed"
    assert fixed["reference_error"] == pytest.approx(0.5 / 2.5)
    assert fixed["measurements"] == {"loss": ["inf", 1]}
    assert fixed["recovers"] is False
    assert fixed["step_seconds"] >= 0


SCRIPT_ENTRY = {
    "regex": "modulo by zero in real numbers on rank \\d",
    "variants": [],
    "exceptions": ["ArithmeticError"],
}


def test_processes_of_their_own(verify: Verify) -> None:
    source = '''
import pytest
CODE = """
import os, sys, tempfile, time
rank = os.environ["RANK"]
assert os.listdir() == ["script.py"] and os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["KB_DEVICE"] == "cpu"
print("rank", rank, "of", os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"], os.environ["EXTRA"], flush=True)
# A failing process ends the others, so it waits until the other one has said its line.
printed = os.path.join(tempfile.gettempdir(), "printed-" + os.environ["MASTER_PORT"])
if rank == "0":
    open(printed, "w").close()
if rank == os.environ["EXTRA"]:
    while not os.path.exists(printed):
        time.sleep(0.01)
    sys.stderr.write("[rank1]: ArithmeticError: modulo by\\\\n   zero in real\\\\n  numbers on rank 1\\\\n")
    os._exit(3)
"""
@pytest.mark.reproduces
def test_fails(run_script):
    run_script(CODE, nproc=2, env={"EXTRA": "1"})
@pytest.mark.workaround("use-two")
def test_works(run_script):
    output = run_script(CODE, nproc=2, env={"EXTRA": "none"})
    assert sorted(output.splitlines()) == ["rank 0 of 2 127.0.0.1 none", "rank 1 of 2 127.0.0.1 none"]
'''
    result, trials = verify(source, **SCRIPT_ENTRY)
    assert result.ret == 0, result.stdout.str()
    assert trials[0]["outcome"] == "reproduced"
    assert trials[0]["exception"] == "ArithmeticError"
    assert trials[0]["message"] == "modulo by zero in real numbers on rank 1"
    assert "rank 0 of 2" in trials[0]["traceback"]
    assert trials[0]["recovers"] is None


def test_a_process_that_does_not_end_is_ended(verify: Verify) -> None:
    source = """
import pytest
CODE = "import time; print('modulo by zero in real numbers on rank 0', flush=True); time.sleep(600)"
@pytest.mark.reproduces
def test_hangs(run_script):
    run_script(CODE, timeout=1.5)
"""
    result, trials = verify(source, **SCRIPT_ENTRY)
    assert result.ret == 0
    assert trials[0]["regex_matched"] is True


def test_a_process_that_fails_otherwise(verify: Verify) -> None:
    source = """
import pytest
@pytest.mark.reproduces
def test_fails(run_script):
    run_script('import sys; sys.exit(1 / 0)')
"""
    result, trials = verify(source, **SCRIPT_ENTRY)
    assert result.ret == 1
    assert (trials[0]["outcome"], trials[0]["exception"]) == ("not_reproduced", "ZeroDivisionError")


def test_captured_text_is_redacted_shortened_and_capped(verify: Verify) -> None:
    secret = "hf_" + "A1b2C3d4" * 4
    source = f'''
import pytest
CODE = """
import os
for i in range(4000):
    print("noise number", i, os.getcwd()) if i != 2000 else print("modulo by zero in real numbers on rank 7")
print("the end {secret} /home/jane/x")
raise SystemExit(1)
"""
@pytest.mark.reproduces
def test_fails(run_script):
    run_script(CODE)
'''
    _, trials = verify(source, **SCRIPT_ENTRY)
    text = trials[0]["traceback"]
    assert len(text.encode()) <= 16 * 1024
    assert "noise number 0 .\n" in text
    assert "modulo by zero in real numbers on rank 7" in text
    assert "characters left out" in text
    assert secret not in text
    assert text.rstrip().endswith("the end [redacted] ~/x")
    assert trials[0]["outcome"] == "reproduced"


def test_local_paths_do_not_leave_the_machine(verify: Verify, pytester: pytest.Pytester) -> None:
    _, trials = verify(HEAD.replace("1 / config", "measured(lambda: 1 / config)") + "\ndef measured(step): step()\n")
    text = json.dumps(trials)
    assert str(pytester.path) not in text
    assert str(Path(__file__).resolve().parents[1]) not in text
    assert 'File \\"verify.py\\", line' in text


def test_evidence_validates_and_is_never_overwritten(verify: Verify, pytester: pytest.Pytester) -> None:
    result, trials = verify(UNORDERED, "--kb-evidence=out", "--kb-contributor=someone")
    assert result.ret == 0
    [path] = (pytester.path / "out").iterdir()
    data = path.read_bytes()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_cpu_[0-9a-f]{8}\.json", path.name)
    assert path.stem.endswith(hashlib.sha256(data).hexdigest()[:8])
    evidence = Evidence.model_validate_json(data, strict=True)
    assert evidence.entry == "python/zero"
    assert evidence.environment.device == "cpu"
    assert evidence.environment.gpu is None
    assert evidence.run.contributed_by == "someone"
    assert [trial.outcome for trial in evidence.trials] == [trial["outcome"] for trial in trials]
    script = next(pytester.path.glob("entries/*/*/verify.py"))
    assert evidence.verify_sha256 == hashlib.sha256(script.read_bytes()).hexdigest()

    with pytest.raises(FileExistsError):
        record.write(json.loads(data), path.parent)
    assert path.read_bytes() == data
    assert len(list(path.parent.iterdir())) == 1


def test_evidence_survives_text_that_is_not_unicode(verify: Verify, pytester: pytest.Pytester) -> None:
    source = HEAD + arm('workaround("use-two")', "measure.record('name', 'caf\\udce9')")
    assert verify(source, "--kb-evidence=out")[0].ret == 0
    [path] = (pytester.path / "out").iterdir()
    evidence = Evidence.model_validate_json(path.read_bytes(), strict=True)
    assert evidence.trials[1].measurements == {"name": "caf?"}


def test_evidence_names_the_gpu() -> None:
    assert record.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert record.slug(None) == "cpu"


def test_evidence_is_kept_of_what_finished_before_an_interrupt(verify: Verify, pytester: pytest.Pytester) -> None:
    source = HEAD + '@pytest.mark.workaround("use-two")\ndef test_stop(config):\n    raise KeyboardInterrupt\n'
    result, _ = verify(source, "--kb-evidence=out")
    assert result.ret == 2
    [path] = (pytester.path / "out").iterdir()
    assert [trial.outcome for trial in Evidence.model_validate_json(path.read_bytes()).trials] == ["reproduced"]


MALFORMED = {
    "two-claims": (HEAD + "@pytest.mark.reproduces\n" + FIX.lstrip(), "an arm proves one thing"),
    "unknown-id": (HEAD + FIX.replace("use-two", "use-four"), "entry.json has use-two, use-three"),
    "other-parameters": (
        HEAD + "@pytest.mark.parametrize('x', [1, 2])\n@pytest.mark.dead_end('try-again')\ndef test_x(config, x): 1\n",
        "by the `config` fixture only",
    ),
}


@pytest.mark.parametrize(("source", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_scripts_are_refused(verify: Verify, source: str, message: str) -> None:
    result, trials = verify(source)
    assert result.ret not in (0, 1)
    assert message in result.stdout.str() + result.stderr.str()
    assert trials == []


def test_a_broken_entry_is_named(verify: Verify) -> None:
    result, _ = verify(HEAD, regex="(")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*entry.json: not a usable entry*"])


def test_what_was_collected_can_be_listed(verify: Verify, pytester: pytest.Pytester) -> None:
    verify(
        HEAD + FIX + "\ntest_use_two = pytest.mark.fresh(pytest.mark.timeout(7)(test_use_two))",
        "--collect-only",
        "--kb-nodes=nodes.jsonl",
    )
    nodes = [json.loads(line) for line in (pytester.path / "nodes.jsonl").read_text().splitlines()]
    assert [(node["id"], node["config"], node["timeout"], node["fresh"], node["measures"]) for node in nodes] == [
        (None, "int", 120, False, False),
        ("use-two", "int", 7, True, True),
        (None, "float", 120, False, False),
        ("use-two", "float", 7, True, True),
    ]


def test_a_script_may_have_its_own_fixture_of_a_name_we_use(verify: Verify) -> None:
    source = """
import pytest
@pytest.fixture
def device():
    return 0
@pytest.mark.reproduces
def test_reproduces(device):
    1 / device
"""
    assert verify(source)[0].ret == 0


def test_scripts_ignore_the_warning_filters_around_them(verify: Verify, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error")
    source = (
        HEAD
        + arm('workaround("use-two")', "import warnings", "warnings.warn('old')")
        + "\nimport warnings; warnings.warn('x')"
    )
    assert verify(source)[0].ret == 0


# --- other people's tests


def test_nothing_changes_for_other_test_files(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_mine="""
def test_fixture(device): pass
def test_order_2(): pass
def test_order_1(): pass
""",
        verify="def test_verify(measure): pass",
    )
    result = pytester.runpytest_inprocess("-p", "kb.verify.plugin", "-v", "test_mine.py", "verify.py")
    result.assert_outcomes(passed=2, errors=2)
    output = result.stdout.str()
    assert "fixture 'device' not found" in output
    assert "fixture 'measure' not found" in output
    assert "= entries =" not in output
    assert output.index("test_order_2") < output.index("test_order_1")


def test_scripts_are_only_collected_when_named(pytester: pytest.Pytester) -> None:
    script = write_entry(pytester.path, HEAD)
    pytester.makepyfile(test_mine="def test_mine(): pass")
    pytester.runpytest_inprocess("-p", "kb.verify.plugin").assert_outcomes(passed=1)
    result = pytester.runpytest_inprocess(*OPTIONS, "test_mine.py", script)
    result.assert_outcomes(passed=3)


def test_fixtures_do_not_leak_from_scripts(pytester: pytest.Pytester) -> None:
    script = write_entry(pytester.path, HEAD)
    pytester.makepyfile(test_mine="def test_mine(device): pass")
    pytester.runpytest_inprocess(*OPTIONS, script, "test_mine.py").assert_outcomes(passed=2, errors=1)


def test_importing_the_plugin_imports_nothing_beyond_pytest() -> None:
    code = """
import sys, pytest
import _pytest.pytester
before = {name.partition(".")[0] for name in sys.modules}
import kb.verify.plugin
assert not [name for name in sys.modules if name.startswith("kb.") and name not in ("kb.verify", "kb.verify.plugin")]
import kb.verify.collection, kb.verify.running, kb.verify.report
new = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names) - {"kb"}
assert not new, new
"""
    root = str(Path(__file__).resolve().parents[1])
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ, "PYTHONPATH": root})


def test_stored_tracebacks_do_not_name_who_ran_them() -> None:
    from kb.verify.capture import clean

    kept = clean(
        "in /tmp/kb-verify-abc123/7/tmp/pytest-of-jane/pytest-0/test_it0/model.bin, line 3",
        Path("/x/entries/a/b/verify.py"),
    )
    assert kept == "in test_it0/model.bin, line 3"
