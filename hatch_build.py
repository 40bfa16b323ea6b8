"""Build hook: ships a stamp of the entries, so that an installed index is recognised as theirs without reading them."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EntriesStampHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `kb/_entries/STAMP` to the wheel; nothing is left in the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the stamp among the files of the wheel."""
        # An editable installation reads the checkout, whose entries change without a build.
        if self.target_name != "wheel" or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        stamp = Path(self._folder.name, "STAMP")
        stamp.write_text(entries_digest(Path(self.root, "entries")) + "\n", "utf-8")
        build_data["force_include"][str(stamp)] = "kb/_entries/STAMP"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the temporary file that held it."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def entries_digest(root: Path) -> str:
    """SHA-256 over path and content of every file below `root`, in the order of paths."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and "__pycache__" not in name.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{content}  {name.as_posix()}\n".encode())
    return digest.hexdigest()
