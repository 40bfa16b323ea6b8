"""What to look for, and in which releases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from kb.errors import UsageError
from kb.models.entry import AuthoredEntry

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_HEAD = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit))(?:: |$)")
# What changes from one report to the next: quoted values, types, numbers, addresses, paths.
_VOLATILE = re.compile(
    r"`[^`]*`|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\""
    r"|\b(?:torch\.|c10::|struct )*(?:b?float|BFloat|Half|Float|Double|u?int)\d*\b"
    r"|c10::\w+|\S*[/\\]\S*|\b0x[0-9a-fA-F]+\b|\S*\d\S*|[\r\n]"
)
_ENOUGH = 12
"""Characters below which a constant part says nothing."""


@dataclass(frozen=True, slots=True)
class Question:
    """One literal to look for in the releases of one distribution."""

    package: str
    """Canonical name."""
    versions: str
    literal: str
    origin: Literal["raised_by", "signature"] = "raised_by"


def questions(entry: AuthoredEntry, packages: Sequence[str] = ()) -> tuple[Question, ...]:
    """What an entry claims; `packages` are looked into besides those it names.

    An entry that claims no literal is asked for the longest constant part of its signature. The packages are then
    those of `raised_by`, and of `versions` if that names none. Raises UsageError for a name or range that is none.
    """
    found = [_question(entry, item.package, item.versions, item.literal) for item in entry.raised_by]
    if not found:
        found = [_question(entry, name, "", "") for name in _version_packages(entry)]
    literals = [one.literal for one in entry.raised_by if one.literal] or [""]
    for name in packages:
        found += [_question(entry, name, "", literal) for literal in literals]
    first: dict[tuple[str, str], Question] = {}
    for one in found:
        if one.literal:
            first.setdefault((one.package, one.literal), one)
    return tuple(first.values())


def claims(entry: AuthoredEntry) -> frozenset[str]:
    """Every literal that `questions` would ask of an entry, whatever else is wrong with it."""
    written = [item.literal for item in entry.raised_by]
    spoken = [text for text in written if text.strip()]
    return frozenset(spoken if written and len(spoken) == len(written) else [*spoken, constant_part(entry.signature)])


def constant_part(signature: str) -> str:
    """The longest part of an error line that is the same in every report of it; empty if none is long enough."""
    parts = [part.strip(" .,:;()") for part in _VOLATILE.split(_HEAD.sub("", signature.strip()))]
    longest = max(parts, key=len)
    return longest if len(longest) >= _ENOUGH else ""


def ordered(releases: Sequence[str]) -> tuple[str, ...]:
    """Public final and post releases, oldest first; what is no version is left out."""
    return tuple(str(version) for version in sorted(_final(releases)))


def pick(releases: Sequence[str], versions: str, count: int) -> tuple[str, ...]:
    """At most `count` releases, oldest first, that tell whether a literal stands in the range `versions`.

    The newest and the oldest of the range, the neighbours just outside it, then an even spread over minor releases.
    """
    known = sorted(_final(releases))
    wanted = SpecifierSet(versions)
    inside = [version for version in known if version in wanted] or known
    if not inside or count < 1:
        return ()
    below = [version for version in known if version < inside[0]][-1:]
    above = [version for version in known if version > inside[-1]][:1]
    chosen = list(dict.fromkeys([inside[-1], inside[0], *below, *above]))[:count]
    minors = [version for version in _newest_of_minors(inside) if version not in chosen]
    chosen += _spread(minors, count - len(chosen))
    return tuple(str(version) for version in sorted(chosen))


def canonical(package: str) -> str:
    """Canonical name of a distribution. Raises UsageError for anything that pip could take for more than a name."""
    if not _PACKAGE.fullmatch(package):
        raise UsageError(
            f"{package!r} is no name of a distribution", "name it as PyPI does, without version or address"
        )
    return canonicalize_name(package)


def _question(entry: AuthoredEntry, package: str, versions: str, literal: str) -> Question:
    try:
        SpecifierSet(versions)
    except InvalidSpecifier:
        raise UsageError(f"{entry.id}: {versions!r} is no range of versions", "write it as PEP 440 has it") from None
    if literal.strip():
        return Question(canonical(package), versions, literal)
    return Question(canonical(package), versions, constant_part(entry.signature), "signature")


def _version_packages(entry: AuthoredEntry) -> Iterator[str]:
    for item in entry.versions:
        name, _, release = item.version.partition(" ")
        if release and _PACKAGE.fullmatch(name):
            yield name


def _final(releases: Sequence[str]) -> Iterator[Version]:
    for text in set(releases):
        try:
            version = Version(text)
        except InvalidVersion:
            continue
        if not version.is_prerelease and version.local is None:
            yield version


def _newest_of_minors(versions: Sequence[Version]) -> list[Version]:
    return list({(version.epoch, version.major, version.minor): version for version in versions}.values())


def _spread(versions: Sequence[Version], count: int) -> list[Version]:
    if count <= 0 or not versions:
        return []
    step = len(versions) / min(count, len(versions))
    return [versions[int((number + 0.5) * step)] for number in range(min(count, len(versions)))]
