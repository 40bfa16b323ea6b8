"""The process that arms are forked from: it imports the heavy libraries once, touches no GPU, and watches its children.

Run as `python -m kb.verify.parent MODULE...`. Jobs come in on standard input, one JSON object a line; endings go out on
standard output. When standard input closes, every child is killed and the process ends. POSIX only; the memory limit
needs Linux.

Memory is watched by asking the kernel what a child and its descendants hold. An address-space limit (RLIMIT_AS) would
be simpler, and would stop CUDA itself from starting: it reserves far more addresses than memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

POLL = 0.03
"""Seconds between two looks at the children."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform == "linux"


@dataclass
class Child:
    """A running job."""

    id: int
    pid: int
    job: dict[str, Any]
    started: float
    deadline: float
    begun: bool = False
    killed: str | None = None
    peak: int = 0


class Parent:
    """Starts jobs, kills those that take too long or too much, and reports how each ended."""

    def __init__(self, jobs: int, answers: TextIO) -> None:
        self._jobs = jobs
        self._answers = answers
        self._children: dict[int, Child] = {}
        self._pending = b""

    def serve(self) -> None:
        """Work until the job stream closes."""
        open_stream = True
        while open_stream:
            ready, _, _ = select.select([self._jobs], [], [], POLL if self._children else None)
            if ready:
                open_stream = self._receive()
            self._watch()
            self._reap()
        for child in list(self._children.values()):
            self._kill(child)

    def tell(self, **answer: Any) -> None:
        """Send one answer."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def _receive(self) -> bool:
        data = os.read(self._jobs, 1 << 16)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._start(json.loads(line))
        return bool(data)

    def _start(self, job: dict[str, Any]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        now = time.monotonic()
        pid = os.fork()
        if pid == 0:
            become(job)
        self._children[pid] = Child(job["id"], pid, job, now, now + job["startup"])

    def _watch(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            job = child.job
            if not child.begun and job["progress"] and _size(job["progress"]):
                child.begun = True
                child.deadline = now + job["limit"]
            child.peak = max(child.peak, held_bytes(child.pid))
            if job["memory"] and child.peak > job["memory"]:
                child.killed = "memory"
            elif now > child.deadline:
                child.killed = "limit" if child.begun else "startup"
            if child.killed:
                self._kill(child)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._kill_leftovers(child)
                self.tell(
                    id=child.id,
                    status=os.waitstatus_to_exitcode(status),
                    killed=child.killed,
                    peak=child.peak,
                    seconds=time.monotonic() - child.started,
                )

    def _kill(self, child: Child) -> None:
        for pid in _tree(child.pid):
            _signal(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)

    def _kill_leftovers(self, ended: Child) -> None:
        """End what a job started and left behind; such orphans become children of this process."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(ended.pid, signal.SIGKILL)
        for pid in _children_of(os.getpid()):
            if pid not in self._children and (not self._children or _belongs(pid, ended)):
                for part in _tree(pid):
                    _signal(part, signal.SIGKILL)


def become(job: dict[str, Any]) -> NoReturn:
    """Turn this freshly forked process into the job's pytest. Never returns."""
    code = 70
    try:
        os.setsid()
        _die_with_parent()
        _be_first_out_of_memory()
        _redirect(job["log"])
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        tempfile.tempdir = None
        if job["fresh"]:
            os.execve(sys.executable, [sys.executable, "-m", "pytest", *job["arguments"]], dict(os.environ))
        import pytest

        code = int(pytest.main(job["arguments"]))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Interpreter shutdown could hang or crash on what the arm broke; there is nothing left to do for it.
        os._exit(code)


def held_bytes(pid: int) -> int:
    """Memory that a process and its descendants hold for themselves; 0 where the kernel does not say."""
    return sum(_anonymous_bytes(part) for part in _tree(pid)) if _LINUX else 0


def _anonymous_bytes(pid: int) -> int:
    # File pages are shared with every other child; counting them would punish importing torch.
    total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * 1024
    return total


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for part in found:
        found.extend(child for child in _children_of(part) if child not in found)
    return found


def _children_of(pid: int) -> list[int]:
    children: list[int] = []
    if _LINUX:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                children.extend(map(int, (task / "children").read_text().split()))
    return children


def _belongs(pid: int, child: Child) -> bool:
    token = f"KB_NODE={child.job['env'].get('KB_NODE')}".encode()
    with contextlib.suppress(OSError):
        return os.getsid(pid) == child.pid or token in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (sink, 1), (sink, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)


def _die_with_parent() -> None:
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_first_out_of_memory() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


@contextlib.contextmanager
def _without_touching_cuda() -> Iterator[None]:
    """Have torch ask NVML whether there is a GPU: the usual way would start the driver, which no fork survives."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def preload(names: list[str]) -> list[str]:
    """Import what can be imported; the names that could."""
    loaded = []
    for name in names:
        with contextlib.suppress(Exception), _without_touching_cuda():
            importlib.import_module(name)
            loaded.append(name)
    return loaded


def main(names: list[str]) -> None:
    """Preload, say so, serve."""
    jobs = os.dup(0)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Whatever a library prints must not end up between the answers.
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _LINUX:
        _die_with_parent()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    parent = Parent(jobs, answers)
    parent.tell(ready=preload(["pytest", "kb.verify.plugin", "kb.verify.collection", "kb.verify.running", *names]))
    parent.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
