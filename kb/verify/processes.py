"""What is asked of the operating system about processes. Where it does not know, limits are not enforced.

Memory is watched by asking the kernel what a process and its descendants hold. An address-space limit (RLIMIT_AS) would
be simpler, and would keep CUDA from starting: it reserves far more addresses than memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import NoReturn

LINUX = sys.platform == "linux"
_SET_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_GET_FLAGS, _SET_FLAGS, _INTERFACE_UP = 0x8913, 0x8914, 1


def held_bytes(pid: int) -> int:
    """Memory that a process and its descendants hold for themselves; 0 where the kernel does not say."""
    return sum(_anonymous_bytes(part) for part in tree(pid)) if LINUX else 0


def _anonymous_bytes(pid: int) -> int:
    # File pages are shared with every other child; counting them would punish importing a large library.
    total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * 1024
    return total


def tree(pid: int) -> list[int]:
    """A process and, on Linux, its descendants."""
    found = [pid]
    for part in found:
        found.extend(child for child in children(part) if child not in found)
    return found


def children(pid: int) -> list[int]:
    """Processes a process has started, or inherited as orphans; empty where the kernel does not say."""
    found: list[int] = []
    if LINUX:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
    return found


def kill_tree(pid: int) -> None:
    """Kill a process, its descendants and its group."""
    for part in tree(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(part, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_leftovers(ended: int, mark: str, others: set[int]) -> None:
    """Kill what an ended child left behind: its group, and orphans that carry its mark in `KB_NODE`.

    `others` are children that go on.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(ended, signal.SIGKILL)
    for pid in children(os.getpid()):
        if pid not in others and (not others or _carries(pid, mark)):
            kill_tree(pid)


def wait_for_all(seconds: float) -> None:
    """Wait for every child, adopted ones included, but no longer than this: one may be stuck in a driver."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def _carries(pid: int, mark: str) -> bool:
    with contextlib.suppress(OSError):
        return f"KB_NODE={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def touched_cuda() -> bool:
    """Whether this process has started the CUDA driver, which keeps this device open from then on."""
    with contextlib.suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()).startswith("/dev/nvidia-uvm"):
                    return True
    return False


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be found and killed."""
    if LINUX:
        _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Be killed when the parent ends, however it ends."""
    if LINUX:
        _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def go_first_when_memory_ends() -> None:
    """Ask the kernel to kill this process rather than others when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def leave_network() -> bool:
    """Cut this process and its descendants off every network but their own loopback; whether the system allowed it."""
    if not LINUX:
        return False
    # Half of it, a network without loopback, would be worse than none: another process tries it first.
    probe = os.fork()
    if probe == 0:
        leave(0 if _leave_network() else 1)
    return os.waitpid(probe, 0)[1] == 0 and _leave_network()


def _leave_network() -> bool:
    user, group = os.getuid(), os.getgid()
    try:
        if not _unshare(_NEW_NETWORK):
            if not _unshare(_NEW_NETWORK | _NEW_USER):
                return False
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        _raise_loopback()
    except OSError:
        return False
    return True


def _unshare(what: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).unshare(what) == 0)
    except (OSError, AttributeError):
        return False


def _raise_loopback() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _GET_FLAGS, request))[1]
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _INTERFACE_UP))


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def redirect(log: str) -> None:
    """Read from nothing, print to the log."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (sink, 1), (sink, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(sink)


def leave(code: int) -> NoReturn:
    """End at once. An orderly shutdown could hang or crash on what was broken, and there is nothing left to do."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def size(path: str) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything."""
    while data:
        data = data[os.write(descriptor, data) :]


def default_memory_limit() -> int | None:
    """Bytes: three quarters of the memory that is free now; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 * 3 // 4
    return None


def can_fork() -> bool:
    """Whether this system can fork processes."""
    return hasattr(os, "fork") and sys.platform != "win32"
