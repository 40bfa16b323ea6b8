"""Collecting an entry's script: which tests are arms, of which claim, in which configuration and order."""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kb.digest import arm_digests, file_sha256
from kb.verify import claims, fixtures, machine, needs, record
from kb.verify.claims import Claim

TIMEOUT = 120.0
"""Seconds an arm may take unless a `timeout` marker says otherwise."""


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
    sha256: str
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

    def packages(self) -> list[str]:
        """Distributions that the header and the `requires` marks of collected arms name."""
        return sorted(needs.distributions(self.requirements, self.marks))

    def environment(self, device: str) -> dict[str, Any]:
        """What this run happens on, as evidence says it."""
        return machine.environment(device, self.packages())


SCRIPT: pytest.StashKey[Script] = pytest.StashKey()
ARM: pytest.StashKey[Arm] = pytest.StashKey()
SCRIPTS: pytest.StashKey[list[Script]] = pytest.StashKey()
PROBLEMS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


def make_module(path: Path, parent: pytest.Collector) -> pytest.Module:
    """The collector of a script."""
    parent.config.stash.setdefault(SCRIPTS, [])
    module: pytest.Module = VerifyModule.from_parent(parent, path=path)
    return module


def arm_of(item: pytest.Item) -> Arm | None:
    """The arm a test is, None for every other test."""
    return item.stash.get(ARM, None)


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
        for child in children:
            _note_arm(child)
        return children

    def _read(self) -> Script:
        try:
            source = self.path.read_text(encoding="utf-8")
            claim = claims.read_claim(self.path.with_name("entry.json"))
            requirements = needs.header_requirements(source)
            script = Script(self.path, claim, source, file_sha256(self.path), arm_digests(source), requirements)
        except (OSError, ValueError, SyntaxError, RecursionError) as error:
            raise self.CollectError(str(error)) from error
        self.stash[SCRIPT] = script
        return script


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if isinstance(collector, VerifyModule) and not report.passed:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        problem = {
            "script": str(collector.path),
            "problem": reason.removeprefix("Skipped: ").strip(),
            "skipped": report.skipped,
        }
        collector.config.stash.setdefault(PROBLEMS, []).append(problem)
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if arm_of(item) is None:
            # Methods of test classes are not known when their module is collected.
            _note_arm(item)
    places = [index for index, item in enumerate(items) if arm_of(item)]
    for index, item in zip(places, _in_order([items[index] for index in places]), strict=True):
        items[index] = item
    target = config.getoption("kb_nodes")
    if target:
        found = [_node(items[index]) for index in places] + config.stash.get(PROBLEMS, [])
        Path(str(target)).write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")


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


def _note_arm(item: object) -> None:
    """Attach to a test what it is to prove, if it is an arm. Raises UsageError if its markers make no sense."""
    if not isinstance(item, pytest.Function):
        return
    module = item.getparent(VerifyModule)
    found = [(claims.MARKERS[mark.name], mark) for mark in item.iter_markers() if mark.name in claims.MARKERS]
    if module is None or not found:
        return
    if len(found) > 1:
        raise pytest.UsageError(f"{item.name}: an arm proves one thing, so it takes one of {', '.join(claims.MARKERS)}")
    kind, mark = found[0]
    script = module.stash[SCRIPT]
    test = item.originalname
    owner = item.getparent(pytest.Class)
    script.marks.extend(dict(mark.kwargs) for mark in item.iter_markers("requires"))
    item.stash[ARM] = Arm(
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
        raise pytest.UsageError(f"{item.name}: {mark.name} names {given}; entry.json has {', '.join(known) or 'none'}")
    return str(mark.args[0])


def _config_of(item: pytest.Function) -> str:
    """Id of the configuration: that of the `config` fixture's parameter, empty without one."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return ""
    if set(callspec.params) != {"config"}:
        raise pytest.UsageError(f"{item.name}: arms vary by the `config` fixture only, so that they share controls")
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
    device = fixtures.device_of(item.config)
    return {
        "entry": arm.script.claim.entry,
        "script": str(arm.script.path),
        "sha256": arm.script.sha256,
        "name": item.nodeid.partition("::")[2],
        "arm": arm.kind,
        "id": arm.id,
        "test": arm.test,
        "config": arm.config,
        "arm_digest": arm.digest,
        "control_arm": arm.script.control_arm(arm.config),
        "timeout": timeout_of(item),
        "fresh": item.get_closest_marker("fresh") is not None,
        "measures": "measure" in getattr(item, "fixturenames", ()),
        "unmet": unmet(item),
        "environment": arm.script.environment(device),
    }


def unmet(item: pytest.Item) -> str | None:
    """Why the item's `requires` marks keep it from running here, None if they do not."""
    device = fixtures.device_of(item.config)
    return next(filter(None, (needs.unmet(mark.kwargs, device) for mark in item.iter_markers("requires"))), None)


def timeout_of(item: pytest.Item) -> float:
    """Seconds this arm may take."""
    mark = item.get_closest_marker("timeout")
    given = float(mark.args[0] if mark and mark.args else TIMEOUT)
    limit = item.config.getoption("kb_timeout")
    return given if limit is None else min(given, limit)
