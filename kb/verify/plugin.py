"""The pytest plugin that runs entries' `verify.py`: arms, controls, outcome inversion, evidence.

A script is a file named `verify.py` beside an `entry.json`. Every other test file is left exactly as it was: no
fixture, no reordering, no output.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kb.digest import arm_digests
from kb.verify import claims, fixtures, machine, needs, record
from kb.verify.capture import describe
from kb.verify.claims import Claim
from kb.verify.measure import Measure, device_answers, settle
from kb.verify.script import ScriptFailed

TIMEOUT = 120.0
"""Seconds an arm may take unless a `timeout` marker says otherwise."""
PROBE_TIMEOUT = 20.0

_MARKERS = (
    "reproduces: runs the broken program, which must raise the entry's error",
    "refutes: runs a program that is claimed to fail, which must finish with the right result",
    "workaround(id): runs the program with this fix, which must finish with the right result",
    "dead_end(id): runs the program with this wrong fix, which must still fail",
    "requires(capability=, gpus=, device=, os=, python=, DISTRIBUTION=RANGE): what the arm needs, else it is skipped",
    "fresh: the arm needs an interpreter of its own",
    "timeout(seconds): how long the arm may take",
)


class ArmTimedOut(BaseException):
    """The arm's time is over. Not an Exception, so that no `except Exception` of the program swallows it."""


@dataclass(frozen=True)
class Arm:
    """What one collected test is to prove."""

    script: Script
    kind: str
    id: str | None
    test: str
    config: str
    digest: str


@dataclass
class Script:
    """One entry's script in this run."""

    path: Path
    claim: Claim
    source: str
    digests: dict[str, str]
    requirements: list[str]
    controls: dict[str, str] | None = None
    """Control arm by configuration; None if only the run can tell, because arms are methods of classes."""
    default_control: str = claims.REPRODUCE
    marks: list[dict[str, Any]] = field(default_factory=list)
    trials: list[record.Trial] = field(default_factory=list)
    started_at: str | None = None
    started: float = 0.0

    def control_arm(self, config: str) -> str | None:
        """Which kind of arm is the control in this configuration, None if there is none."""
        return self.default_control if self.controls is None else self.controls.get(config)

    def control(self, config: str) -> str | None:
        """Outcome of the reproduction (or refutation) in this configuration, None if it did not run."""
        return claims.control_outcome(trial["outcome"] for trial in self.control_trials(config))

    def control_trials(self, config: str) -> list[record.Trial]:
        """Trials of the reproduction (or refutation) in this configuration."""
        kind = self.control_arm(config)
        return [trial for trial in self.trials if trial["arm"] == kind and trial["config"] == config]


SCRIPT: pytest.StashKey[Script] = pytest.StashKey()
ARM: pytest.StashKey[Arm] = pytest.StashKey()
DONE: pytest.StashKey[bool] = pytest.StashKey()
SCRIPTS: pytest.StashKey[list[Script]] = pytest.StashKey()
POISONED: pytest.StashKey[bool] = pytest.StashKey()


def is_script(path: Path) -> bool:
    """Whether a file is an entry's verification script."""
    return path.name == "verify.py" and path.with_name("entry.json").is_file()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("provenfix", "entries' verification scripts")
    group.addoption("--kb-device", metavar="DEVICE", help="device under test (default: cuda if there is one, else cpu)")
    group.addoption("--kb-evidence", metavar="DIR", help="write one evidence file per entry and run to this folder")
    group.addoption("--kb-trials", metavar="FILE", help="append every finished trial to this file, one JSON line each")
    group.addoption("--kb-nodes", metavar="FILE", help="write what was collected to this file, one JSON line per arm")
    group.addoption("--kb-contributor", metavar="NAME", help="who runs this, if not a maintainer")


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[SCRIPTS] = []
    config.stash[POISONED] = False


# --- collection


