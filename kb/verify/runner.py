"""Runs entries' scripts, every arm in a process of its own, and turns whatever happens into trials and evidence."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kb.errors import UsageError
from kb.verify import claims, needs, nodes, record
from kb.verify.capture import cap, clean
from kb.verify.claims import Claim
from kb.verify.nodes import Ending, Node, Problem, Workshop
from kb.verify.record import Trial

GRACE = 5.0
"""Seconds between the end of an arm's time and the end of its process, in which the plugin may still say so itself."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One arm that has just finished."""

    node: Node
    trial: Trial
    against: str | None
    """Why the trial contradicts the entry, None if it does not."""
    done: int
    total: int


@dataclass
class ScriptRun:
    """What one run of one entry's script gave."""

    entry: str
    script: Path
    nodes: list[Node]
    started_at: str = ""
    seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    """In the order of the nodes."""
    problem: Problem | None = None
    evidence: Path | None = None
    """File that was written, None if none was."""

    def contradictions(self) -> list[tuple[Trial, str]]:
        """Trials that contradict the entry, each with why."""
        controls = {node.config: node.control_arm for node in self.nodes}
        judged = [(trial, _against(trial, controls[trial["config"]])) for trial in self.trials]
        return [(trial, against) for trial, against in judged if against]


@dataclass
class Report:
    """A whole run."""

    runs: list[ScriptRun]
    seconds: float
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 every claim held, 1 one was contradicted, 2 a script is broken, 3 nothing could run, 130 interrupted."""
        if self.interrupted:
            return 130
        if any(run.problem and not run.problem.skipped for run in self.runs):
            return 2
        if any(run.contradictions() for run in self.runs):
            return 1
        ran = any(trial["outcome"] != "skipped" for run in self.runs for trial in run.trials)
        return 0 if ran else 3


def run(
    entries: Sequence[Path],
    *,
    device: str | None = None,
    cases: Sequence[str] = (),
    timeout: float | None = None,
    memory_limit: int | None = None,
    jobs: int = 1,
    evidence: Path | Callable[[ScriptRun], Path] | None = None,
    contributed_by: str | None = None,
    python: str = sys.executable,
    on_trial: Callable[[Progress], None] | None = None,
    grace: float = GRACE,
) -> Report:
    """Run the `verify.py` of each entry folder.

    `device` is `cpu`, `cuda` or None for CUDA if there is one. `cases` keeps arms by workaround or dead-end id, test
    name or configuration, and their controls. `timeout` caps every arm's seconds, `memory_limit` its bytes (default:
    three quarters of what is free). `jobs` arms run side by side, but those that measure run alone. `evidence` is the
    folder for evidence files, or tells it for each run; None writes none. `python` is the interpreter to run in, which
    needs pytest. A ctrl-C ends the run and keeps what finished.

    Raises UsageError if an entry has no script, the system cannot fork, or `cases` selects nothing.
    """
    scripts = [_script(Path(entry)) for entry in entries]
    if not nodes.supported():
        raise UsageError("arms need processes that can be forked", "run the scripts with pytest, or use Linux or macOS")
    started = time.monotonic()
    workshop = Workshop(
        python=python,
        preload=_preload(scripts),
        options=_options(device, timeout),
        memory_limit=memory_limit or nodes.default_memory_limit(),
        grace=grace,
    )
    command = record.command_line(["kb", "verify", *_shown(scripts, device, cases)])
    with workshop:
        runs = _runs(*nodes.collect(workshop, scripts), cases)
        session = _Session(workshop, runs, jobs, on_trial)
        try:
            session.work()
        except KeyboardInterrupt:
            session.interrupted = True
    for one in runs:
        one.trials.sort(key=lambda trial: _place(one, trial))
        if evidence is not None and one.trials:
            folder = evidence if isinstance(evidence, Path) else evidence(one)
            one.evidence = record.write(_document(one, command, contributed_by), folder)
    return Report(runs, time.monotonic() - started, session.interrupted)


class _Session:
    """The arms of one run, in the order their controls allow."""

    def __init__(
        self, workshop: Workshop, runs: list[ScriptRun], jobs: int, on_trial: Callable[[Progress], None] | None
    ) -> None:
        self.interrupted = False
        self._workshop = workshop
        self._jobs = max(1, jobs)
        self._on_trial = on_trial
        self._waiting = [(one, node) for one in runs for node in one.nodes]
        self._total = len(self._waiting)
        self._done = 0
        self._running: dict[int, tuple[ScriptRun, Node]] = {}
        self._claims = {one.script: claims.read_claim(one.script.with_name("entry.json")) for one in runs if one.nodes}

    def work(self) -> None:
        """Run everything."""
        while self._waiting or self._running:
            self._fill()
            if self._running:
                ending = self._workshop.wait()
                one, node = self._running.pop(ending.id)
                self._keep(one, node, trial_of(node, ending, self._claims[node.script]))

    def _fill(self) -> None:
        """Start what may start now."""
        while len(self._running) < self._jobs:
            chosen = next((pair for pair in self._waiting if self._may_start(*pair)), None)
            if chosen is None:
                return
            self._waiting.remove(chosen)
            one, node = chosen
            one.started_at = one.started_at or record.now()
            if reason := node.unmet or _control_skipped(one, node):
                self._keep(one, node, _trial(node, "skipped", 0.0, reason=reason))
            else:
                arguments = [f"{node.script}::{node.name}"]
                job = self._workshop.submit(arguments, limit=node.timeout, fresh=node.fresh)
                self._running[job] = chosen

    def _may_start(self, one: ScriptRun, node: Node) -> bool:
        if self._running and (node.measures or any(other.measures for _, other in self._running.values())):
            return False
        if _is_control(node):
            return True
        pending = [other for owner, other in (*self._waiting, *self._running.values()) if owner is one]
        return not any(_is_control(other) and other.config == node.config for other in pending)

    def _keep(self, one: ScriptRun, node: Node, trial: Trial) -> None:
        trial["control"] = None if _is_control(node) else claims.control_outcome(_control_outcomes(one, node))
        one.trials.append(trial)
        one.seconds += trial["seconds"]
        self._done += 1
        if self._on_trial:
            self._on_trial(Progress(node, trial, _against(trial, node.control_arm), self._done, self._total))


def trial_of(node: Node, ending: Ending, claim: Claim) -> Trial:
    """The trial the plugin wrote, or what the end of the process says if it wrote none."""
    told: Trial | None = next((line["trial"] for line in ending.lines if "trial" in line), None)
    if told is not None:
        return told
    outcome, reason = _fate(node, ending)
    trial = _trial(node, outcome, ending.seconds, reason=reason)
    output = clean(ending.output, node.script)
    trial["traceback"] = cap(output, claim) or None
    trial["regex_matched"] = claim.matching_line(ending.output) is not None
    return trial


def _fate(node: Node, ending: Ending) -> tuple[str, str]:
    if ending.killed == "memory":
        return "crashed", "killed, because it held more memory than allowed"
    if ending.killed == "limit":
        return "timed_out", f"no end after {node.timeout:g} s"
    if ending.killed == "startup":
        return "timed_out", f"the arm did not begin within {nodes.STARTUP:g} s"
    if ending.status == -signal.SIGKILL:
        return "crashed", "killed from outside, as the kernel does when memory runs out"
    if ending.status < 0:
        return "crashed", f"the process was ended by {_signal_name(-ending.status)}"
    return "crashed", f"the process ended with exit code {ending.status} before the arm did"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _trial(node: Node, outcome: str, seconds: float, *, reason: str) -> Trial:
    trial = record.trial(node.arm, node.id, node.test, node.arm_digest, node.config, None, outcome, seconds)
    trial["reason"] = reason
    return trial


def _is_control(node: Node) -> bool:
    return node.arm in (claims.REPRODUCE, claims.REFUTE)


def _control_trials(one: ScriptRun, node: Node) -> list[Trial]:
    return [trial for trial in one.trials if trial["arm"] == node.control_arm and trial["config"] == node.config]


def _control_outcomes(one: ScriptRun, node: Node) -> list[str]:
    return [trial["outcome"] for trial in _control_trials(one, node)]


def _control_skipped(one: ScriptRun, node: Node) -> str | None:
    if _is_control(node) or claims.control_outcome(_control_outcomes(one, node)) != "skipped":
        return None
    return f"its control was skipped: {_control_trials(one, node)[0]['reason']}"


def _against(trial: Trial, control_arm: str | None) -> str | None:
    return claims.contradiction(trial["arm"], trial["outcome"], trial["control"], control_arm)


def _script(entry: Path) -> Path:
    script = entry if entry.name == "verify.py" else entry / "verify.py"
    if not script.is_file() or not script.with_name("entry.json").is_file():
        raise UsageError(f"{entry}: no verify.py beside an entry.json", "name the folder of an entry that has a script")
    return script.resolve()


def _preload(scripts: Iterable[Path]) -> list[str]:
    """Heavy modules that some script will import, by the headers."""
    wanted: set[str] = set()
    for script in scripts:
        try:
            wanted |= needs.distributions(needs.header_requirements(script.read_text(encoding="utf-8")), ())
        except (OSError, ValueError):
            continue
    return [name for name in nodes.PRELOADED if name in wanted]


def _options(device: str | None, timeout: float | None) -> list[str]:
    options = ["-p", "kb.verify.plugin", "-p", "no:cacheprovider", "--import-mode=importlib", "--noconftest"]
    options += ["-c", "../../pytest.ini", "-q", "--no-header", "--capture=no", "--tb=short"]
    options += [f"--kb-device={device}"] if device else []
    return options + ([f"--kb-timeout={timeout}"] if timeout else [])


def _runs(found: list[Node], problems: list[Problem], cases: Sequence[str]) -> list[ScriptRun]:
    chosen = _chosen(found, cases)
    if cases and not chosen:
        raise UsageError(
            f"no arm is called {', '.join(cases)}", "name a workaround, a dead end, a test or a configuration"
        )
    runs: dict[Path, ScriptRun] = {}
    for node in chosen:
        runs.setdefault(node.script, ScriptRun(node.entry, node.script, [])).nodes.append(node)
    for problem in problems:
        entry = "/".join(problem.script.parts[-3:-1])
        runs.setdefault(problem.script, ScriptRun(entry, problem.script, [])).problem = problem
    return list(runs.values())


def _chosen(found: list[Node], cases: Sequence[str]) -> list[Node]:
    if not cases:
        return found
    named = [node for node in found if {node.id, node.test, node.config} & set(cases)]
    cells = {(node.script, node.config) for node in named}
    return [node for node in found if node in named or (_is_control(node) and (node.script, node.config) in cells)]


def _place(one: ScriptRun, trial: Trial) -> int:
    key = (trial["test"], trial["config"])
    return next(place for place, node in enumerate(one.nodes) if (node.test, node.config) == key)


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


def _shown(scripts: Sequence[Path], device: str | None, cases: Sequence[str]) -> list[str]:
    shown = ["/".join(script.parts[-3:-1]) for script in scripts]
    options = [*(["--device", device] if device else []), *(part for case in cases for part in ("--case", case))]
    return [shlex.quote(part) for part in [*(shown if len(shown) <= 8 else [f"({len(shown)} entries)"]), *options]]
