"""The processes that arms are forked from.

`python -m kb.verify.parent MODULE...` imports the heavy libraries once and touches no GPU. For each script it forks a
server, which collects the script and thereby imports what that one needs; the server forks a child for every arm.
Orders come in on standard input, one JSON object a line, and are passed on to servers; answers of all of them go out on
standard output. When standard input closes, everything is killed. POSIX only; the memory limit needs Linux.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
from typing import Any

import pytest

from kb.verify import processes
from kb.verify.supervisor import Supervisor, tell

_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
_CHECK_BEFORE = os.environ.get(_CHECK)


class Parent(Supervisor):
    """Forks a server for each script that is opened."""

    def __init__(self, orders: int, answers: int) -> None:
        super().__init__(orders, answers)
        self._servers: dict[int, int] = {}

    def obey(self, order: dict[str, Any]) -> None:
        if "to" in order:
            self._pass_on(order)
            return
        reading, writing = os.pipe()
        self._servers[order["id"]] = writing
        others = [self.orders, *self._servers.values()]
        self.start(order, lambda: serve(order, reading, self.answers, others))
        os.close(reading)

    def ended(self, job: dict[str, Any]) -> None:
        os.close(self._servers.pop(job["id"]))

    def _pass_on(self, order: dict[str, Any]) -> None:
        pipe = self._servers.get(order["to"])
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                processes.write_all(pipe, json.dumps(order["order"]).encode() + b"\n")


class Server(Supervisor):
    """A pytest plugin that waits for orders instead of running what was collected, and forks a child for each."""

    def __init__(self, order: dict[str, Any], orders: int, answers: int) -> None:
        super().__init__(orders, answers)
        self._order = order
        self._items: dict[str, Any] = {}
        self._touched = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of running everything: wait for orders."""
        self._items = {item.nodeid.partition("::")[2]: item for item in session.items}
        self._touched = processes.touched_cuda()
        # What exists now is shared with the children as long as nobody writes to it, the garbage collector included.
        gc.collect()
        gc.freeze()
        if self._items:
            tell(self.answers, opened=self._order["id"])
            self.serve()
        return True

    def obey(self, order: dict[str, Any]) -> None:
        # A GPU that was already spoken to cannot be spoken to from a fork.
        fresh = order["fresh"] or self._touched
        self.start(order, lambda: self._become(order, fresh))

    def _become(self, order: dict[str, Any], fresh: bool) -> None:
        os.close(self.orders)
        os.close(self.answers)
        _move_in(order)
        if _CHECK_BEFORE is None:
            # The program under test gets torch's own way back.
            os.environ.pop(_CHECK, None)
        if fresh:
            *options, script = self._order["arguments"]
            arguments = [*options, f"--kb-trials={order['progress']}", f"{script}::{order['name']}"]
            os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
        item = self._items[order["name"]]
        item.config.option.kb_trials = order["progress"]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def serve(order: dict[str, Any], orders: int, answers: int, others: list[int]) -> None:
    """Be the server of one script."""
    for other in others:
        os.close(other)
    processes.adopt_orphans()
    _move_in(order)
    if not order["network"]:
        processes.leave_network()
    pytest.main(order["arguments"], plugins=[Server(order, orders, answers)])


def _move_in(order: dict[str, Any]) -> None:
    """Make the folders, the environment and the output of an order this process's own."""
    processes.redirect(order["log"])
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    tempfile.tempdir = None
    faulthandler.enable(2)


def preload(names: list[str]) -> list[str]:
    """Import what can be imported; the names that could."""
    loaded = []
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
            loaded.append(name)
    return loaded


def main(names: list[str]) -> None:
    """Preload, say so, serve."""
    orders, answers = os.dup(0), os.dup(1)
    # Whatever a library prints must not end up between the answers.
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.die_with_parent()
    processes.adopt_orphans()
    # Has torch ask NVML whether there is a GPU: the usual way would start the driver, which no fork survives.
    os.environ[_CHECK] = "1"
    tell(answers, ready=preload(["kb.verify.collection", "kb.verify.running", "kb.verify.report", *names]))
    gc.freeze()
    Parent(orders, answers).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
