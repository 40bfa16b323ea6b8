"""What runs of scripts give: trials, also of arms whose process did not live to write one, and reports."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path

from kb.verify import claims, record, workshop
from kb.verify.capture import cap, clean
from kb.verify.record import Trial
from kb.verify.workshop import Ending, Node, Problem


@dataclass(frozen=True, slots=True)
class Progress:
    """One arm that has just finished."""

    node: Node
    trial: Trial
    against: str | None
    """Why the trial contradicts the entry, None if it does not."""
    done: int
    known: int
    """Arms of the scripts that were collected so far."""
    scripts_left: int
    """Scripts that were not."""


@dataclass
class ScriptRun:
    """What one run of one entry's script gave."""

    entry: str
    script: Path
    nodes: list[Node] = field(default_factory=list)
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
        judged = [(trial, contradiction_of(trial, controls[trial["config"]])) for trial in self.trials]
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


def trial_of(node: Node, ending: Ending) -> Trial:
    """The trial the plugin wrote, or what the end of the process says if it wrote none."""
    told: Trial | None = next((line["trial"] for line in ending.lines if "trial" in line), None)
    if told is not None:
        return told
    claim = claims.read_claim(node.script.with_name("entry.json"))
    outcome, reason = _fate(node, ending)
    trial = blank_trial(node, outcome, ending.seconds, reason=reason)
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
        return "timed_out", f"the arm did not begin within {workshop.STARTUP:g} s"
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


def blank_trial(node: Node, outcome: str, seconds: float, *, reason: str) -> Trial:
    """A trial that measured nothing."""
    trial = record.trial(node.arm, node.id, node.test, node.arm_digest, node.config, None, outcome, seconds)
    trial["reason"] = reason
    return trial


def is_control(node: Node) -> bool:
    """Whether a node is the reproduction or the refutation."""
    return node.arm in (claims.REPRODUCE, claims.REFUTE)


def is_control_of(node: Node, other: Node) -> bool:
    """Whether a node is the control of another."""
    return node.arm == other.control_arm and node.config == other.config


def control_trials(one: ScriptRun, node: Node) -> list[Trial]:
    """Trials of a node's controls that have finished."""
    return [trial for trial in one.trials if trial["arm"] == node.control_arm and trial["config"] == node.config]


def control_outcome(one: ScriptRun, node: Node) -> str | None:
    """Outcome of a node's controls as far as they have finished; None for a control itself."""
    if is_control(node):
        return None
    return claims.control_outcome(trial["outcome"] for trial in control_trials(one, node))


def control_skipped(one: ScriptRun, node: Node) -> str | None:
    """Why a node is skipped with its control, None if it is not."""
    if control_outcome(one, node) != "skipped":
        return None
    return f"its control was skipped: {control_trials(one, node)[0]['reason']}"


def contradiction_of(trial: Trial, control_arm: str | None) -> str | None:
    """Why a trial contradicts the entry, None if it does not."""
    return claims.contradiction(trial["arm"], trial["outcome"], trial["control"], control_arm)
