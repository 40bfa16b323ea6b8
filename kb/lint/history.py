"""What a change may not do to files that are written once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from kb.errors import UsageError
from kb.lint.finding import Finding

_WRITE_ONCE = ("evidence", "provenance")
_DONE = {"M": "was edited", "D": "was removed", "T": "was replaced by another kind of file"}


def write_once(root: Path, base: str) -> Iterator[Finding]:
    """Evidence that stood at the git revision `base` and is not there unchanged.

    Raises UsageError if git does not know the revision or the folder is no checkout.
    """
    if base.startswith("-"):
        raise UsageError(f"--base {base}: is no revision", "for example --base origin/main")
    command = ["git", "-C", str(root), "diff", "--no-renames", "--name-status", "-z", base, "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UsageError("--base needs git", "install git, or leave it out") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"--base {base}: {reason}", "name a commit, a branch or a tag of this checkout") from None
    parts = done.stdout.split("\0")
    for status, name in zip(parts[::2], parts[1::2], strict=False):
        place = Path(name)
        if place.parent.name in _WRITE_ONCE and status in _DONE:
            yield Finding(
                "evidence-changed",
                name,
                "",
                f"{_DONE[status]} since {base}; what was measured is written once",
                f"restore it (git checkout {base} -- FILE); a new run adds a new file",
            )
