"""The runner's side of the processes that run arms: a parent, a server for each open script, a child for each arm."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kb.errors import KbError
from kb.verify.script import OFFLINE

STARTUP = 180.0
"""Seconds that a script may take until its arm begins: imports of heavy libraries from a cold disk."""
_FOREVER = 1e9
_LONGEST = 16 * 1024 * 1024


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
    """Why a script has no nodes: its header is not met (skipped), or it is broken."""

    reason: str
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A script was collected and its arms can be started."""

    id: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """A server ended, because it was told to or by itself; `problem` is for a script that never opened."""

    id: int
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process of an arm ended."""

    id: int
    status: int
    """Exit code, or the negative number of the signal."""
    killed: str | None
    """Why it was killed: `memory`, `limit` (the arm's time), `startup` (the arm never began)."""
    seconds: float
    lines: tuple[dict[str, Any], ...]
    """What the plugin said: arm begun, trial finished."""
    output: str
    """What the process printed."""


class Workshop:
    """A parent process and a temporary folder with a place for everything that runs. A context manager.

    Raises KbError when entered if the interpreter cannot run scripts.
    """

    def __init__(
        self,
        *,
        python: str,
        preload: Sequence[str],
        options: Sequence[str],
        memory_limit: int | None,
        grace: float,
        network: bool,
    ) -> None:
        self._command = [python, "-m", "kb.verify.parent", *preload]
        self._options = list(options)
        self._memory = memory_limit
        self._grace = grace
        self._network = network
        self._count = 0
        self._open: dict[int, Path] = {}
        self._ready: set[int] = set()
        self._running: dict[int, int] = {}
        self._lost: list[int] = []

    def __enter__(self) -> Workshop:
        self._root = Path(tempfile.mkdtemp(prefix="kb-verify-"))
        try:
            self._root.joinpath("pytest.ini").write_text("[pytest]\n")
            _expose_package(self._root / "lib")
            self._start()
        except BaseException:
            shutil.rmtree(self._root, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self._stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def open(self, script: Path) -> int:
        """Have a server collect a script; its number. Answered by Opened or Closed."""
        order = self._order(startup=STARTUP, limit=_FOREVER, memory=None, progress="nodes")
        self._open[order["id"]] = script
        ini, nodes = self._root / "pytest.ini", self._place(order["id"]) / "nodes"
        arguments = ["-c", str(ini), f"--kb-nodes={nodes}", *self._options, str(script)]
        self._write({**order, "arguments": arguments, "network": self._network})
        return int(order["id"])

    def close(self, server: int) -> None:
        """End a server. Answered by Closed."""
        self._write({"to": server, "order": {"stop": True}})

    def submit(self, server: int, node: Node) -> int:
        """Start an arm; its number. Answered by Ending, or by Closed if the server ends first."""
        order = self._order(startup=STARTUP, limit=node.timeout + self._grace, memory=self._memory, progress="trials")
        self._running[order["id"]] = server
        self._write({"to": server, "order": {**order, "name": node.name, "fresh": node.fresh}})
        return int(order["id"])

    def wait(self) -> Opened | Closed | Ending:
        """The next thing that happens. A parent that dies is started anew; its servers are closed."""
        while not self._lost:
            answer = self._read()
            if answer is None:
                self._lost = sorted(self._open)
                self._stop()
                self._start()
            elif "opened" in answer:
                return self._opened(int(answer["opened"]))
            elif int(answer["id"]) in self._open:
                return self._closed(answer)
            elif int(answer["id"]) in self._running:
                return self._ended(answer)
        return self._closed({"id": self._lost.pop(0), "status": -9, "killed": None})

    def _opened(self, server: int) -> Opened:
        self._ready.add(server)
        return Opened(server, tuple(_node(line) for line in self._said(server, "nodes") if "name" in line))

    def _closed(self, answer: Mapping[str, Any]) -> Closed:
        server = int(answer["id"])
        problem = None if server in self._ready else self._problem(server, answer)
        del self._open[server]
        self._running = {job: owner for job, owner in self._running.items() if owner != server}
        self._forget(server)
        return Closed(server, problem)

    def _ended(self, answer: Mapping[str, Any]) -> Ending:
        job = int(answer["id"])
        del self._running[job]
        place = self._place(job)
        ending = Ending(
            id=job,
            status=int(answer["status"]),
            killed=answer["killed"],
            seconds=float(answer["seconds"]),
            lines=tuple(self._said(job, "trials")),
            output=_text(place / "log"),
        )
        self._forget(job)
        return ending

    def _problem(self, server: int, answer: Mapping[str, Any]) -> Problem:
        for line in self._said(server, "nodes"):
            if "problem" in line:
                return Problem(line["problem"], line["skipped"])
        output = _text(self._place(server) / "log").strip()[-4000:]
        if answer["killed"]:
            return Problem(f"it could not be imported within {STARTUP:g} s\n{output}")
        if answer["status"] < 0:
            return Problem(f"importing it ends the process by signal {-answer['status']}\n{output}")
        return Problem(f"it has no arms\n{output}".strip())

    def _order(self, *, startup: float, limit: float, memory: int | None, progress: str) -> dict[str, Any]:
        self._count += 1
        place = self._place(self._count)
        for name in ("cwd", "tmp"):
            (place / name).mkdir(parents=True)
        return {
            "id": self._count,
            "cwd": str(place / "cwd"),
            "env": {"TMPDIR": str(place / "tmp"), "KB_NODE": str(place)},
            "log": str(place / "log"),
            "progress": str(place / progress),
            "startup": startup,
            "limit": limit,
            "memory": memory,
        }

    def _place(self, number: int) -> Path:
        return self._root / str(number)

    def _said(self, number: int, file: str) -> list[dict[str, Any]]:
        """JSON lines of a file; one that was cut off by a kill is left out."""
        found = []
        for line in _text(self._place(number) / file).splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def _forget(self, number: int) -> None:
        shutil.rmtree(self._place(number), ignore_errors=True)

    def _start(self) -> None:
        path = os.pathsep.join(part for part in (str(self._root / "lib"), os.environ.get("PYTHONPATH")) if part)
        settings = {
            **OFFLINE,
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            # So that the driver's tool and CUDA number the GPUs alike.
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }
        with (self._root / "parent.log").open("ab") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self._root,
                env={**os.environ, **settings},
                # A ctrl-C is for the runner, which keeps what finished and then ends everything in order.
                start_new_session=True,
            )
        if self._read() is None:
            self._stop()
            output = _text(self._root / "parent.log").strip()[-2000:] or "it ended without a word"
            raise KbError(f"{self._command[0]} cannot run scripts: {output}", "give it pytest")

    def _stop(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _write(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin
        # A broken pipe is noticed by the next `wait`, which knows what to do about it.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


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


def _text(file: Path) -> str:
    """Text of a file; of a very long one the end."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _LONGEST))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
