"""`kb run -- CMD`: run a program as if it had been started directly, and explain its death from what it printed.

Its output passes through as it comes. Where standard output or error is a terminal the program gets one too (POSIX),
so that progress bars and colours stay. Interrupts reach it, other signals are handed on, its exit code is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Any

from kb.errors import UsageError

_PIECE = 65_536
_HEAD = 262_144
_TAIL = 8_388_608
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_LINGER = 1.0
"""Seconds without output after which a process that outlives the child is not waited for."""
_LARGEST_ERROR_FILE = 4_194_304
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it printed as far as it was kept."""

    code: int
    """Its exit code, 128 + n if signal n ended it."""
    output: str


class Tail:
    """The first and the last bytes of a stream, in bounded memory."""

    def __init__(self, head: int = _HEAD, tail: int = _TAIL) -> None:
        self._room = head
        self._head: list[bytes] = []
        self._pieces: deque[bytes] = deque()
        self._kept = 0
        self._limit = tail
        self.size = 0
        """Bytes that came in all."""
        self.dropped = 0
        """Bytes between head and tail that were let go."""

    def add(self, data: bytes) -> None:
        """Take in what came."""
        self.size += len(data)
        if self._room:
            self._head.append(data[: self._room])
            data = data[self._room :]
            self._room -= len(self._head[-1])
        if data:
            self._pieces.append(data)
            self._kept += len(data)
        while self._kept > self._limit and len(self._pieces) > 1:
            gone = self._pieces.popleft()
            self._kept -= len(gone)
            self.dropped += len(gone)

    def text(self) -> str:
        """Both parts as text, with a line between them that says how much is missing."""
        gap = f"\n[{self.dropped} bytes left out]\n".encode() if self.dropped else b""
        return b"".join([*self._head, gap, *self._pieces]).decode("utf-8", "replace")


def run(command: Sequence[str]) -> Ended:
    """Run `command` and wait for it. Raises UsageError if it cannot be started."""
    tail = Tail()
    with tempfile.TemporaryDirectory(prefix="kb-run-") as folder:
        environment = dict(os.environ)
        environment.setdefault("PYTHONUNBUFFERED", "1")  # so that both streams arrive in the order of printing
        # A launcher whose workers use `torch.distributed.elastic.multiprocessing.errors.record` copies the first
        # failure's traceback there; its own summary only names the file.
        error_file = Path(environment.setdefault(_ERROR_FILE, str(Path(folder) / "error.json")))
        streams = _Streams()
        try:
            child = _started(command, environment, streams)
        except OSError as error:
            streams.close()
            reason = error.strerror or str(error)
            raise UsageError(f"cannot start {command[0]}: {reason}", "check its name and PATH") from error
        streams.started()
        with _signals_to(child, streams):
            code = streams.pump(tail, child)
        told = _told(error_file) if code else ""
    output = tail.text()
    if told and told.strip().splitlines()[-1].strip() not in output:
        output = f"{output.rstrip()}\n\n{told.rstrip()}\n"
    return Ended(128 - code if code < 0 else code, output)


def _started(command: Sequence[str], environment: dict[str, str], streams: _Streams) -> subprocess.Popen[bytes]:
    return subprocess.Popen(list(command), env=environment, stdout=streams.out, stderr=streams.err)


class _Streams:
    """Where the child writes, and where that goes. A terminal stands for a terminal, a pipe for everything else."""

    def __init__(self) -> None:
        self._readers: dict[int, int] = {}
        """Our end of each channel, and the descriptor that gets what arrives there."""
        self._theirs: list[int] = []
        self._terminals: list[int] = []
        out_tty, err_tty = _is_terminal(sys.stdout), _is_terminal(sys.stderr)
        self.out = self._channel(1, terminal=out_tty)
        self.err = self.out if out_tty and err_tty else self._channel(2, terminal=err_tty)

    def _channel(self, goal: int, *, terminal: bool) -> int:
        reader, writer = _terminal() if terminal else os.pipe()
        self._readers[reader] = goal
        self._theirs.append(writer)
        if terminal:
            self._terminals.append(reader)
        return writer

    def started(self) -> None:
        """The child has its ends now; ours of them would keep the channels open for ever."""
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs.clear()
        self.resize()

    def close(self) -> None:
        """Let go of everything."""
        for descriptor in (*self._theirs, *self._readers):
            os.close(descriptor)

    def resize(self, *_: Any) -> None:
        """Give the child's terminal the size of ours."""
        if not self._terminals:
            return
        import fcntl
        import termios

        with contextlib.suppress(OSError):
            size = fcntl.ioctl(1 if _is_terminal(sys.stdout) else 2, termios.TIOCGWINSZ, b"\0" * 8)
            for terminal in self._terminals:
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)

    def pump(self, tail: Tail, child: subprocess.Popen[bytes]) -> int:
        """Hand everything on until the child has ended and its output with it; its return code.

        A process it left behind may keep the channels open: what that prints is waited for only while it prints.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        lock = Lock()
        pumps = [Thread(target=self._one, args=(*pair, tail, lock), daemon=True) for pair in self._readers.items()]
        for pump in pumps:
            pump.start()
        code = child.wait()
        seen = -1
        while any(pump.is_alive() for pump in pumps) and tail.size != seen:
            seen = tail.size
            for pump in pumps:
                pump.join(_LINGER / len(pumps))
        return code

    def _one(self, reader: int, goal: int, tail: Tail, lock: Lock) -> None:
        while data := _read(reader):
            with lock:
                tail.add(data)
            _write(goal, data)
        os.close(reader)


def _is_terminal(stream: IO[str]) -> bool:
    return os.name == "posix" and stream.isatty()


def _terminal() -> tuple[int, int]:
    import pty
    import termios

    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST  # the real terminal translates line ends; doing it twice would show
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    return ours, theirs


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _PIECE)
    except OSError:  # Linux says EIO when the last writer of a terminal is gone
        return b""


def _write(goal: int, data: bytes) -> None:
    """Whole, and without dying where our own reader has gone: the child's work goes on."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(goal, view) :]
        except BlockingIOError:
            continue
        except OSError:
            return


@contextlib.contextmanager
def _signals_to(child: subprocess.Popen[bytes], streams: _Streams) -> Iterator[None]:
    """While the child runs: the terminal interrupts it directly, so we wait; what is sent to us it gets too."""
    before: dict[int, Any] = {}

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(OSError):
            child.send_signal(number)

    def interrupted(number: int, _: object) -> None:
        # From a keyboard the whole process group gets it; from `kill -INT` only we do.
        if not (sys.stdin and sys.stdin.isatty()):
            forward(number, None)

    try:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupted)
        for name in _FORWARDED:
            if number := getattr(signal, name, None):
                before[number] = signal.signal(number, forward)
        if hasattr(signal, "SIGWINCH"):
            before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, streams.resize)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(file: Path) -> str:
    """The traceback that a worker of torch's launcher left behind, empty if there is none.

    Shape: torch.distributed.elastic.multiprocessing.errors, `ErrorHandler.record_exception`.
    """
    try:
        if file.stat().st_size > _LARGEST_ERROR_FILE:
            return ""
        message = json.loads(file.read_text(encoding="utf-8", errors="replace"))["message"]
        if isinstance(message, dict):
            message = (message.get("extraInfo") or {}).get("py_callstack") or message.get("message")
        return message if isinstance(message, str) else ""
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
