"""The `run_script` fixture: a program in processes of its own, with everything it printed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Environment variables that keep Hugging Face libraries from reaching for the network."""

_OUTPUT_LIMIT = 4 * 1024 * 1024
_GRACE = 15.0
"""Seconds that the other processes get to report, once one has failed."""


class ScriptFailed(Exception):  # noqa: N818
    """A process of `run_script` ended badly. `output` is all they printed, `codes` their exit codes."""

    def __init__(self, reason: str, output: str, codes: tuple[int | None, ...]) -> None:
        super().__init__(reason)
        self.output = output
        self.codes = codes


class ScriptRunner:
    """Runs programs for one arm on one device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(
        self,
        code: str,
        nproc: int = 1,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        launcher: str | None = None,
    ) -> str:
        """Run `code` as `nproc` processes in an empty folder; what they printed, both streams together.

        RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are set; `KB_DEVICE` is the device under test.
        `launcher="torchrun"` starts them through `torch.distributed.run`. Raises ScriptFailed if one fails, or has
        not ended after `timeout` seconds.
        """
        if launcher not in (None, "torchrun"):
            raise ValueError(f"unknown launcher {launcher!r}, use None or 'torchrun'")
        with tempfile.TemporaryDirectory(prefix="kb-", ignore_cleanup_errors=True) as folder:
            file = Path(folder, "script.py")
            file.write_text(textwrap.dedent(code), encoding="utf-8")
            printed = Path(folder).parent / f"{Path(folder).name}.out"
            try:
                reason, codes = self._run(file, printed, nproc, dict(env or {}), timeout, launcher)
                output = _read(printed).replace(f"{folder}{os.sep}", "").replace(folder, ".")
            finally:
                printed.unlink(missing_ok=True)
        if reason:
            raise ScriptFailed(reason, output, codes)
        return output

    def _run(
        self, file: Path, printed: Path, nproc: int, env: dict[str, str], timeout: float, launcher: str | None
    ) -> tuple[str, tuple[int | None, ...]]:
        port = _free_port()
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={nproc}", f"--master-port={port}"]
        command = [sys.executable, *(torchrun if launcher else []), str(file)]
        started: list[subprocess.Popen[bytes]] = []
        with printed.open("ab") as sink:
            try:
                for rank in range(1 if launcher else nproc):
                    started.append(
                        subprocess.Popen(
                            command,
                            cwd=file.parent,
                            env=self._environment({} if launcher else _rank(rank, nproc, port), env),
                            stdin=subprocess.DEVNULL,
                            stdout=sink,
                            stderr=subprocess.STDOUT,
                            start_new_session=os.name == "posix",
                        )
                    )
                timed_out = not _wait(started, timeout)
            finally:
                for process in started:
                    _kill(process)
        codes = tuple(process.returncode for process in started)
        if timed_out:
            return f"no end after {timeout:g} s", codes
        failed = [f"process {rank} ended with exit code {code}" for rank, code in enumerate(codes) if code != 0]
        return ", ".join(failed), codes

    def _environment(self, rank: dict[str, str], env: dict[str, str]) -> dict[str, str]:
        return {**os.environ, **OFFLINE, "PYTHONUNBUFFERED": "1", "KB_DEVICE": self.device, **rank, **env}


def _rank(rank: int, nproc: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> bool:
    """Whether all ended in time. Once one has failed, the others get a grace period and are then ended."""
    deadline = time.monotonic() + timeout
    failed_at: float | None = None
    while True:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes):
            return True
        now = time.monotonic()
        if failed_at is None and any(code not in (None, 0) for code in codes):
            failed_at = now
        if failed_at is not None and now > failed_at + _GRACE:
            return True
        if now > deadline:
            return failed_at is not None
        time.sleep(0.02)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and, where there are process groups, whatever it started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _read(file: Path) -> str:
    """The printed text; of more than the limit, its first and last half."""
    data = file.read_bytes()
    if len(data) > _OUTPUT_LIMIT:
        half = _OUTPUT_LIMIT // 2
        data = data[:half] + b"\n[...]\n" + data[-half:]
    return data.decode("utf-8", errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
