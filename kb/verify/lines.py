"""Trials as lines for people."""

from __future__ import annotations

from kb.verify import claims
from kb.verify.record import Trial


def trial_line(trial: Trial, control_arm: str | None) -> str:
    """What became of an arm. The first character is `!` if it contradicts the entry, `-` if it was skipped."""
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


def _control_cell(trial: Trial) -> str:
    if trial["arm"] in (claims.REPRODUCE, claims.REFUTE):
        return ""
    return f"control {trial['control'] or 'not run'}"