class VerifyModule(pytest.Module):
    """The module of an entry's script."""

    def collect(self) -> list[Any]:
        script = self._read()
        if reason := needs.unmet_requirement(script.requirements):
            pytest.skip(reason, allow_module_level=True)
        with warnings.catch_warnings():
            # Libraries warn when imported; whether that is an error is for the project around to say of its own code.
            warnings.simplefilter("default")
            module = self.obj
        fixtures.offer(module)
        self.add_marker(pytest.mark.filterwarnings("default"))
        self.config.stash[SCRIPTS].append(script)
        children = list(super().collect())
        _find_controls(script, children)
        return children

    def _read(self) -> Script:
        try:
            source = self.path.read_text(encoding="utf-8")
            claim = claims.read_claim(self.path.with_name("entry.json"))
            script = Script(self.path, claim, source, arm_digests(source), needs.header_requirements(source))
        except (OSError, ValueError, SyntaxError) as error:
            raise self.CollectError(str(error)) from error
        self.stash[SCRIPT] = script
        return script


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not is_script(module_path):
        return None
    module: pytest.Module = VerifyModule.from_parent(parent, path=module_path)
    return module


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = []
    for index, item in enumerate(items):
        arm = _arm_of(item)
        if arm is not None:
            item.stash[ARM] = arm
            places.append(index)
    for index, item in zip(places, _in_order([items[index] for index in places]), strict=True):
        items[index] = item
    target = config.getoption("kb_nodes")
    if target:
        lines = [json.dumps(_node(items[index])) + "\n" for index in places]
        Path(str(target)).write_text("".join(lines), encoding="utf-8")


def _in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """Script by script and configuration by configuration, the reproduction before what it is the control of."""
    rank = {claims.REPRODUCE: 0, claims.REFUTE: 1, claims.DEAD_END: 2, claims.WORKAROUND: 3}
    groups: dict[tuple[Path, str], int] = {}
    for item in items:
        arm = item.stash[ARM]
        groups.setdefault((arm.script.path, arm.config), len(groups))
    scripts = {path: index for index, path in reversed(list(enumerate(path for path, _ in groups)))}

    def key(item: pytest.Item) -> tuple[int, int, int]:
        arm = item.stash[ARM]
        return scripts[arm.script.path], groups[arm.script.path, arm.config], rank[arm.kind]

    return sorted(items, key=key)


def _arm_of(item: pytest.Item) -> Arm | None:
    module = item.getparent(VerifyModule)
    if module is None or not isinstance(item, pytest.Function):
        return None
    found = [(claims.MARKERS[mark.name], mark) for mark in item.iter_markers() if mark.name in claims.MARKERS]
    if not found:
        return None
    if len(found) > 1:
        raise pytest.UsageError(
            f"{item.nodeid}: an arm proves one thing, so it takes one of {', '.join(claims.MARKERS)}"
        )
    kind, mark = found[0]
    script = module.stash[SCRIPT]
    test = item.originalname
    owner = item.getparent(pytest.Class)
    script.marks.extend(dict(mark.kwargs) for mark in item.iter_markers("requires"))
    return Arm(
        script=script,
        kind=kind,
        id=_claim_id(item, kind, mark, script.claim),
        test=test,
        config=_config_of(item),
        digest=script.digests[f"{owner.name}.{test}" if owner else test],
    )


def _claim_id(item: pytest.Item, kind: str, mark: pytest.Mark, claim: Claim) -> str | None:
    if kind in (claims.REPRODUCE, claims.REFUTE):
        return None
    known = claim.workarounds if kind == claims.WORKAROUND else claim.dead_ends
    if len(mark.args) != 1 or mark.args[0] not in known:
        given = ", ".join(map(repr, mark.args)) or "nothing"
        raise pytest.UsageError(
            f"{item.nodeid}: {mark.name} names {given}; entry.json has {', '.join(known) or 'none'}"
        )
    return str(mark.args[0])


