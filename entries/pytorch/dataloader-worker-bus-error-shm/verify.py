# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "numpy"]
# ///
"""Loader processes that run out of shared memory, and one that only looks like it.

The process gets a mount of its own on /dev/shm, a few MiB where a container has 64, which no other process sees.
Then: a batch that is larger than it, batches that exceed it together, a cache in shared memory that each worker
allocates, and a memory-mapped data file that was cut short.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

pytestmark = pytest.mark.requires(torch=">=2.1", os="linux")

MIB = 2**20
LENGTH = 12
ROW_BYTES = MIB
SHM = {"batch-too-large": 4, "too-much-in-flight": 7, "cache-of-each-worker": 8, "mapped-file-cut-short": 64}
"""MiB of /dev/shm."""
LOADER = {
    "batch-too-large": {"batch_size": 6, "num_workers": 1},
    "too-much-in-flight": {"batch_size": 2, "num_workers": 3, "prefetch_factor": 2},
    "cache-of-each-worker": {"batch_size": 1, "num_workers": 3, "prefetch_factor": 1},
    "mapped-file-cut-short": {"batch_size": 2, "num_workers": 1},
}
_PRIVATE, _REMOUNT, _NAMESPACE, _USER = 0x44000, 0x20, 0x20000, 0x10000000


@pytest.fixture(params=list(LOADER))
def config(request) -> str:
    return request.param


class Images(Dataset):
    """Row `i` is 1 MiB of the number `i`."""

    def __init__(self, config: str, file: pathlib.Path | None = None) -> None:
        self.cached = config == "cache-of-each-worker"
        self.cache: SharedMemory | None = None
        self.mapped = None if file is None else np.memmap(file, dtype=np.float32, mode="r").reshape(LENGTH, -1)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.cached and self.cache is None:
            self.cache = SharedMemory(create=True, size=3 * MIB)
            self.cache.buf[:] = bytes(3 * MIB)
        if self.mapped is not None:
            return torch.from_numpy(np.array(self.mapped[index]))
        return torch.full((ROW_BYTES // (16 if self.cached else 4),), float(index))


def limit_shared_memory(mib: int) -> None:
    """Give this process and its children a /dev/shm of this size, until they end; skips where that is not allowed."""
    libc = ctypes.CDLL(None)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NAMESPACE) and not libc.unshare(_NAMESPACE | _USER):
        pathlib.Path("/proc/self/setgroups").write_text("deny")
        pathlib.Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    libc.mount(None, b"/", None, _PRIVATE, None)
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={mib}m".encode()):
        pytest.skip("this system does not allow a mount of one's own on /dev/shm")


def data_file(folder: pathlib.Path, rows: int = LENGTH) -> pathlib.Path:
    """Numbers to map into memory, of which the file holds only the first `rows` rows."""
    path = folder / "rows.bin"
    np.concatenate([np.full(1024, index, dtype=np.float32) for index in range(LENGTH)]).tofile(path)
    os.truncate(path, rows * 4096)
    return path


@contextlib.contextmanager
def deaths_reported_here() -> Iterator[None]:
    """torch reports dead workers from a signal handler; it must not fire again when the program is over."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if callable(before) else signal.SIG_DFL)
        signal_handling._SIGCHLD_handler_set = False


def epoch(images: Images, **options) -> torch.Tensor:
    """The mean of each row, with a training step after each batch, the first one slow as warm-up makes it."""
    means = []
    for batch in DataLoader(images, multiprocessing_context="fork" if options.get("num_workers") else None, **options):
        time.sleep(0.01 if means else 0.5)
        means.append(torch.as_tensor(batch).double().mean(dim=1))
    return torch.cat(means)


def load(config: str, folder: pathlib.Path, mib: int | None = None, **options) -> torch.Tensor:
    settings = {**LOADER[config], **options}
    path = data_file(folder) if config == "mapped-file-cut-short" else None
    images = Images(config, path)
    if path:
        os.truncate(path, 4096)
    limit_shared_memory(mib or SHM[config])
    with deaths_reported_here():
        return epoch(images, **settings)


def expected() -> torch.Tensor:
    return torch.arange(LENGTH, dtype=torch.float64)


def skip_mapped(config: str) -> None:
    if config == "mapped-file-cut-short":
        pytest.skip("shared memory is not what is short here")


@pytest.mark.reproduces
def test_reproduces(config, tmp_path):
    load(config, tmp_path)


@pytest.mark.workaround("more-shm")
def test_more_shm(config, tmp_path, measure):
    skip_mapped(config)
    measure.compare(load(config, tmp_path, mib=64), expected(), tolerance=0.0)


@pytest.mark.workaround("remount")
def test_remount(config, measure):
    skip_mapped(config)
    limit_shared_memory(SHM[config])
    if ctypes.CDLL(None).mount(b"tmpfs", b"/dev/shm", b"tmpfs", _REMOUNT, b"size=64m"):
        pytest.skip("needs root")
    measure.compare(epoch(Images(config), **LOADER[config]), expected(), tolerance=0.0)


@pytest.mark.workaround("fewer-workers")
def test_fewer_workers(config, tmp_path, measure):
    skip_mapped(config)
    result = load(config, tmp_path, batch_size=1, num_workers=1, prefetch_factor=1)
    measure.compare(result, expected(), tolerance=0.0)


@pytest.mark.workaround("no-workers")
def test_no_workers(config, tmp_path, measure):
    skip_mapped(config)
    result = load(config, tmp_path, num_workers=0, prefetch_factor=None)
    measure.compare(result, expected(), tolerance=0.0)


@pytest.mark.workaround("collate-to-numpy")
def test_collate_to_numpy(config, tmp_path, measure):
    skip_mapped(config)
    if config == "cache-of-each-worker":
        pytest.skip("the batches are not what fills it")
    result = load(config, tmp_path, collate_fn=lambda rows: np.stack([row.numpy() for row in rows]))
    measure.compare(result, expected(), tolerance=0.0)


@pytest.mark.workaround("check-the-files")
def test_check_the_files(config, tmp_path, measure):
    if config != "mapped-file-cut-short":
        pytest.skip("nothing is mapped from disk")
    path = data_file(tmp_path, rows=LENGTH // 2)
    assert path.stat().st_size < LENGTH * 4096
    path = data_file(tmp_path)
    measure.compare(epoch(Images(config, path), **LOADER[config]), expected(), tolerance=0.0)


@pytest.mark.dead_end("shmmax")
def test_shmmax(config, tmp_path):
    """Where the limit of System V segments is far above all batches together, as it is by default."""
    assert int(pathlib.Path("/proc/sys/kernel/shmmax").read_text()) > 1000 * LENGTH * ROW_BYTES
    load(config, tmp_path)


@pytest.mark.dead_end("file-system-strategy")
def test_file_system_strategy(config, tmp_path):
    """In a process of its own, since the strategy holds for all that a process shares from then on."""
    in_a_process(load_by_file_name, config, tmp_path)


def load_by_file_name(config: str, folder: pathlib.Path) -> torch.Tensor:
    torch.multiprocessing.set_sharing_strategy("file_system")
    return load(config, folder)


@pytest.mark.dead_end("no-workers-for-a-mapped-file")
def test_no_workers_for_a_mapped_file(config, tmp_path):
    """In a process of its own, since the bus error now ends the one that reads."""
    if config != "mapped-file-cut-short":
        pytest.skip("without workers this works")
    in_a_process(load_alone, config, tmp_path)


def load_alone(config: str, folder: pathlib.Path) -> torch.Tensor:
    return load(config, folder, num_workers=0)


def in_a_process(program: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
        return process.submit(program, *arguments).result()
