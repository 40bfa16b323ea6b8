"""Trials and evidence as plain dictionaries in the shape of `kb.models.evidence`, and the write-once writer."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import kb
from kb.redact import redact

Trial = dict[str, Any]
BUNDLE = "bundle.json"
"""File of a bundle that says what it was made from."""


def trial(
    arm: str, id: str | None, test: str, arm_digest: str, config: str, control: str | None, outcome: str, seconds: float
) -> Trial:
    """A trial with every optional field at its default."""
    return {
        "arm": arm,
        "id": id,
        "test": test,
        "arm_digest": arm_digest,
        "config": config,
        "control": control,
        "outcome": outcome,
        "reason": None,
        "exception": None,
        "message": None,
        "traceback": None,
        "regex_matched": None,
        "recovers": None,
        "seconds": round(seconds, 6),
        "step_seconds": None,
        "peak_bytes": None,
        "reference_error": None,
        "measurements": {},
    }


def now() -> str:
    """The present moment in UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def evidence(
    entry: str,
    script: Path,
    sha256: str,
    environment: dict[str, Any],
    trials: Iterable[Trial],
    *,
    started_at: str,
    seconds: float,
    command: str,
    contributed_by: str | None = None,
) -> dict[str, Any]:
    """One evidence document."""
    return {
        "schema_version": 1,
        "entry": entry,
        "verify_sha256": sha256,
        "run": {
            "started_at": started_at,
            "seconds": round(seconds, 3),
            "kb_version": kb.__version__,
            "commit": commit(script.parent),
            "command": command,
            "contributed_by": contributed_by,
        },
        "environment": environment,
        "trials": list(trials),
    }


def write(document: dict[str, Any], folder: Path) -> Path:
    """Write evidence to a new file of the folder, named by date, GPU and content; its path.

    Raises FileExistsError if exactly this file is there: evidence is never overwritten.
    """
    data = (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")
    date = document["run"]["started_at"][:10]
    path = folder / f"{date}_{slug(document['environment']['gpu'])}_{hashlib.sha256(data).hexdigest()[:8]}.json"
    put(data, path)
    return path


def put(data: bytes, path: Path) -> None:
    """Create a file with this content, whole or not at all. Raises FileExistsError if there is one of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    try:
        # A link appears at once, and never replaces what is there.
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems have no links.
        with path.open("xb") as file:
            file.write(data)
    finally:
        partial.unlink()


def slug(gpu: str | None) -> str:
    """`NVIDIA H100 80GB HBM3` as `nvidia-h100-80gb-hbm3`; `cpu` for none."""
    return re.sub(r"[^a-z0-9]+", "-", (gpu or "cpu").lower()).strip("-") or "gpu"


def command_line(arguments: Sequence[str]) -> str:
    """The command that was run, without secrets and home folders."""
    return redact(" ".join(arguments), paths=True)


def commit(folder: Path) -> str | None:
    """Commit of the checkout, or of the one a bundle was made from.

    `+dirty` is appended if the script, the entry or this package had changes.
    """
    for parent in folder.parents:
        made_from = parent / BUNDLE
        if made_from.is_file():
            return _bundled_commit(made_from, "/".join(folder.parts[-2:]))
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None
    watched = [folder / "verify.py", folder / "entry.json"]
    package = Path(__file__).resolve().parents[1]
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top and package.is_relative_to(top):
        watched.append(package)
    changed = _git(folder, "status", "--porcelain", "--", *map(str, watched))
    return f"{head}+dirty" if changed else head


def _bundled_commit(made_from: Path, entry: str) -> str | None:
    try:
        commit = json.loads(made_from.read_text(encoding="utf-8"))["commits"][entry]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return commit if isinstance(commit, str) else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
