"""Evidence files of an entry: read, judged, and compared with today's verification script."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from kb.catalog import read_model
from kb.digest import arm_digests
from kb.errors import EntryError, EvidenceError
from kb.models.evidence import Evidence, Trial

_NAME = re.compile(r"(?P<date>\d{4}-\d{2}-\d{2})_(?P<gpu>[a-z0-9-]+)_(?P<digest>[0-9a-f]{8})\.json")
_CONTROLS = ("reproduce", "refute")


@dataclass(frozen=True)
class LoadedEvidence:
    """One evidence file and which of its trials still speak of today's script."""

    file: Path
    evidence: Evidence
    fresh: tuple[bool, ...]
    """One for each trial: its arm is the same today."""

    @property
    def day(self) -> date:
        """Day of the run in UTC."""
        return _moment(self.evidence.run.started_at).date()

    @property
    def contributed(self) -> bool:
        """Whether somebody else than a maintainer ran it; then it moves no rate."""
        return self.evidence.run.contributed_by is not None

    def trials(self) -> Iterator[tuple[Trial, bool]]:
        """Each trial with its freshness."""
        return zip(self.evidence.trials, self.fresh, strict=True)


def load(folder: Path, entry_id: str) -> tuple[tuple[LoadedEvidence, ...], tuple[EntryError, ...]]:
    """All acceptable evidence of the entry in `folder`, oldest first, and what was not acceptable. Never raises."""
    digests, problems = _digests(folder / "verify.py")
    found: list[LoadedEvidence] = []
    for file in _files(folder / "evidence"):
        try:
            evidence = read(file, entry_id)
        except EntryError as problem:
            problems.append(problem)
        except ExceptionGroup as several:
            problems += [problem for problem in several.exceptions if isinstance(problem, EntryError)]
        else:
            fresh = tuple(_is_fresh(trial, digests) for trial in evidence.trials)
            found.append(LoadedEvidence(file, evidence, fresh))
    return tuple(sorted(found, key=_by_time)), tuple(problems)


def read(file: Path, entry_id: str) -> Evidence:
    """One evidence file. Raises EvidenceError, or an ExceptionGroup of them, if it is not acceptable."""
    evidence = read_model(file, Evidence, EvidenceError)
    try:
        started = _moment(evidence.run.started_at)
    except ValueError as error:
        raise EvidenceError(
            str(file), "run.started_at", f"is no moment: {error}", "write-once: remove the file"
        ) from None
    _check_name(file, evidence, started)
    if evidence.entry != entry_id:
        message = f"is of `{evidence.entry}`, found below `{entry_id}`"
        raise EvidenceError(str(file), "entry", message, "move it below its entry")
    if (evidence.environment.device == "cuda") != (evidence.environment.gpu is not None):
        message = "a run on CUDA names its GPU and a run on CPU names none"
        raise EvidenceError(str(file), "environment.gpu", message, "run it again")
    _check_controls(file, evidence)
    return evidence


def control_tests(source: str) -> tuple[str, ...]:
    """Test functions of a script marked `reproduces` or `refutes`, in their order. Raises SyntaxError."""
    found = []
    body = ast.parse(source).body
    for node in [*body, *(inner for outer in body if isinstance(outer, ast.ClassDef) for inner in outer.body)]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = {_last_name(decorator) for decorator in node.decorator_list}
            if marks & {"reproduces", "refutes"}:
                found.append((node.lineno, node.name))
    return tuple(name for _, name in sorted(found))


def gpu_slug(gpu: str | None) -> str:
    """The part of an evidence file's name that tells the hardware: `nvidia-h100-80gb-hbm3`, `cpu` for none."""
    return re.sub(r"[^a-z0-9]+", "-", (gpu or "cpu").lower()).strip("-") or "gpu"


def _digests(script: Path) -> tuple[Mapping[str, str], list[EntryError]]:
    if not script.is_file():
        return {}, []
    try:
        return arm_digests(script.read_text("utf-8")), []
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return {}, [EntryError(str(script), "", f"cannot be read as Python: {error}", "run it with pytest")]


def _is_fresh(trial: Trial, digests: Mapping[str, str]) -> bool:
    # A test inside a class is known to the digests as `Class.test`.
    named = (digest for name, digest in digests.items() if name.rpartition(".")[2] == trial.test.rpartition(".")[2])
    return trial.arm_digest in named


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    except OSError:
        return []


def _by_time(loaded: LoadedEvidence) -> tuple[datetime, str]:
    return _moment(loaded.evidence.run.started_at), loaded.file.name


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _check_name(file: Path, evidence: Evidence, started: datetime) -> None:
    name = _NAME.fullmatch(file.name)
    if not name:
        raise EvidenceError(str(file), "", "is not called DATE_GPU_DIGEST.json", "keep the name `kb verify` gave it")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    if name["digest"] != digest:
        message = f"its content has the digest {digest}, its name says {name['digest']}: it was edited"
        raise EvidenceError(str(file), "", message, "evidence is written once: restore it, or run `kb verify` again")
    if name["date"] not in (evidence.run.started_at[:10], started.date().isoformat()):
        message = f"its name says {name['date']}, the run {evidence.run.started_at}"
        raise EvidenceError(str(file), "run.started_at", message, "keep the name `kb verify` gave it")
    gpu = gpu_slug(evidence.environment.gpu)
    if name["gpu"] != gpu:
        message = f"its name says {name['gpu']}, the run {gpu}"
        raise EvidenceError(str(file), "environment.gpu", message, "keep the name `kb verify` gave it")


def _check_controls(file: Path, evidence: Evidence) -> None:
    ran = {(trial.config, trial.outcome) for trial in evidence.trials if trial.arm in _CONTROLS}
    for number, trial in enumerate(evidence.trials):
        is_control = trial.arm in _CONTROLS
        if is_control == (trial.id is not None):
            message = "only trials of workarounds and dead ends name one"
            raise EvidenceError(str(file), f"trials.{number}.id", message, "run `kb verify` again")
        proven = trial.control is None or (not is_control and (trial.config, trial.control) in ran)
        if not proven:
            message = f"no control trial in configuration `{trial.config}` has the outcome `{trial.control}`"
            raise EvidenceError(str(file), f"trials.{number}.control", message, "run `kb verify` again")


def _last_name(decorator: ast.expr) -> str:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
