# /// script
# requires-python = ">=3.11"
# dependencies = ["pytest", "torch>=2.1", "numpy"]
# ///
"""A main process that runs out of file descriptors for the tensors its workers send.

The limit is set some dozens above what is open, where a shell has 1024, and the data are as much smaller. The workers
keep the system's limit: where a worker runs out first, its own thread prints errors for ever and the loop hangs.
"""

from __future__ import annotations

import contextlib
import gc
import pathlib
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

pytestmark = pytest.mark.requires(torch=">=2.1", os="linux")

LENGTH, FIELDS = 200, 60
SPARE = {"batches-kept": 70, "items-kept": 70, "many-tensors": 180, "many-workers": 40}
"""Descriptors that may be opened besides those that are open already."""


@pytest.fixture(params=list(SPARE))
def config(request) -> str:
    return request.param


class Rows(Dataset):
    """A score and a name; or, as records with a tensor for every field, far too many tensors."""

    def __init__(self, config: str, length: int) -> None:
        self.many, self.length = config == "many-tensors", length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if self.many:
            return [torch.full((2,), float(index)) for _ in range(FIELDS)]
        return {"score": torch.full((4,), float(index)), "name": str(index)}


def roomy(_worker: int = 0) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def spare_descriptors(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(pathlib.Path("/proc/self/fd").iterdir())) + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def deaths_reported_here() -> Iterator[None]:
    """torch reports dead workers from a signal handler; it must not fire again when the program is over."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if callable(before) else signal.SIG_DFL)
        signal_handling._SIGCHLD_handler_set = False


Keep = Callable[[torch.Tensor], Any]
KEPT: dict[str, Keep] = {"batches-kept": lambda scores: scores, "items-kept": lambda scores: scores[0]}


def load(config: str, keep: Keep | None = None, spare: int | None = None, length: int | None = None, **options) -> list:
    """What is left of an epoch: the kept scores, else the first value of each batch."""
    settings = {"batch_size": 2, "num_workers": 2, "worker_init_fn": roomy, "multiprocessing_context": "fork"}
    if config == "many-tensors":
        settings.update(batch_size=8, collate_fn=list)
    if config == "many-workers":
        settings.update(num_workers=16)
    rows = Rows(config, length or (48 if config == "many-tensors" else LENGTH))
    left: list = []
    try:
        with deaths_reported_here(), spare_descriptors(spare or SPARE[config]):
            for batch in DataLoader(rows, **{**settings, **options}):
                left.append((keep or KEPT[config])(batch["score"]) if config in KEPT else float(first(batch)))
                del batch
    except BaseException as error:
        # What is kept, and what torch's frames hold, would leave descriptors open after this arm.
        left.clear()
        traceback.clear_frames(error.__traceback__)
        raise
    return left


def first(batch: Any) -> torch.Tensor:
    """The first number of a batch, whatever it is collated to."""
    return batch["score"][0, 0] if isinstance(batch, dict) else torch.as_tensor(np.asarray(batch[0][0])).flatten()[0]


def check(measure, left: list, length: int = LENGTH) -> None:
    """Each batch began with the row it should begin with."""
    found = torch.tensor([float(torch.as_tensor(np.asarray(part)).flatten()[0]) for part in left])
    step = length // len(left)
    measure.compare(found, torch.arange(0, length, step).double(), tolerance=0.0)


def length_of(config: str) -> int:
    return 48 if config == "many-tensors" else LENGTH


def skip_unless(applies: bool, reason: str) -> None:
    if not applies:
        pytest.skip(reason)


@contextlib.contextmanager
def shared_by_name() -> Iterator[None]:
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


@pytest.mark.reproduces
def test_reproduces(config):
    load(config)


@pytest.mark.workaround("raise-the-limit")
def test_raise_the_limit(config, measure):
    skip_unless(config not in KEPT, "what is kept reaches any limit, see the dead end")
    check(measure, load(config, spare=1500), length_of(config))


@pytest.mark.workaround("file-system-strategy")
def test_file_system_strategy(config, measure):
    skip_unless(config != "many-workers", "the descriptors of the workers themselves are too many, see the dead end")
    with shared_by_name():
        check(measure, load(config), length_of(config))


@pytest.mark.workaround("copy-what-you-keep")
def test_copy_what_you_keep(config, measure):
    skip_unless(config in KEPT, "nothing is kept")
    check(measure, load(config, keep=lambda scores: KEPT[config](scores).clone()))


@pytest.mark.workaround("fewer-tensors")
def test_fewer_tensors(config, measure):
    skip_unless(config == "many-tensors", "each batch is one tensor already")

    def one_tensor(rows: list) -> torch.Tensor:
        return torch.stack([torch.stack(fields) for fields in rows])

    def arrays(rows: list) -> list[np.ndarray]:
        return [np.stack([field.numpy() for field in fields]) for fields in rows]

    for collate in (one_tensor, arrays):
        check(measure, load(config, collate_fn=collate), length_of(config))


@pytest.mark.workaround("fewer-workers")
def test_fewer_workers(config, measure):
    skip_unless(config == "many-workers", "two workers are not too many")
    check(measure, load(config, num_workers=2))


@pytest.mark.dead_end("detach-what-you-keep")
def test_detach_what_you_keep(config):
    skip_unless(config in KEPT, "nothing is kept")
    load(config, keep=lambda scores: KEPT[config](scores).detach().cpu())


@pytest.mark.dead_end("collect-garbage")
def test_collect_garbage(config):
    skip_unless(config in KEPT, "nothing is kept")

    def keep(scores: torch.Tensor) -> torch.Tensor:
        gc.collect()
        return KEPT[config](scores)

    load(config, keep=keep, length=160)


@pytest.mark.dead_end("raise-the-limit-for-a-leak")
def test_raise_the_limit_for_a_leak(config):
    """Twice the limit, and an epoch of twice the length."""
    skip_unless(config in KEPT, "nothing is kept")
    load(config, spare=2 * SPARE[config], length=2 * LENGTH)


@pytest.mark.dead_end("file-system-for-many-workers")
def test_file_system_for_many_workers(config):
    skip_unless(config == "many-workers", "the tensors' descriptors are too many, which this is for")
    with shared_by_name():
        load(config)
