"""Engines: what keeps workers busy with parts. Both take the same work and say the same.

Daft does it on one machine and, through Ray, on many; plain processes do it where Daft is not installed. An engine
only deals parts out. What is lost when a worker dies is the caller's to find out and to give again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal

from kb.errors import UsageError

Work = Callable[[str], str]
Engine = Literal["auto", "daft", "processes"]


class WorkerLostError(Exception):
    """A worker died. Some parts that were given are not done."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chosen(engine: Engine, address: str | None) -> Engine:
    """The engine to use. Raises UsageError if it cannot be had."""
    has_daft = find_spec("daft") is not None
    if address is not None and engine == "processes":
        raise UsageError("--address: plain processes know no cluster", "leave --engine out")
    if not has_daft and (engine == "daft" or address is not None):
        wanted = "provenfix[batch]" if address is None else "provenfix[batch-ray]"
        raise UsageError("daft is not installed", f"pip install '{wanted}'")
    return engine if engine != "auto" else "daft" if has_daft else "processes"


def deal(engine: Engine, work: Work, tasks: Sequence[str], workers: int, address: str | None = None) -> Iterator[str]:
    """What `work` said of each task, in the order they are done. Raises WorkerLostError when a worker has died."""
    if not tasks:
        return iter(())
    return _daft(work, tasks, workers, address) if engine == "daft" else _processes(work, tasks, workers)


def _processes(work: Work, tasks: Sequence[str], workers: int) -> Iterator[str]:
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    waiting = iter(tasks)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    try:
        running: set[Future[str]] = {pool.submit(work, task) for task in islice(waiting, workers + 1)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            running |= {pool.submit(work, task) for task in islice(waiting, len(done))}
    except BrokenProcessPool as error:
        raise WorkerLostError(str(error)) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """The run decides what an interrupt ends; a worker whose run was killed would wait for work for ever."""
    import signal
    from multiprocessing import parent_process
    from threading import Thread

    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _daft(work: Work, tasks: Sequence[str], workers: int, address: str | None) -> Iterator[str]:
    daft = _prepared(address)

    class Worker:
        def __init__(self, work: Work) -> None:
            self.work = work

        @daft.method(return_dtype=daft.DataType.string())  # type: ignore[untyped-decorator]
        def do(self, task: str) -> str:
            return self.work(task)

    made = daft.cls(Worker, max_concurrency=workers, use_process=True)(work)
    table = daft.from_pydict({"task": list(tasks)}).into_batches(1)
    rows = table.select(made.do(daft.col("task")).alias("said")).iter_rows(results_buffer_size=workers)
    try:
        for row in rows:
            yield str(row["said"])
    except Exception as error:  # the work itself raises nothing, so it is the engine, or a worker, that failed
        raise WorkerLostError(" ".join(str(error).split())[:300]) from error


def _prepared(address: str | None) -> Any:
    """Daft, set to run here or on the cluster."""
    # Logs are private: nothing is reported about runs over them. Asked for before the first import.
    os.environ.update(DAFT_ANALYTICS_ENABLED="0", DO_NOT_TRACK="1", DAFT_PROGRESS_BAR="0")
    import daft

    # A lost worker is no news to the user; what Daft says of it comes with its exception.
    logging.getLogger("daft_local_execution").setLevel(logging.CRITICAL)
    if address is not None:
        try:
            daft.set_runner_ray(address, noop_if_initialized=True)
        except ImportError as error:
            raise UsageError(f"--address: {error}", "pip install 'provenfix[batch-ray]'") from error
        except (ConnectionError, ValueError) as error:
            raise UsageError(
                f"--address {address}: {error}", "ray://HOST:10001, or HOST:6379 on its head node"
            ) from error
    return daft
