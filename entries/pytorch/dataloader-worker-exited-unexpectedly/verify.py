# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1"]
# ///
"""Loader processes that die without an exception.

Four deaths: a script without main guard whose spawned worker starts the script again (the default on Windows and macOS,
asked for by name here); a damaged file that crashes native code, played by a read of address 0; a native library that
does not survive the fork, played by a handle that aborts in any process but its own; and the kernel out of memory,
played by a budget of samples that may be decoded and not yet used: the worker that exceeds it gets SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data._utils import signal_handling

pytestmark = pytest.mark.requires(torch=">=2.1", os=("linux", "macos"))

LENGTH, BAD, BUDGET = 24, 2, 10


@pytest.fixture(params=["no-main-guard", "bad-file", "crash-after-fork", "out-of-memory"])
def config(request) -> str:
    return request.param


class Handle:
    """A native library's state that is good in the process that made it."""

    def __init__(self) -> None:
        self.owner = os.getpid()

    def read(self) -> None:
        if os.getpid() != self.owner:
            os.abort()


class Clips(Dataset):
    """Row `i` holds the number `i`; reading it may end the process."""

    def __init__(self, config: str, lazy: bool = False) -> None:
        self.config, self.lazy = config, lazy
        self.handle = None if lazy else Handle()
        self.held = multiprocessing.get_context("fork").Value("q", 0)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.config == "bad-file" and index == BAD:
            ctypes.string_at(0)
        if self.config == "crash-after-fork":
            self.handle = self.handle or Handle()
            self.handle.read()
        if self.config == "out-of-memory":
            time.sleep(0.01)
            with self.held.get_lock():
                self.held.value += 1
                over = self.held.value > BUDGET
            if over:
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(float(index))

    def free(self, rows: int) -> None:
        with self.held.get_lock():
            self.held.value -= rows


@contextlib.contextmanager
def deaths_reported_here() -> Iterator[None]:
    """torch reports dead workers from a signal handler; it must not fire again when the program is over."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if callable(before) else signal.SIG_DFL)
        signal_handling._SIGCHLD_handler_set = False


def epoch(loader: DataLoader, clips: Clips) -> torch.Tensor:
    """All rows that arrived, with a training step after each batch, the first one slow as warm-up makes it."""
    seen = []
    for batch in loader:
        time.sleep(0.01 if seen else 0.5)
        seen.append(batch)
        clips.free(len(batch))
    return torch.cat(seen)


def load(clips: Clips, data: Dataset | None = None, **options) -> torch.Tensor:
    settings = {"batch_size": 4, "num_workers": 3, "multiprocessing_context": "fork", **options}
    with deaths_reported_here():
        return epoch(DataLoader(data or clips, **settings), clips)


def rows(indices: Iterable[int] = range(LENGTH)) -> torch.Tensor:
    return torch.tensor([float(index) for index in indices])


SCRIPT = """
import os
import torch
from torch.utils.data import DataLoader, Dataset

class Handle:
    def __init__(self):
        self.owner = os.getpid()
    def read(self):
        if os.getpid() != self.owner:
            os.abort()

handle = Handle()

class Clips(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        handle.read()
        return torch.tensor(float(index))

def main():
    loader = DataLoader(Clips(), batch_size=4, num_workers={workers}{options})
    print("sum", float(sum(batch.sum() for batch in loader)))

{guard}main()
"""
BAD_FILE_SCRIPT = """
import ctypes
from torch.utils.data import DataLoader

class Clips:
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return ctypes.string_at(0) if index == 5 else index

for batch in DataLoader(Clips(), batch_size=4, num_workers=0):
    print(batch)
"""
GUARD = 'if __name__ == "__main__":\n    '
SPAWN = ", multiprocessing_context='spawn'"


def script(workers: int = 1, options: str = SPAWN, guard: str = "") -> str:
    return SCRIPT.format(workers=workers, options=options, guard=guard)


def skip_unless(applies: bool, reason: str) -> None:
    if not applies:
        pytest.skip(reason)


@pytest.mark.reproduces
def test_reproduces(config, run_script):
    if config == "no-main-guard":
        run_script(script())
    else:
        load(Clips(config))


@pytest.mark.workaround("main-guard")
def test_main_guard(config, run_script):
    skip_unless(config == "no-main-guard", "forked workers do not run the script again")
    assert "sum 28.0" in run_script(script(guard=GUARD))


@pytest.mark.workaround("no-workers")
def test_no_workers(config, run_script, measure):
    skip_unless(config != "bad-file", "the crash then ends the main process, see the dead end")
    if config == "no-main-guard":
        assert "sum 28.0" in run_script(script(workers=0, options=""))
    else:
        result = load(Clips(config), num_workers=0, multiprocessing_context=None)
        measure.compare(result, rows(), tolerance=0.0)


@pytest.mark.workaround("less-memory")
def test_less_memory(config, measure):
    skip_unless(config == "out-of-memory", "memory is not what ended the worker")
    result = load(Clips(config), batch_size=2, num_workers=2, prefetch_factor=1)
    measure.compare(result, rows(), tolerance=0.0)


@pytest.mark.workaround("find-the-file")
def test_find_the_file(config, measure):
    skip_unless(config == "bad-file", "no single sample is to blame")
    clips = Clips(config)
    bad = [index for index in range(len(clips)) if crashes(clips, index)]
    assert bad == [BAD]
    good = [index for index in range(len(clips)) if index not in bad]
    measure.compare(load(clips, Subset(clips, good)), rows(good), tolerance=0.0)


def crashes(clips: Clips, index: int) -> bool:
    """Whether reading one sample ends a process."""
    probe = multiprocessing.get_context("fork").Process(target=clips.__getitem__, args=(index,))
    probe.start()
    probe.join()
    return probe.exitcode != 0


@pytest.mark.workaround("spawn")
def test_spawn(config, run_script):
    skip_unless(config == "crash-after-fork", "the fork does no harm here")
    assert "sum 28.0" in run_script(script(guard=GUARD))


@pytest.mark.workaround("open-in-the-worker")
def test_open_in_the_worker(config, measure):
    skip_unless(config == "crash-after-fork", "no handle is carried over the fork")
    measure.compare(load(Clips(config, lazy=True)), rows(), tolerance=0.0)


@pytest.mark.dead_end("longer-timeout")
def test_longer_timeout(config, run_script):
    if config == "no-main-guard":
        run_script(script(options=f"{SPAWN}, timeout=100"))
    else:
        load(Clips(config), timeout=100)


@pytest.mark.dead_end("catch-in-the-data-set")
def test_catch_in_the_data_set(config):
    skip_unless(config != "no-main-guard", "the data set is never asked for anything")

    class Forgiving(Clips):
        def __getitem__(self, index: int) -> torch.Tensor:
            try:
                return super().__getitem__(index)
            except BaseException:
                return torch.tensor(-1.0)

    load(Forgiving(config))


@pytest.mark.dead_end("no-workers-for-a-bad-file")
def test_no_workers_for_a_bad_file(config, run_script):
    skip_unless(config == "bad-file", "without workers this works")
    run_script(BAD_FILE_SCRIPT)
