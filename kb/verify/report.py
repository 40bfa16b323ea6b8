"""What a run leaves behind: evidence files, and a section in the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kb.verify import fixtures, record
from kb.verify.collection import SCRIPTS, Script
from kb.verify.lines import trial_line


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
        script.sha256,
        script.environment(fixtures.device_of(config)),
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
        environment = script.environment(fixtures.device_of(config))
        where = environment["gpu"] or environment["device"]
        terminalreporter.write_line(f"{script.claim.entry} on {where}, torch {environment['torch'] or 'not installed'}")
        for trial in script.trials:
            terminalreporter.write_line(trial_line(trial, script.control_arm(trial["config"])))
