"""Runs entries' scripts, every arm in a process of its own, and turns whatever happens into trials and evidence."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kb.errors import UsageError
from kb.verify import needs, processes, record
from kb.verify.record import Trial
from kb.verify.results import (
    Progress,
    Report,
    ScriptRun,
    blank_trial,
    contradiction_of,
    control_outcome,
    control_skipped,
    is_control,
    is_control_of,
    trial_of,
)
from kb.verify.workshop import Closed, Ending, Node, Opened, Problem, Workshop

__all__ = ["GRACE", "PRELOADED", "Progress", "Report", "ScriptRun", "run"]

PRELOADED = {
    # The first optimizer step imports the compiler.
    "torch": ("torch", "torch._dynamo"),
    "transformers": ("transformers", "transformers.models.llama.modeling_llama"),
}
"""Modules that take seconds to import, which the parent does once if a script's header names their distribution."""
GRACE = 5.0
"""Seconds between the end of an arm's time and the end of its process, in which the plugin may still say so itself."""


def run(
    entries: Sequence[Path],
    *,
    device: str | None = None,
    cases: Sequence[str] = (),
    timeout: float | None = None,
    memory_limit: int | None = None,
    jobs: int = 1,
    cost: bool = True,
    evidence: Path | Callable[[ScriptRun], Path] | None = None,
    contributed_by: str | None = None,
    python: str = sys.executable,
    on_trial: Callable[[Progress], None] | None = None,
    grace: float = GRACE,
    network: bool = False,
) -> Report:
    """Run the `verify.py` of each entry folder.

    `device` is `cpu`, `cuda` or None for CUDA if there is one. `cases` keeps arms by workaround or dead-end id, test
    name or configuration, and their controls. `timeout` caps every arm's seconds, `memory_limit` its bytes (default:
    three quarters of what is free). `jobs` arms run side by side, but those that measure run alone, unless no `cost`
    (time and memory of a step) is wanted. `evidence` is the folder for evidence files, or tells it for each run; None
    writes none. `python` is the interpreter to run in, which needs pytest. Unless `network` is true, arms are cut off
    every network but loopback where the system allows it. A ctrl-C ends the run and keeps what finished.

    Raises UsageError if an entry has no script, the system cannot fork, or `cases` selects nothing.
    """
    runs = [ScriptRun("/".join(script.parts[-3:-1]), script) for script in map(_script, entries)]
    if not processes.can_fork():
        raise UsageError("arms need processes that can be forked", "run the scripts with pytest, or use Linux or macOS")
    command = record.command_line(["kb", "verify", *_shown(runs, device, cases), *([] if cost else ["--no-cost"])])

    def finish(one: ScriptRun) -> None:
        if evidence is not None and one.trials:
            folder = evidence if isinstance(evidence, Path) else evidence(one)
            one.evidence = record.write(_document(one, command, contributed_by), folder)

    started = time.monotonic()
    place = Workshop(
        python=python,
        preload=_preload(runs),
        options=_options(device, timeout, cost=cost),
        memory_limit=memory_limit or processes.default_memory_limit(),
        grace=grace,
        network=network,
    )
    with place:
        session = _Session(place, runs, jobs, frozenset(cases), on_trial, finish, cost=cost)
        interrupted = session.work()
    if cases and not interrupted and not any(one.nodes for one in runs):
        names = ", ".join(cases)
        raise UsageError(f"no arm is called {names}", "name a workaround, a dead end, a test or a configuration")
    return Report([one for one in runs if one.nodes or one.problem], time.monotonic() - started, interrupted)