def _config_of(item: pytest.Function) -> str:
    """Id of the configuration: that of the `config` fixture's parameter, empty without one."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return ""
    if set(callspec.params) != {"config"}:
        raise pytest.UsageError(f"{item.nodeid}: arms vary by the `config` fixture only, so that they share controls")
    return str(callspec.id)


def _find_controls(script: Script, children: list[Any]) -> None:
    """Which arm is the control where; a reproduction comes before a refutation of the same configuration."""
    if any(isinstance(child, pytest.Class) for child in children):
        script.default_control = claims.REPRODUCE if ".reproduces" in script.source else claims.REFUTE
        return
    script.controls = {}
    for marker in ("refutes", "reproduces"):
        for child in children:
            if isinstance(child, pytest.Function) and child.get_closest_marker(marker):
                script.controls[_config_of(child)] = claims.MARKERS[marker]


def _node(item: pytest.Item) -> dict[str, Any]:
    """What a runner needs to know to run one arm in a process of its own."""
    arm = item.stash[ARM]
    return {
        "entry": arm.script.claim.entry,
        "script": str(arm.script.path),
        "nodeid": item.nodeid,
        "arm": arm.kind,
        "id": arm.id,
        "test": arm.test,
        "config": arm.config,
        "arm_digest": arm.digest,
        "control_arm": arm.script.control_arm(arm.config),
        "timeout": _timeout(item),
        "fresh": item.get_closest_marker("fresh") is not None,
        "measures": "measure" in getattr(item, "fixturenames", ()),
        "packages": sorted(needs.distributions(arm.script.requirements, arm.script.marks)),
    }


def _timeout(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0] if mark and mark.args else TIMEOUT)


# --- running


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    arm = item.stash.get(ARM, None)
    if arm is None:
        return (yield)
    script = arm.script
    if script.started_at is None:
        script.started_at, script.started = record.now(), time.monotonic()
    try:
        return (yield)
    except pytest.skip.Exception as skipped:
        _finish(item, arm, record_outcome(arm, "skipped", 0.0, reason=claims.fold(str(skipped)) or "skipped"))
        raise
    except Exception as error:
        trial = record_outcome(arm, "crashed", 0.0, reason="a fixture raised before the arm ran")
        _describe_into(trial, describe(error, script.claim, script.path))
        _finish(item, arm, trial)
        raise


@pytest.hookimpl(specname="pytest_runtest_setup", tryfirst=True)
def pytest_kb_skip(item: pytest.Item) -> None:
    """Skips an arm whose needs are not met, before any fixture is made."""
    arm = item.stash.get(ARM, None)
    if arm is not None and (reason := _why_not(item, arm)):
        pytest.skip(reason)


def _why_not(item: pytest.Item, arm: Arm) -> str | None:
    device = fixtures.device_of(item.config)
    for mark in item.iter_markers("requires"):
        if reason := needs.unmet(mark.kwargs, device):
            return reason
    if item.config.stash[POISONED]:
        return "the device stopped answering in this process after an earlier arm; `kb verify` gives each arm its own"
    if arm.kind in (claims.WORKAROUND, claims.DEAD_END) and arm.script.control(arm.config) == "skipped":
        return f"its control was skipped: {arm.script.control_trials(arm.config)[0]['reason']}"
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    arm = pyfuncitem.stash.get(ARM, None)
    if arm is None:
        return (yield)
    started = time.monotonic()
    error: BaseException | None = None
    try:
        with _time_limit(_timeout(pyfuncitem)):
            yield
            settle(fixtures.device_of(pyfuncitem.config))
    except (KeyboardInterrupt, pytest.exit.Exception):
        raise
    except BaseException as caught:
        error = caught
    trial = _judged(pyfuncitem, arm, error, time.monotonic() - started)
    _finish(pyfuncitem, arm, trial)
    if isinstance(error, pytest.skip.Exception):
        raise error
    against = claims.contradiction(arm.kind, trial["outcome"], trial["control"], arm.script.control_arm(arm.config))
    if against:
        detail = [f"{trial['outcome']}: {against}", trial["reason"] or "", trial["traceback"] or ""]
        pytest.fail("\n".join(part for part in detail if part), pytrace=False)
    return True


def _judged(item: pytest.Item, arm: Arm, error: BaseException | None, seconds: float) -> record.Trial:
    script = arm.script
    if isinstance(error, pytest.skip.Exception):
        return record_outcome(arm, "skipped", seconds, reason=claims.fold(str(error)) or "skipped")
    if isinstance(error, ArmTimedOut):
        return record_outcome(arm, "timed_out", seconds, reason=f"no end after {_timeout(item):g} s")
    raised = None if error is None else describe(error, script.claim, script.path)
    verdict = claims.judge(arm.kind, raised, script.control_arm(arm.config))
    trial = record_outcome(arm, verdict.outcome, seconds, reason=verdict.reason)
    if raised is not None:
        _describe_into(trial, raised)
    measure = item.stash.get(fixtures.MEASURE, None)
    if measure is not None:
        _measured_into(trial, measure)
    if error is not None and not isinstance(error, ScriptFailed):
        _probe_into(trial, item)
    return trial


def _probe_into(trial: record.Trial, item: pytest.Item) -> None:
    """Whether the device still answers after an error; if not, no later arm of this process means anything."""
    answers: bool | None = False
    with contextlib.suppress(ArmTimedOut), _time_limit(PROBE_TIMEOUT):
        answers = device_answers(fixtures.device_of(item.config))
    if trial["recovers"] is None:
        trial["recovers"] = answers
    if answers is False:
        item.config.stash[POISONED] = True


def record_outcome(arm: Arm, outcome: str, seconds: float, reason: str | None) -> record.Trial:
    """A trial of an arm with its control."""
    own = arm.kind in (claims.REPRODUCE, claims.REFUTE)
    control = None if own else arm.script.control(arm.config)
    trial = record.trial(arm.kind, arm.id, arm.test, arm.digest, arm.config, control, outcome, seconds)
    trial["reason"] = reason
    return trial


def _describe_into(trial: record.Trial, raised: claims.Raised) -> None:
    trial["exception"] = raised.exception
    trial["message"] = raised.message
    trial["traceback"] = raised.traceback
    trial["regex_matched"] = raised.matched


def _measured_into(trial: record.Trial, measure: Measure) -> None:
    trial["step_seconds"] = measure.step_seconds
    trial["peak_bytes"] = measure.peak_bytes
    trial["reference_error"] = measure.reference_error
    trial["recovers"] = measure.recovered
    trial["measurements"] = measure.measurements


def _finish(item: pytest.Item, arm: Arm, trial: record.Trial) -> None:
    """Keep a trial, and hand it on at once: the process may not live to its end."""
    if item.stash.get(DONE, False):
        return
    item.stash[DONE] = True
    arm.script.trials.append(trial)
    target = item.config.getoption("kb_trials")
    if target:
        line = {
            "entry": arm.script.claim.entry,
            "nodeid": item.nodeid,
            "environment": _environment(item.config, arm.script),
            "trial": trial,
        }
        with Path(str(target)).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises ArmTimedOut in the main thread where signals exist; elsewhere the runner is the limit."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: object) -> None:
        raise ArmTimedOut

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- reporting


def _environment(config: pytest.Config, script: Script) -> dict[str, Any]:
    packages = needs.distributions(script.requirements, script.marks)
    return machine.environment(fixtures.device_of(config), packages)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("kb_evidence")
    if not target:
        return
    for script in session.config.stash[SCRIPTS]:
        if script.trials:
            _write_evidence(session.config, script, Path(str(target)))


def _write_evidence(config: pytest.Config, script: Script, folder: Path) -> None:
    arguments = [str(argument) for argument in config.invocation_params.args]
    document = record.evidence(
        script.claim.entry,
        script.path,
        _environment(config, script),
        script.trials,
        started_at=script.started_at or record.now(),
        seconds=time.monotonic() - script.started,
        command=record.command_line(["pytest", *arguments]),
        contributed_by=config.getoption("kb_contributor"),
    )
    record.write(document, folder)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    scripts = [script for script in config.stash[SCRIPTS] if script.trials]
    if not scripts:
        return
    terminalreporter.section("entries")
    for script in scripts:
        environment = _environment(config, script)
        where = environment["gpu"] or environment["device"]
        terminalreporter.write_line(f"{script.claim.entry} on {where}, torch {environment['torch'] or 'not installed'}")
        for trial in script.trials:
            terminalreporter.write_line(_summary_line(trial, script.control_arm(trial["config"])))


def _summary_line(trial: record.Trial, control_arm: str | None) -> str:
    against = claims.contradiction(trial["arm"], trial["outcome"], trial["control"], control_arm)
    cells = [
        f"{trial['arm'].replace('_', ' ')} {trial['id'] or ''}".strip(),
        f"[{trial['config']}]" if trial["config"] else "",
        trial["outcome"],
        _control_cell(trial),
        f"step {1000 * trial['step_seconds']:.3g} ms" if trial["step_seconds"] is not None else "",
        f"error {trial['reference_error']:.2g}" if trial["reference_error"] is not None else "",
    ]
    mark = "!" if against else ("-" if trial["outcome"] == "skipped" else " ")
    line = f"{mark} " + "  ".join(cell for cell in cells if cell)
    why = "; ".join(part for part in (against, trial["reason"]) if part)
    return f"{line}: {why}" if why else line


def _control_cell(trial: record.Trial) -> str:
    if trial["arm"] in (claims.REPRODUCE, claims.REFUTE):
        return ""
    return f"control {trial['control'] or 'not run'}"
