"""The folder that results are written to, local or remote. A file there is whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kb.batch.sources import opened
from kb.errors import UsageError

_BEGUN = ".tmp-"


class Store:
    """Files below one path or URL. Names have forward slashes."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.system, self.root = opened(location)
        protocol = self.system.protocol
        self.local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def prepare(self, *folders: str) -> None:
        """Make the folders. Raises UsageError."""
        try:
            for folder in folders:
                self.system.makedirs(self.path(folder), exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(
                f"{self.location}: is not a folder", "name a new folder, or one of an earlier run"
            ) from None

    def tidy(self, *folders: str) -> None:
        """Remove what workers that were killed had begun to write."""
        if self.local:
            for folder in folders:
                for path in Path(self.path(folder)).glob(f"{_BEGUN}*"):
                    path.unlink(missing_ok=True)

    def path(self, name: str) -> str:
        """What the file system calls a file."""
        return f"{self.root.rstrip('/')}/{name}"

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder, without it; empty if there is none."""
        self.system.invalidate_cache()
        try:
            found = self.system.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return set()
        return {name for path in found if not (name := path.rstrip("/").rsplit("/", 1)[-1]).startswith(_BEGUN)}

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None if it is not there."""
        try:
            data: bytes = self.system.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, over an older one if there is one."""
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write to; what was written takes its name when the block ends well, else it is removed."""
        if self.local:
            goal = Path(self.path(name))
            begun = goal.with_name(f"{_BEGUN}{os.getpid()}-{goal.name}")
            try:
                yield begun
                begun.replace(goal)
            finally:
                begun.unlink(missing_ok=True)
        else:
            with TemporaryDirectory() as folder:
                begun = Path(folder) / name.rsplit("/", 1)[-1]
                yield begun
                self.system.put_file(str(begun), self.path(name))  # an object store shows an upload when it is complete

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self.path(name))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of a local folder. Raises UsageError if one is in it."""
        if not self.local:
            yield
            return
        from filelock import FileLock, Timeout

        lock = FileLock(self.path(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"{self.location}: another run is writing here", "wait for it, or name another folder"
            ) from None
        try:
            yield
        finally:
            lock.release()
