"""What provenance records say of each distribution. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from packaging.version import Version

from kb.models import entry as entry_models
from kb.models.entry import AuthoredEntry
from kb.models.provenance import Look, Provenance
from kb.provenance.question import claims

Origin = Literal["raised_by", "signature"]


@dataclass(frozen=True, slots=True)
class Edge:
    """Between two releases a literal came or went."""

    version: str
    """The release in which it had come or gone."""
    neighbour: str
    """The nearest older release looked at, in which it was the other way round."""
    exact: bool
    """No release lies between the two."""
    platform: str
    """Where the release without it was looked at."""
    unseen: tuple[str, ...]
    """Platforms of that release nobody looked at: the literal may stand there."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One literal in the releases of one distribution, oldest release first."""

    package: str
    literal: str
    origin: Origin
    """`signature`: the entry claims no literal; of a refuted claim, standing nowhere is then what it says."""
    stands: tuple[str, ...]
    lacks: tuple[str, ...]
    """Releases without it, looked at where other releases have it."""
    unknown: tuple[str, ...]
    """Releases nobody could look at, or not where it may stand."""
    introduced: Edge | None
    """None if the oldest release that has it has no older neighbour known to lack it."""
    removed: Edge | None
    """None if the newest release that has it has no newer neighbour known to lack it."""

    @property
    def looked(self) -> int:
        """Releases of which the answer is known."""
        return len(self.stands) + len(self.lacks)

    @property
    def first(self) -> str | None:
        """Oldest release looked at that has it."""
        return self.stands[0] if self.stands else None

    @property
    def last(self) -> str | None:
        """Newest release looked at that has it."""
        return self.stands[-1] if self.stands else None

    def contradicts(self, *, refuted: bool) -> bool:
        """Whether what was found is the opposite of what the entry says; `refuted` if it calls its claim refuted."""
        return refuted and bool(self.stands) if self.origin == "signature" else self.nowhere

    @property
    def nowhere(self) -> bool:
        """Looked at, and found in no release."""
        return bool(self.lacks) and not self.stands


def summary(records: Iterable[Provenance], entry: AuthoredEntry | None = None) -> tuple[Standing, ...]:
    """What all records of one entry say together; the newest of two looks at the same wheel counts.

    With `entry`, only the literals that it still claims. Records as `kb.provenance.read` accepts them.
    """
    looks: dict[tuple[str, str, Origin], dict[tuple[str, str], Look]] = {}
    for record in sorted(records, key=lambda record: datetime.fromisoformat(record.made_at)):
        for search in record.searches:
            seen = looks.setdefault((search.package, search.literal, search.origin), {})
            for look in search.looks:
                key = (look.version, look.platform)
                if look.stands is not None or key not in seen:
                    seen[key] = look
    claimed = None if entry is None else claims(entry)
    return tuple(
        standing(package, literal, tuple(seen.values()), origin)
        for (package, literal, origin), seen in looks.items()
        if claimed is None or literal in claimed
    )


def standing(package: str, literal: str, looks: Sequence[Look], origin: Origin = "raised_by") -> Standing:
    """What looks at the releases of one distribution say of one literal."""
    by_release: dict[str, list[Look]] = {}
    for look in sorted(looks, key=lambda look: Version(look.version)):
        by_release.setdefault(look.version, []).append(look)
    homes = {look.platform for look in looks if look.stands}
    known = {release: _verdict(seen, homes) for release, seen in by_release.items()}
    stands = tuple(release for release, verdict in known.items() if verdict is True)
    return Standing(
        package=package,
        literal=literal,
        origin=origin,
        stands=stands,
        lacks=tuple(release for release, verdict in known.items() if verdict is False),
        unknown=tuple(release for release, verdict in known.items() if verdict is None),
        introduced=_introduced(stands, known, by_release),
        removed=_removed(stands, known, by_release),
    )


def between(found: Standing) -> Iterator[tuple[str, str]]:
    """Pairs of releases, older first, between which other releases lie and the literal came or went."""
    for edge in (found.introduced, found.removed):
        if edge and not edge.exact:
            yield edge.neighbour, edge.version


def version_rows(found: Iterable[Standing]) -> tuple[entry_models.Version, ...]:
    """Edges in the shape of a record's `versions`."""
    rows = []
    for one in found:
        for name, edge in (("introduced", one.introduced), ("removed", one.removed)):
            if edge:
                had = "without it" if name == "introduced" else "with it"
                text = f"`{' '.join(one.literal.split())}`; {edge.neighbour} is the last release looked at {had}"
                text += f" ({edge.platform})"
                rows.append(entry_models.Version(version=f"{one.package} {edge.version}", **{name: text}))
    return tuple(rows)


def _verdict(looks: Sequence[Look], homes: set[str]) -> bool | None:
    """Whether a release has the literal, None if that cannot be said.

    Code for CUDA is not in the wheel for macOS: absence there means nothing if other releases have it only elsewhere.
    """
    if any(look.stands for look in looks):
        return True
    without = {look.platform for look in looks if look.stands is False}
    if without & (homes | {"any"}):
        return False
    complete = len(without) == len({look.platform for look in looks})
    return False if without and complete and homes <= {"any"} else None


def _introduced(
    stands: Sequence[str], known: Mapping[str, bool | None], looks: Mapping[str, Sequence[Look]]
) -> Edge | None:
    older = [release for release in known if stands and Version(release) < Version(stands[0])]
    lacking = [release for release in older if known[release] is False]
    return _edge(stands[0], lacking[-1], looks, lacking[-1]) if lacking else None


def _removed(
    stands: Sequence[str], known: Mapping[str, bool | None], looks: Mapping[str, Sequence[Look]]
) -> Edge | None:
    newer = [release for release in known if stands and Version(release) > Version(stands[-1])]
    lacking = [release for release in newer if known[release] is False]
    return _edge(lacking[0], stands[-1], looks, lacking[0]) if lacking else None


def _edge(version: str, neighbour: str, looks: Mapping[str, Sequence[Look]], lacking: str) -> Edge:
    exact = any(look.previous == neighbour for look in looks[version])
    without = [look.platform for look in looks[lacking] if look.stands is False]
    unseen = tuple(look.platform for look in looks[lacking] if look.stands is None)
    return Edge(version, neighbour, exact, " ".join(without), unseen)
