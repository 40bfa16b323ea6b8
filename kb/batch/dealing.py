"""Has every part done or given up, whatever happens to the workers that do them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kb.batch.engine import WorkerLostError
from kb.batch.store import Store
from kb.errors import KbError

TRIES = 3
"""How often a part is begun before it is given up."""

Deal = Callable[[Sequence[str], int], Iterator[str]]
"""Gives tasks to so many workers, and what they said of them as they are done."""


class Said(NamedTuple):
    """How a part went."""

    key: str
    logs: int
    failed: str | None
    """Why it is not done."""


class Dealing:
    """Iterate over it to have the parts done. `tasks` holds each part's task by its key."""

    def __init__(self, deal: Deal, store: Store, tasks: Mapping[str, str], workers: int) -> None:
        self._deal = deal
        self._store = store
        self._waiting = dict(tasks)
        self._workers = workers
        self._death = ""

    def __iter__(self) -> Iterator[Said]:
        """How each part went, in the order they are done. Raises KbError if workers die before they begin anything."""
        idle = 0
        while self._waiting:
            before = len(self._waiting)
            yield from self._given(list(self._waiting), self._workers)
            yield from self._given_alone()
            idle = idle + 1 if len(self._waiting) == before else 0
            if idle == TRIES:
                reason = self._death or "the engine ends before its work is done"
                raise KbError(f"no worker begins: {reason}", "check memory, and that workers have provenfix")

    def _given(self, keys: Sequence[str], workers: int) -> Iterator[Said]:
        try:
            for text in self._deal([self._waiting[key] for key in keys], workers):
                said = json.loads(text)
                yield self._taken(said["key"], said["logs"], said["failed"])
        except WorkerLostError as death:
            self._death = str(death)
            there = self._store.names("parts")  # what was done, but not said before the engine ended
            for key in [key for key in keys if key in self._waiting and f"{key}.json" in there]:
                yield self._taken(key, json.loads(self._store.read(f"parts/{key}.json") or b"{}").get("logs", 0), None)

    def _given_alone(self) -> Iterator[Said]:
        """One of the parts that were begun killed its worker, the others were beside it: alone, each shows which."""
        there = self._store.names("parts") if self._waiting else set()
        for key in [key for key in self._waiting if f"{key}.begun" in there]:
            for _ in range(TRIES - 1):
                if key in self._waiting:
                    yield from self._given([key], 1)
            if key in self._waiting:
                yield self._taken(key, 0, f"its worker died {TRIES} times: {self._death}")

    def _taken(self, key: str, logs: int, failed: str | None) -> Said:
        self._waiting.pop(key, None)
        return Said(key, logs, failed)
