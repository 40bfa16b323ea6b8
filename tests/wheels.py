"""Small wheels made on the spot, and a shelf that holds them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from kb.errors import KbError
from kb.provenance.shelf import NotFetchedError, fits, platform_of

TAGS = {
    "any": "py3-none-any",
    "macos-arm64": "cp311-cp311-macosx_11_0_arm64",
    "linux-x86_64": "cp311-cp311-manylinux_2_28_x86_64",
}
Content = str | bytes


def wheel(
    folder: Path, package: str, version: str, files: Mapping[str, Content], platform: str = "any", **zip_options: int
) -> Path:
    """Write a wheel and return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{package.replace('-', '_')}-{version}-{TAGS[platform]}.whl"
    options = {"compression": zipfile.ZIP_DEFLATED, **zip_options}
    with zipfile.ZipFile(file, "w", **options) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            archive.writestr(name, content)
    return file


class Folder:
    """A shelf made of the wheels in one folder. `fetched` tells what was asked for, in order."""

    def __init__(self, folder: Path, *, closed: str = "") -> None:
        self.folder = folder
        self.closed = closed
        self.fetched: list[tuple[str, str]] = []

    def releases(self, package: str, platform: str) -> tuple[str, ...]:
        if package == self.closed:
            raise KbError(f"pip cannot list the releases of {package}: no answer", "try again")
        names = [file.name for file in self.folder.glob("*.whl")]
        versions = {name.split("-")[1] for name in names if name.startswith(package.replace("-", "_") + "-")}
        return tuple(v for v in versions if any(fits(name, package, v, platform) for name in names))

    def wheel(self, package: str, version: str, platform: str, limit: int | None) -> Path:
        self.fetched.append((version, platform))
        files = [file for file in self.folder.glob("*.whl") if fits(file.name, package, version, platform)]
        file = min(files, key=lambda file: platform_of(file.name) != platform)
        size = file.stat().st_size
        if limit is not None and size > limit:
            raise NotFetchedError(f"too large, not looked at: {size} bytes", size)
        return file
