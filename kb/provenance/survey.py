"""Look for literals through the releases of a distribution."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import Version

from kb.models.provenance import Look, Search
from kb.provenance.question import Question, ordered, pick
from kb.provenance.scan import Scan, WheelRefusedError, scan
from kb.provenance.shelf import DEFAULT_PLATFORMS, NotFetchedError, Shelf, platform_of
from kb.provenance.summary import between, standing

LIMIT = 300 * 2**20
"""Bytes of a wheel beyond which it is only looked at if asked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which wheels to look at."""

    count: int = 8
    """Releases of each distribution."""
    named: tuple[str, ...] = ()
    """Releases to look at instead, if there are any."""
    platforms: tuple[str, ...] = DEFAULT_PLATFORMS
    """Looked at in this order until the literal is found."""
    limit: int | None = LIMIT
    """Bytes; None for no limit."""
    pinpoint: bool = False
    """Also halve the distance between neighbours of which only one has the literal, down to the release."""


def survey(
    package: str,
    asked: Sequence[Question],
    shelf: Shelf,
    choice: Choice,
    note: Callable[[str], None] = lambda _: None,
) -> dict[Question, Search]:
    """Look for all literals asked of one distribution, each wheel opened once.

    `note` is told what is being done. Raises KbError if the releases cannot be listed.
    """
    note(f"{package}: releases")
    offered = {platform: frozenset(shelf.releases(package, platform)) for platform in choice.platforms}
    releases = ordered([release for listed in offered.values() for release in listed])
    bench = _Bench(package, offered, releases, shelf, choice, note)
    looks: dict[Question, list[Look]] = {question: [] for question in asked}
    todo = _first_round(asked, releases, choice)
    done: set[str] = set()
    while todo:
        for release in todo:
            for question, look in bench.looks(release, asked):
                looks[question].append(look)
        done |= set(todo)
        todo = _next_round(looks, releases, done) if choice.pinpoint else ()
    return {question: _search(question, found) for question, found in looks.items()}


def _first_round(asked: Sequence[Question], releases: Sequence[str], choice: Choice) -> tuple[str, ...]:
    if choice.named:
        return tuple(sorted(set(choice.named), key=Version))
    chosen = {release for question in asked for release in pick(releases, question.versions, choice.count)}
    return tuple(sorted(chosen, key=Version))


def _next_round(looks: Mapping[Question, Sequence[Look]], releases: Sequence[str], done: set[str]) -> tuple[str, ...]:
    wanted: set[str] = set()
    for question, found in looks.items():
        for low, high in between(standing(question.package, question.literal, found)):
            open_ones = [release for release in releases if Version(low) < Version(release) < Version(high)]
            open_ones = [release for release in open_ones if release not in done]
            if open_ones:
                wanted.add(open_ones[len(open_ones) // 2])
    return tuple(sorted(wanted, key=Version))


def _search(question: Question, looks: Sequence[Look]) -> Search:
    return Search(
        package=question.package,
        versions=question.versions,
        literal=question.literal,
        origin=question.origin,
        looks=tuple(sorted(looks, key=lambda look: (Version(look.version), look.platform))),
    )


@dataclass
class _Bench:
    """Where the wheels of one distribution are opened, one after the other."""

    package: str
    offered: Mapping[str, frozenset[str]]
    releases: Sequence[str]
    shelf: Shelf
    choice: Choice
    note: Callable[[str], None]
    digests: dict[Path, str] = field(default_factory=dict)

    def looks(self, release: str, asked: Sequence[Question]) -> Iterator[tuple[Question, Look]]:
        """What each question gets of one release: a look at every platform until the literal is found."""
        places = [platform for platform in self.choice.platforms if release in self.offered[platform]]
        if "any" in places:
            places = ["any"]  # it is the same file on every platform
        pending = list(asked)
        for platform in places:
            if not pending:
                return
            answers = self._answers(release, platform, pending)
            yield from answers.items()
            if any(look.platform == "any" for look in answers.values()):
                return
            pending = [question for question, look in answers.items() if look.stands is not True]
        if not places:
            look = self._unseen(release, " ".join(self.choice.platforms), "no wheel", None)
            yield from ((question, look) for question in asked)

    def _answers(self, release: str, platform: str, pending: Sequence[Question]) -> dict[Question, Look]:
        self.note(f"{self.package} {release}: {platform}")
        try:
            wheel = self.shelf.wheel(self.package, release, platform, self.choice.limit)
        except NotFetchedError as reason:
            unseen = self._unseen(release, platform, str(reason), reason.size)
            return dict.fromkeys(pending, unseen)
        self.note(f"{self.package} {release}: searching {wheel.name}")
        try:
            result = scan(wheel, list(dict.fromkeys(question.literal for question in pending)))
        except WheelRefusedError as reason:
            seen = self._unseen(release, platform, str(reason), None)
            return dict.fromkeys(pending, seen.model_copy(update=self._file(wheel)))
        return {question: self._seen(release, platform, wheel, result, question.literal) for question in pending}

    def _seen(self, release: str, platform: str, wheel: Path, result: Scan, literal: str) -> Look:
        found = result.found[literal]
        reason = f"{len(result.unread)} files not read, such as {result.unread[0]}" if result.unread else None
        return Look(
            version=release,
            previous=self._previous(release),
            platform=platform_of(wheel.name) or platform,
            **self._file(wheel),
            # Absence is only known of a wheel that was read whole.
            stands=True if found.files else None if reason else False,
            files=found.files,
            places=tuple(found.places),
            reason=reason,
        )

    def _unseen(self, release: str, platform: str, reason: str, size: int | None) -> Look:
        return Look(
            version=release,
            previous=self._previous(release),
            platform=platform,
            wheel=None,
            sha256=None,
            size=size,
            stands=None,
            files=0,
            places=(),
            reason=" ".join(reason.split()),
        )

    def _file(self, wheel: Path) -> dict[str, Any]:
        if wheel not in self.digests:
            with wheel.open("rb") as stream:
                self.digests[wheel] = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"wheel": wheel.name, "sha256": self.digests[wheel], "size": wheel.stat().st_size}

    def _previous(self, release: str) -> str | None:
        older = [known for known in self.releases if Version(known) < Version(release)]
        return older[-1] if older else None
