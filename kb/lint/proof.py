"""Checks of an entry against what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kb import evidence, provenance
from kb.catalog import LoadedEntry
from kb.lint.finding import Finding


def evidence_acceptable(loaded: LoadedEntry) -> Iterator[Finding]:
    """Evidence and provenance files are well-formed, named after their content, and of this entry."""
    _, problems = evidence.load(loaded.folder, loaded.entry.id)
    for problem in (*problems, *provenance.problems(loaded.folder)):
        yield Finding("evidence-invalid", problem.file, problem.field, problem.detail, problem.remedy)


def recoverability_holds(loaded: LoadedEntry) -> Iterator[Finding]:
    """What an entry says of recovery is what the device did when it was called again after the error."""
    said = loaded.entry.recoverability
    files, _ = evidence.load(loaded.folder, loaded.entry.id)
    for file in files:
        device = file.evidence.environment.device
        for trial, fresh in file.trials():
            if not fresh or trial.outcome != "reproduced" or trial.recovers is None:
                continue
            # On a CPU nothing is lost that a process could not go on without, so only CUDA contradicts the worse cases.
            wrong = (said == "in_process" and not trial.recovers) or (
                said not in ("in_process", "unknown") and trial.recovers and device == "cuda"
            )
            if wrong:
                did = "answered" if trial.recovers else "did not answer"
                yield Finding(
                    "recoverability-contradicted",
                    str(loaded.folder / "entry.json"),
                    "recoverability",
                    f"says {said}, but the device {did} again in {file.file.name}",
                    "write what the run showed, or find out why it differs",
                )
                return


CHECKS: tuple[Callable[[LoadedEntry], Iterator[Finding]], ...] = (evidence_acceptable, recoverability_holds)
