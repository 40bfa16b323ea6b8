"""Forks children, kills those that take too long or too much, and says how each ended."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kb.verify import processes

POLL = 0.05
"""Seconds between two looks at what the children hold."""


def tell(answers: int, **answer: Any) -> None:
    """Send one answer. Short lines arrive whole, although several processes write to the same pipe."""
    processes.write_all(answers, json.dumps(answer).encode() + b"\n")


@dataclass
class Child:
    """A running job.

    The job's `progress` file gets its first line when the work proper begins: until then `startup` seconds are
    allowed, from then on `limit`. `memory` is in bytes, null for no limit.
    """

    job: dict[str, Any]
    pid: int
    started: float
    deadline: float
    begun: bool = False
    killed: str | None = None

    def watch(self, now: float) -> None:
        """Notice the beginning of the work, and what there is to kill it for."""
        if not self.begun and processes.size(self.job["progress"]):
            self.begun = True
            self.deadline = now + self.job["limit"]
        if self.job["memory"] and processes.held_bytes(self.pid) > self.job["memory"]:
            self.killed = "memory"
        elif now > self.deadline:
            self.killed = "limit" if self.begun else "startup"


class Supervisor:
    """Reads orders from one descriptor, answers on another. Subclasses say what an order means."""

    def __init__(self, orders: int, answers: int) -> None:
        self.orders = orders
        self.answers = answers
        self._children: dict[int, Child] = {}
        self._unread = b""

    def obey(self, order: dict[str, Any]) -> None:
        """Carry out one order."""
        raise NotImplementedError

    def ended(self, job: dict[str, Any]) -> None:
        """Clean up after a job."""

    def serve(self) -> None:
        """Work until the orders end, then kill what still runs."""
        awake, alarm = os.pipe()
        os.set_blocking(alarm, False)
        # The end of a child interrupts the wait below through this pipe.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        self._pipes = [awake, alarm]
        listening = True
        while listening:
            ready, _, _ = select.select([self.orders, awake], [], [], POLL if self._children else None)
            if awake in ready:
                os.read(awake, 4096)
            if self.orders in ready:
                listening = self._receive()
            self._watch()
            self._reap()
        for child in self._children.values():
            processes.kill_tree(child.pid)
        processes.wait_for_all(5.0)

    def start(self, job: dict[str, Any], become: Callable[[], None]) -> None:
        """Fork a child that does `become` and ends."""
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                self._leave_parent()
                become()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                processes.leave(code)
        now = time.monotonic()
        self._children[pid] = Child(job, pid, now, now + job["startup"])

    def _leave_parent(self) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for pipe in self._pipes:
            os.close(pipe)
        self._children.clear()
        processes.die_with_parent()
        processes.go_first_when_memory_ends()

    def _receive(self) -> bool:
        data = os.read(self.orders, 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "stop" in order:
                return False
            self.obey(order)
        return bool(data)

    def _watch(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            child.watch(now)
            if child.killed:
                processes.kill_tree(child.pid)

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
                self._finish(child, os.waitstatus_to_exitcode(status))

    def _finish(self, child: Child, status: int) -> None:
        processes.kill_leftovers(child.pid, child.job["env"]["KB_NODE"], set(self._children))
        self.ended(child.job)
        seconds = round(time.monotonic() - child.started, 3)
        tell(self.answers, id=child.job["id"], status=status, killed=child.killed, seconds=seconds)
