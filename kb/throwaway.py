"""A virtual environment for one run, with other versions of some packages and everything else as it is here."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kb.errors import UsageError


@contextmanager
def interpreter(requirements: Sequence[str]) -> Iterator[Path]:
    """The Python of a temporary environment in which `requirements` are installed; today's own where there are none.

    What is not asked for is taken from the running environment, so that torch is not installed a second time.
    Raises UsageError if pip cannot install them.
    """
    if not requirements:
        yield Path(sys.executable)
        return
    for requirement in requirements:
        if requirement.startswith("-"):
            raise UsageError(f"--with {requirement}: is an option, not a package", "for example transformers==4.44.2")
    with tempfile.TemporaryDirectory(prefix="kb-with-") as folder:
        yield _made(Path(folder), requirements)


def _made(folder: Path, requirements: Sequence[str]) -> Path:
    import venv

    venv.EnvBuilder(with_pip=True).create(folder)
    windows = sys.platform == "win32"
    python = folder / ("Scripts/python.exe" if windows else "bin/python")
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    # An environment that sees another one's packages sees them through its path, not through files in its folder.
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Listed behind the environment's own folder, so what is installed there wins.
    (packages / "outer.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys([*own, *seen])), encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"--with {' '.join(requirements)}: pip failed: {reason}", "check names and versions")
    return python
