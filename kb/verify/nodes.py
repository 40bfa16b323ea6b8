"""The arms of scripts as nodes, each to be run in a process of its own, and the processes that run them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kb.errors import KbError
from kb.verify.script import OFFLINE

PRELOADED = ("torch", "transformers")
STARTUP = 180.0
"""Seconds that a script may take until its arm begins: imports of heavy libraries from a cold disk."""


@dataclass(frozen=True, slots=True)
class Node:
    """One arm in one configuration, as pytest collected it."""

    entry: str
    script: Path
    sha256: str
    name: str
    arm: str
    id: str | None
    test: str
    config: str
    arm_digest: str
    control_arm: str | None
    timeout: float
    fresh: bool
    measures: bool
    unmet: str | None
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A script that cannot be run: skipped as a whole because of its header, or broken."""

    script: Path
    reason: str
    skipped: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process of a job ended."""

    id: int
    status: int
    """Exit code, or the negative number of the signal."""
    killed: str | None
    """Why it was killed: `memory`, `limit` (the arm's time), `startup` (the arm never began)."""
    seconds: float
    lines: tuple[dict[str, Any], ...]
    """What the plugin said: arms begun, trials finished."""
    output: str
    """What the process printed."""


class Workshop:
    """A parent process and a temporary folder with a place for each job. A context manager."""

    def __init__(
        self, *, python: str, preload: Sequence[str], options: Sequence[str], memory_limit: int | None, grace: float
    ) -> None:
        self._python = python
        self._preload = list(preload)
        self._options = list(options)
        self._memory = memory_limit
        self._grace = grace
        self._jobs = 0
        self._places: dict[int, Path] = {}

    def __enter__(self) -> Workshop:
        self.root = Path(tempfile.mkdtemp(prefix="kb-verify-"))
        (self.root / "pytest.ini").write_text("[pytest]\n")
        _expose_package(self.root / "lib")
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self._stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def submit(self, arguments: Sequence[str], *, limit: float, fresh: bool = False) -> int:
        """Start pytest on these arguments in an empty folder; the job's number."""
        self._jobs += 1
        place = self.root / str(self._jobs)
        for name in ("cwd", "tmp"):
            (place / name).mkdir(parents=True)
        self._places[self._jobs] = place
        job = {
            "id": self._jobs,
            "arguments": [
                *self._options,
                f"--kb-trials={place / 'trials'}",
                f"--kb-nodes={place / 'nodes'}",
                *arguments,
            ],
            "cwd": str(place / "cwd"),
            "env": {"TMPDIR": str(place / "tmp"), "KB_NODE": place.as_posix()},
            "log": str(place / "log"),
            "progress": str(place / "trials"),
            "startup": STARTUP,
            "limit": limit + self._grace,
            "memory": self._memory,
            "fresh": fresh,
        }
        self._write(job)
        return self._jobs

    def wait(self) -> Ending:
        """The next job to end, whichever it is. A parent that dies takes its jobs with it: they end by SIGKILL."""
        answer = self._read()
        if answer is None:
            self._stop()
            self._start()
            answer = {"id": next(iter(self._places)), "status": -9, "killed": None, "seconds": 0.0}
        place = self._places.pop(int(answer["id"]))
        ending = Ending(
            id=int(answer["id"]),
            status=int(answer["status"]),
            killed=answer["killed"],
            seconds=float(answer["seconds"]),
            lines=tuple(_lines(place / "trials") + _lines(place / "nodes")),
            output=_text(place / "log"),
        )
        shutil.rmtree(place, ignore_errors=True)
        return ending

    def _start(self) -> None:
        path = os.pathsep.join(part for part in (str(self.root / "lib"), os.environ.get("PYTHONPATH")) if part)
        self._errors = (self.root / "parent.log").open("ab")
        self._process = subprocess.Popen(
            [self._python, "-m", "kb.verify.parent", *self._preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self.root,
            env={
                **os.environ,
                **OFFLINE,
                "PYTHONPATH": path,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONUNBUFFERED": "1",
            },
            # A ctrl-C is for the runner, which keeps what finished and then ends everything in order.
            start_new_session=True,
        )
        if self._read() is None:
            output = _text(self.root / "parent.log").strip()
            self._stop()
            raise KbError(
                f"{self._python} cannot run verification scripts: {output[-2000:] or 'it ended without a word'}",
                "it needs pytest and the libraries under test",
            )

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def _write(self, job: Mapping[str, Any]) -> None:
        stream = self._process.stdin
        assert stream is not None
        # A broken pipe is noticed by the next `wait`, which knows what to do about it.
        with contextlib.suppress(BrokenPipeError):
            stream.write(json.dumps(job).encode() + b"\n")
            stream.flush()

    def _read(self) -> dict[str, Any] | None:
        stream = self._process.stdout
        assert stream is not None
        line = stream.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def collect(workshop: Workshop, scripts: Iterable[Path]) -> tuple[list[Node], list[Problem]]:
    """The nodes of all scripts in their order, and the scripts that have none."""
    wanted = list(scripts)
    ending = _collected(workshop, wanted)
    if ending.status < 0 or ending.killed or not ending.lines:
        # One of them takes the process down when it is imported: find out which, and keep the others.
        endings = [(script, _collected(workshop, [script])) for script in wanted]
    else:
        endings = [(script, ending) for script in wanted]
    nodes: list[Node] = []
    problems: list[Problem] = []
    for script, part in endings:
        mine = [line for line in part.lines if line.get("script") == str(script)]
        found = [_node(line) for line in mine if "name" in line]
        nodes.extend(found)
        broken = [line for line in mine if "problem" in line]
        problems.extend(Problem(script, line["problem"], line["skipped"]) for line in broken)
        if not found and not broken:
            problems.append(Problem(script, _why_nothing(part), False))
    return nodes, problems


def _collected(workshop: Workshop, scripts: Sequence[Path]) -> Ending:
    workshop.submit(["--collect-only", *map(str, scripts)], limit=0.0)
    return workshop.wait()


def _why_nothing(ending: Ending) -> str:
    if ending.status < 0 or ending.killed:
        return f"importing it ends the process ({ending.killed or f'signal {-ending.status}'})\n{ending.output[-4000:]}"
    return f"it has no arms\n{ending.output[-4000:]}".strip()


def _node(line: dict[str, Any]) -> Node:
    return Node(**{**line, "script": Path(line["script"])})


def _expose_package(folder: Path) -> None:
    """Make `kb`, and nothing that is installed beside it, importable for another interpreter."""
    package = Path(__file__).resolve().parents[1]
    folder.mkdir()
    try:
        (folder / "kb").symlink_to(package, target_is_directory=True)
    except OSError:
        shutil.copytree(package, folder / "kb", ignore=shutil.ignore_patterns("_entries", "__pycache__"))


def _lines(file: Path) -> list[dict[str, Any]]:
    """JSON lines of a file; one that was cut off by a kill is left out."""
    found = []
    for line in _text(file).splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def default_memory_limit() -> int | None:
    """Bytes: three quarters of the memory that is free now; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 * 3 // 4
    return None


def supported() -> bool:
    """Whether this system can fork processes."""
    return hasattr(os, "fork") and sys.platform != "win32"