class _Session:
    """The scripts of one run, and their arms in the order their controls allow."""

    def __init__(
        self,
        place: Workshop,
        runs: list[ScriptRun],
        jobs: int,
        cases: frozenset[str],
        on_trial: Callable[[Progress], None] | None,
        finish: Callable[[ScriptRun], None],
        *,
        cost: bool,
    ) -> None:
        self._workshop = place
        self._jobs = max(1, jobs)
        self._cost = cost
        self._cases = cases
        self._on_trial = on_trial
        self._finish = finish
        self._unopened = deque(runs)
        self._open: dict[int, ScriptRun] = {}
        self._waiting: dict[int, list[Node]] = {}
        self._running: dict[int, tuple[int, Node]] = {}
        self._started: dict[Path, float] = {}
        self._known = self._done = 0

    def work(self) -> bool:
        """Run everything; whether a ctrl-C ended it early."""
        try:
            while self._unopened or self._open:
                self._open_more()
                event = self._workshop.wait()
                if isinstance(event, Opened):
                    self._opened(event)
                elif isinstance(event, Closed):
                    self._closed(event)
                else:
                    self._ended(event)
                self._fill()
        except KeyboardInterrupt:
            for one in self._open.values():
                self._complete(one)
            return True
        return False

    def _open_more(self) -> None:
        while self._unopened and len(self._open) < self._jobs:
            one = self._unopened.popleft()
            self._started.setdefault(one.script, time.monotonic())
            one.started_at = one.started_at or record.now()
            self._open[self._workshop.open(one.script)] = one

    def _opened(self, event: Opened) -> None:
        one = self._open[event.id]
        if not one.nodes:
            one.nodes = _chosen(event.nodes, self._cases)
            one.entry = event.nodes[0].entry
            self._known += len(one.nodes)
        finished = {(trial["test"], trial["config"]) for trial in one.trials}
        self._waiting[event.id] = [node for node in one.nodes if (node.test, node.config) not in finished]

    def _ended(self, event: Ending) -> None:
        server, node = self._running.pop(event.id)
        self._keep(self._open[server], node, trial_of(node, event))

    def _closed(self, event: Closed) -> None:
        one = self._open.pop(event.id)
        one.problem = event.problem
        waiting = self._waiting.pop(event.id, [])
        lost = [(job, node) for job, (server, node) in self._running.items() if server == event.id]
        for job, node in lost:
            del self._running[job]
            self._keep(one, node, trial_of(node, Ending(job, -signal.SIGKILL, None, 0.0, (), "")))
        if waiting and lost:
            # An arm took its server with it; the others have done nothing wrong.
            self._unopened.appendleft(one)
            return
        if waiting:
            one.problem = Problem("the process that held the script ended by itself")
        self._complete(one)

    def _complete(self, one: ScriptRun) -> None:
        one.seconds = time.monotonic() - self._started[one.script]
        one.trials.sort(key=lambda trial: _position(one, trial))
        self._finish(one)

    def _fill(self) -> None:
        """Start what may start now, and close servers that have nothing left to do."""
        for server, waiting in list(self._waiting.items()):
            for node in list(waiting):
                self._start_if_possible(server, node)
            if not waiting and not any(owner == server for owner, _ in self._running.values()):
                del self._waiting[server]
                self._workshop.close(server)

    def _start_if_possible(self, server: int, node: Node) -> None:
        one, waiting = self._open[server], self._waiting[server]
        if not is_control(node) and any(is_control_of(other, node) for other in self._unfinished(server)):
            return
        if reason := node.unmet or control_skipped(one, node):
            waiting.remove(node)
            self._keep(one, node, blank_trial(node, "skipped", 0.0, reason=reason))
        elif self._has_room_for(node):
            waiting.remove(node)
            self._running[self._workshop.submit(server, node)] = server, node

    def _unfinished(self, server: int) -> list[Node]:
        running = [node for owner, node in self._running.values() if owner == server]
        return self._waiting[server] + running

    def _has_room_for(self, node: Node) -> bool:
        """Arms that measure cost run alone: others would be part of what they measure."""
        if not self._running:
            return True
        alone = self._cost and (node.measures or any(other.measures for _, other in self._running.values()))
        return not alone and len(self._running) < self._jobs

    def _keep(self, one: ScriptRun, node: Node, trial: Trial) -> None:
        trial["control"] = control_outcome(one, node)
        one.trials.append(trial)
        self._done += 1
        if self._on_trial:
            against = contradiction_of(trial, node.control_arm)
            self._on_trial(Progress(node, trial, against, self._done, self._known, len(self._unopened)))


def _script(entry: Path) -> Path:
    script = entry if entry.name == "verify.py" else entry / "verify.py"
    if not script.is_file() or not script.with_name("entry.json").is_file():
        raise UsageError(f"{entry}: no verify.py beside an entry.json", "name the folder of an entry that has a script")
    return script.resolve()


def _preload(runs: Iterable[ScriptRun]) -> list[str]:
    """Heavy modules that some script will import, by the headers."""
    wanted: set[str] = set()
    for one in runs:
        with contextlib.suppress(OSError, ValueError):
            wanted |= needs.distributions(needs.header_requirements(one.script.read_text(encoding="utf-8")), ())
    return [module for name, modules in PRELOADED.items() if name in wanted for module in modules]


def _options(device: str | None, timeout: float | None, *, cost: bool) -> list[str]:
    options = ["-p", "kb.verify.plugin", "-p", "no:cacheprovider", "--import-mode=importlib", "--noconftest"]
    options += ["-q", "--no-header", "--capture=no", "--tb=short", "-p", "no:faulthandler"]
    options += [f"--kb-device={device}"] if device else []
    options += [] if cost else ["--kb-no-cost"]
    return options + ([f"--kb-timeout={timeout}"] if timeout else [])


def _chosen(found: Sequence[Node], cases: frozenset[str]) -> list[Node]:
    if not cases:
        return list(found)
    named = [node for node in found if {node.id, node.test, node.config} & cases]
    cells = {node.config for node in named}
    return [node for node in found if node in named or (is_control(node) and node.config in cells)]


def _position(one: ScriptRun, trial: Trial) -> int:
    names = [(node.test, node.config) for node in one.nodes]
    return names.index((trial["test"], trial["config"]))


def _document(one: ScriptRun, command: str, contributed_by: str | None) -> dict[str, object]:
    first = one.nodes[0]
    return record.evidence(
        one.entry,
        one.script,
        first.sha256,
        first.environment,
        one.trials,
        started_at=one.started_at,
        seconds=one.seconds,
        command=command,
        contributed_by=contributed_by,
    )


def _shown(runs: Sequence[ScriptRun], device: str | None, cases: Sequence[str]) -> list[str]:
    shown = [one.entry for one in runs] if len(runs) <= 8 else ["--all"]
    options = [*(["--device", device] if device else []), *(part for case in cases for part in ("--case", case))]
    return [shlex.quote(part) for part in [*shown, *options]]
