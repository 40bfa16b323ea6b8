"""Running arms: needs, time limit, outcome inversion, and the trial that is kept of each."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from kb.verify import claims, fixtures, record
from kb.verify.capture import describe
from kb.verify.collection import Arm, arm_of, timeout_of, unmet
from kb.verify.measure import Measure, device_answers, settle
from kb.verify.script import ScriptFailed

PROBE_TIMEOUT = 20.0
"""Seconds in which a device must answer after an error."""

_DONE: pytest.StashKey[bool] = pytest.StashKey()
_POISONED: pytest.StashKey[bool] = pytest.StashKey()


class ArmTimedOut(BaseException):
    """The arm's time is over. Not an Exception, so that no `except Exception` of the program swallows it."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    arm = arm_of(item)
    if arm is None:
        return (yield)
    script = arm.script
    if script.started_at is None:
        script.started_at, script.started = record.now(), time.monotonic()
    try:
        return (yield)
    except pytest.skip.Exception as skipped:
        _finish(item, arm, _outcome(arm, "skipped", 0.0, reason=claims.fold(str(skipped)) or "skipped"))
        raise
    except (Exception, pytest.fail.Exception) as error:
        trial = _outcome(arm, "crashed", 0.0, reason="a fixture raised before the arm ran")
        _describe_into(trial, describe(error, script.claim, script.path))
        _finish(item, arm, trial)
        raise


@pytest.hookimpl(specname="pytest_runtest_setup", tryfirst=True)
def pytest_kb_skip(item: pytest.Item) -> None:
    """Skips an arm whose needs are not met, before any fixture is made."""
    arm = arm_of(item)
    if arm is not None and (reason := _why_not(item, arm)):
        pytest.skip(reason)


def _why_not(item: pytest.Item, arm: Arm) -> str | None:
    if reason := unmet(item):
        return reason
    if item.config.stash.get(_POISONED, False):
        return "the device stopped answering in this process after an earlier arm; `kb verify` gives each arm its own"
    if arm.kind in (claims.WORKAROUND, claims.DEAD_END) and arm.script.control(arm.config) == "skipped":
        return f"its control was skipped: {arm.script.control_trials(arm.config)[0]['reason']}"
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    arm = arm_of(pyfuncitem)
    if arm is None:
        return (yield)
    _tell(pyfuncitem, {"begun": pyfuncitem.name})
    started = time.monotonic()
    error: BaseException | None = None
    try:
        with _time_limit(timeout_of(pyfuncitem)):
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
        return _outcome(arm, "skipped", seconds, reason=claims.fold(str(error)) or "skipped")
    if isinstance(error, ArmTimedOut):
        return _outcome(arm, "timed_out", seconds, reason=f"no end after {timeout_of(item):g} s")
    raised = None if error is None else describe(error, script.claim, script.path)
    verdict = claims.judge(arm.kind, raised, script.control_arm(arm.config))
    trial = _outcome(arm, verdict.outcome, seconds, reason=verdict.reason)
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
        item.config.stash[_POISONED] = True


def _outcome(arm: Arm, outcome: str, seconds: float, reason: str | None) -> record.Trial:
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
    if item.stash.get(_DONE, False):
        return
    item.stash[_DONE] = True
    arm.script.trials.append(trial)
    environment = arm.script.environment(fixtures.device_of(item.config))
    _tell(item, {"entry": arm.script.claim.entry, "environment": environment, "trial": trial})


def _tell(item: pytest.Item, line: dict[str, object]) -> None:
    target = item.config.getoption("kb_trials")
    if target:
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
