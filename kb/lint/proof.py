"""Checks of an entry against what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kb import evidence, provenance
from kb.catalog import LoadedEntry
from kb.digest import arm_digests
from kb.errors import EntryError
from kb.evidence import LoadedEvidence
from kb.lint.finding import Finding

Files = Sequence[LoadedEvidence]


def measured(loaded: LoadedEntry) -> Iterator[Finding]:
    """Everything that is looked at in evidence, which is read once."""
    files, problems = evidence.load(loaded.folder, loaded.entry.id)
    yield from acceptable(loaded, problems)
    for one in (fresh, recoverability_holds, dates_in_order):
        yield from one(loaded, files)


def acceptable(loaded: LoadedEntry, problems: Sequence[EntryError]) -> Iterator[Finding]:
    """Evidence and provenance files are well-formed, named after their content, and of this entry."""
    for problem in (*problems, *provenance.problems(loaded.folder)):
        yield Finding("evidence-invalid", problem.file, problem.field, problem.detail, problem.remedy)


def recoverability_holds(loaded: LoadedEntry, files: Files) -> Iterator[Finding]:
    """What an entry says of recovery is what the device did when it was called again after the error."""
    said = loaded.entry.recoverability
    for file in files:
        device = file.evidence.environment.device
        for trial, speaks_of_today in file.trials():
            if not speaks_of_today or trial.outcome != "reproduced" or trial.recovers is None:
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


def fresh(loaded: LoadedEntry, files: Files) -> Iterator[Finding]:
    """An arm that was changed is run again on every device it ran on; the old runs speak of an older script."""
    today = _tests(loaded)
    runs: dict[tuple[str, str], bool] = {}
    for file in files:
        device = file.evidence.environment.device
        for trial, speaks_of_today in file.trials():
            test = trial.test.rpartition(".")[2]
            if test in today:
                runs[test, device] = runs.get((test, device), False) or speaks_of_today
    for where in sorted({device for _, device in runs}):
        if tests := sorted(test for (test, device), covered in runs.items() if device == where and not covered):
            more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
            yield Finding(
                "evidence-stale",
                str(loaded.folder / "verify.py"),
                tests[0],
                f"this arm{more} changed since the last run on {where}, so the rates are gone",
                f"kb verify {loaded.entry.id} --device {where} --evidence entries",
            )


def dates_in_order(loaded: LoadedEntry, files: Files) -> Iterator[Finding]:
    """An error was first seen on the day of its first reproduction, or earlier."""
    seen = loaded.entry.first_seen
    days = [file.day.isoformat() for file in files if any(t.outcome == "reproduced" for t in file.evidence.trials)]
    if seen and days and min(days) < seen:
        yield Finding(
            "date-order",
            str(loaded.folder / "entry.json"),
            "first_seen",
            f"is {seen}, but a run reproduced the error on {min(days)}",
            "write the day of the earliest report, or take the field out",
        )


def _tests(loaded: LoadedEntry) -> frozenset[str]:
    try:
        source = loaded.script.read_text(encoding="utf-8") if loaded.script else ""
        return frozenset(name.rpartition(".")[2] for name in arm_digests(source))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return frozenset()  # a finding of its own


CHECKS: tuple[Callable[[LoadedEntry], Iterator[Finding]], ...] = (measured,)
