"""Wheels by way of pip: which releases there are, and the file of one. Nothing is installed, built or run.

Only names and versions reach pip's command line, sources are never asked for, and an index other than PyPI is pip's
own configuration.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from kb.errors import KbError

_GLIBC = (
    *(f"manylinux_2_{minor}" for minor in range(40, 4, -1)),
    "manylinux2014",
    "manylinux2010",
    "manylinux1",
    "linux",
)
PLATFORMS: dict[str, tuple[str, ...]] = {
    "any": ("any",),
    "macos-arm64": ("macosx_26_0_arm64",),
    "macos-x86_64": ("macosx_26_0_x86_64",),
    "linux-x86_64": tuple(f"{tag}_x86_64" for tag in _GLIBC),
    "linux-aarch64": tuple(f"{tag}_aarch64" for tag in _GLIBC),
    "windows-x86_64": ("win_amd64",),
}
"""Platform tags that pip is given for each platform, the ones it prefers first."""
DEFAULT_PLATFORMS = ("any", "macos-arm64", "linux-x86_64")
"""Smallest first: macOS has the CPU code of torch in a tenth of the bytes that Linux with CUDA takes."""

_FAMILIES = {
    "any": r"any",
    "macos-arm64": r"macosx_\d+_\d+_(?:arm64|universal2)",
    "macos-x86_64": r"macosx_\d+_\d+_(?:x86_64|universal2|intel)",
    "linux-x86_64": r"(?:many)?linux\w*_x86_64",
    "linux-aarch64": r"(?:many)?linux\w*_aarch64",
    "windows-x86_64": r"win_amd64",
}
_PYTHONS = ("3.11", "3.8", "3.13")
"""Interpreters asked for: one of them has a wheel of nearly every release there is."""
_SIZE = re.compile(r"Progress \d+ of (\d+)")
_TIMEOUT = 900.0


class NotFetchedError(Exception):
    """No wheel to look at. `str()` says why in one line, `size` is its bytes where they are known."""

    def __init__(self, reason: str, size: int | None = None) -> None:
        super().__init__(reason)
        self.size = size


class Shelf(Protocol):
    """Where wheels come from."""

    def releases(self, package: str, platform: str) -> tuple[str, ...]:
        """Versions that have a wheel for this platform, those for any included. Raises KbError if nobody answers."""

    def wheel(self, package: str, version: str, platform: str, limit: int | None) -> Path:
        """The wheel of a release. Raises NotFetchedError if there is none, or it has more than `limit` bytes."""


class PipShelf:
    """Wheels that pip downloads, kept in a cache folder as `<package>/<wheel>`."""

    def __init__(self, cache: Path, pip: Sequence[str] = (sys.executable, "-m", "pip")) -> None:
        self._cache = cache
        self._pip = tuple(pip)
        self._pythons: dict[tuple[str, str], dict[str, str]] = {}

    def releases(self, package: str, platform: str) -> tuple[str, ...]:
        return tuple(self._listing(package, platform))

    def wheel(self, package: str, version: str, platform: str, limit: int | None) -> Path:
        kept = self._kept(package, version, platform)
        if kept is None:
            python = self._listing(package, platform).get(version)
            if python is None:
                raise NotFetchedError("no wheel")
            return self._download(package, version, platform, python, limit)
        if limit is not None and kept.stat().st_size > limit:
            raise _too_large(kept.stat().st_size, limit)
        return kept

    def _listing(self, package: str, platform: str) -> dict[str, str]:
        """Python to ask for, for each release."""
        key = (package, platform)
        if key not in self._pythons:
            found: dict[str, str] = {}
            for python in _PYTHONS:
                for version in self._versions(package, platform, python):
                    found.setdefault(version, python)
            self._pythons[key] = found
        return self._pythons[key]

    def _versions(self, package: str, platform: str, python: str) -> list[str]:
        command = [*self._pip, "index", "versions", package, "--json", *_target(platform, python)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise _no_answer(package, str(failure)) from None
        if done.returncode == 0:
            return [version for version in json.loads(done.stdout)["versions"] if _is_public(version)]
        unreachable = "Retrying (" in done.stderr or "Could not fetch URL" in done.stderr
        if "No matching distribution" in done.stderr and not unreachable:
            return []
        raise _no_answer(package, _last_line(done.stderr))

    def _download(self, package: str, version: str, platform: str, python: str, limit: int | None) -> Path:
        folder = self._cache / package
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as partial:
            target = Path(partial, "wheels")
            command = [
                *self._pip,
                "download",
                "--no-deps",
                "--no-cache-dir",
                "--progress-bar",
                "raw",
                "-d",
                str(target),
            ]
            # Arbitrary equality: a local build such as 2.13.0+cpu on some other index is not the release.
            command += [*_target(platform, python), f"{package}==={version}"]
            _run(command, partial, limit)
            wheels = list(target.glob("*.whl"))
            if len(wheels) != 1:
                raise NotFetchedError("pip gave no wheel")
            size = wheels[0].stat().st_size
            if limit is not None and size > limit:
                raise _too_large(size, limit)
            return wheels[0].replace(folder / wheels[0].name)

    def _kept(self, package: str, version: str, platform: str) -> Path | None:
        files = sorted((self._cache / package).glob("*.whl"))
        return next((file for file in files if fits(file.name, package, version, platform)), None)


def fits(file_name: str, package: str, version: str, platform: str) -> bool:
    """Whether a wheel is of this release and runs on this platform."""
    try:
        name, release, _, _ = parse_wheel_filename(file_name)
    except InvalidWheelFilename:
        return False
    own = str(release) == version and name == canonicalize_name(package)
    return own and platform_of(file_name) in (platform, "any")


def platform_of(file_name: str) -> str | None:
    """The platform a wheel is made for, by its file name; None for one that has no name here."""
    try:
        tags = {tag.platform for tag in parse_wheel_filename(file_name)[3]}
    except InvalidWheelFilename:
        return None
    return next((name for name, form in _FAMILIES.items() if any(re.fullmatch(form, tag) for tag in tags)), None)


def _target(platform: str, python: str) -> Iterator[str]:
    # The releases of a range may ask for any Python; the wheel is only read.
    yield from ("--only-binary=:all:", "--ignore-requires-python", "--no-input", "--disable-pip-version-check")
    yield from ("--python-version", python)
    for tag in PLATFORMS[platform]:
        yield from ("--platform", tag)


def _run(command: Sequence[str], scratch: str, limit: int | None) -> None:
    """Let pip download, and stop it as soon as it says that the file is larger than the limit."""
    # pip unpacks into its temporary folder; it goes with ours even if pip is stopped.
    environment = {**os.environ, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            for line in process.stdout or ():
                size = _SIZE.search(line)
                if size is None:
                    lines.append(line)
                elif limit is not None and int(size[1]) > limit:
                    raise _too_large(int(size[1]), limit)
            code = process.wait(_TIMEOUT)
        except BaseException:
            process.kill()
            raise
    if code != 0:
        raise NotFetchedError(f"pip could not download it: {_refusal(''.join(lines))}")


def _too_large(size: int, limit: int) -> NotFetchedError:
    return NotFetchedError(f"too large, not looked at: {_mib(size)}, more than {_mib(limit)}", size)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _is_public(version: str) -> bool:
    try:
        return Version(version).local is None
    except InvalidVersion:
        return False


def _no_answer(package: str, detail: str) -> KbError:
    return KbError(f"pip cannot list the releases of {package}: {detail}", f"try `pip index versions {package}`")


def _refusal(text: str) -> str:
    """What pip says, with the constraint of the user's own configuration that forbids a release."""
    constraint = re.search(r"The user requested \(constraint\) (\S+)", text)
    return f"the constraint {constraint[1]} forbids it" if constraint else _last_line(text)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR: ")
