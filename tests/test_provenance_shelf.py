"""What pip is asked, and what becomes of its answers. A small program stands in for pip; nothing touches the network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kb.errors import KbError
from kb.provenance.shelf import NotFetchedError, PipShelf, fits, platform_of

# Answers from `answers.json` beside it, keeps its command lines in `asked.jsonl`, and downloads by making a file.
PIP = """
import json, pathlib, sys, time
here = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
with (here / "asked.jsonl").open("a") as log:
    log.write(json.dumps(arguments) + "\\n")
answers = json.loads((here / "answers.json").read_text())
if arguments[0] == "index":
    python = arguments[arguments.index("--python-version") + 1]
    if "listing_error" in answers:
        sys.exit(answers["listing_error"])
    versions = answers["versions"].get(python)
    if not versions:
        sys.exit("ERROR: No matching distribution found for demo")
    print(json.dumps({"name": "demo", "versions": versions}))
else:
    folder = pathlib.Path(arguments[arguments.index("-d") + 1])
    folder.mkdir()
    print("Collecting demo")
    if "download_error" in answers:
        sys.exit(answers["download_error"])
    print("Progress 0 of", answers["size"], flush=True)
    if answers["size"] > 1000:
        time.sleep(60)
    (folder / answers["file"]).write_bytes(b"x" * answers["size"])
    print("Saved")
"""
FILE = "demo-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"


class Pip:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pip.py").write_text(PIP)
        self.shelf = PipShelf(folder / "cache", (sys.executable, str(folder / "pip.py")))

    def answers(self, **answers: object) -> None:
        plain = {"versions": {"3.11": ["1.0"]}, "size": 10, "file": FILE}
        (self.folder / "answers.json").write_text(json.dumps({**plain, **answers}))

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "asked.jsonl").read_text().splitlines()]


@pytest.fixture
def pip(tmp_path: Path) -> Pip:
    made = Pip(tmp_path)
    made.answers()
    return made


def test_releases_of_several_pythons_are_put_together_and_asked_for_once(pip: Pip) -> None:
    pip.answers(versions={"3.11": ["2.0", "1.0", "2.0+cpu"], "3.8": ["1.0", "0.9"]})
    assert set(pip.shelf.releases("demo", "linux-x86_64")) == {"0.9", "1.0", "2.0"}
    asked = len(pip.asked())
    pip.shelf.releases("demo", "linux-x86_64")
    assert len(pip.asked()) == asked


def test_pip_never_gets_to_build_install_or_run_anything(pip: Pip) -> None:
    pip.shelf.wheel("demo", "1.0", "linux-x86_64", None)
    assert {arguments[0] for arguments in pip.asked()} == {"index", "download"}
    assert all("--only-binary=:all:" in arguments for arguments in pip.asked())
    download = pip.asked()[-1]
    assert "--no-deps" in download
    assert download[-1] == "demo===1.0"


def test_a_wheel_is_kept_and_not_fetched_again(pip: Pip) -> None:
    first = pip.shelf.wheel("demo", "1.0", "linux-x86_64", 100)
    assert first == pip.folder / "cache" / "demo" / FILE
    assert [file.name for file in first.parent.iterdir()] == [FILE]
    asked = len(pip.asked())
    assert PipShelf(pip.folder / "cache", ("no-such-program",)).wheel("demo", "1.0", "linux-x86_64", 100) == first
    assert len(pip.asked()) == asked


def test_a_kept_wheel_over_the_limit_is_not_looked_at_either(pip: Pip) -> None:
    pip.shelf.wheel("demo", "1.0", "linux-x86_64", None)
    with pytest.raises(NotFetchedError, match="too large"):
        pip.shelf.wheel("demo", "1.0", "linux-x86_64", 9)


def test_a_download_is_stopped_as_soon_as_its_size_is_known(pip: Pip) -> None:
    pip.answers(size=900 * 2**20)
    with pytest.raises(NotFetchedError, match="too large, not looked at: 900 MiB, more than 300 MiB") as refused:
        pip.shelf.wheel("demo", "1.0", "linux-x86_64", 300 * 2**20)
    assert refused.value.size == 900 * 2**20
    assert list((pip.folder / "cache" / "demo").iterdir()) == []


def test_the_python_that_has_a_wheel_is_asked_for_it(pip: Pip) -> None:
    pip.answers(versions={"3.8": ["1.0"]})
    pip.shelf.wheel("demo", "1.0", "linux-x86_64", None)
    download = pip.asked()[-1]
    assert download[download.index("--python-version") + 1] == "3.8"


def test_a_release_that_is_not_listed_has_no_wheel(pip: Pip) -> None:
    with pytest.raises(NotFetchedError, match="no wheel"):
        pip.shelf.wheel("demo", "7.0", "linux-x86_64", None)


def test_a_failed_download_says_what_pip_said(pip: Pip) -> None:
    pip.answers(download_error="ERROR: hash mismatch")
    with pytest.raises(NotFetchedError, match="hash mismatch"):
        pip.shelf.wheel("demo", "1.0", "linux-x86_64", None)


def test_a_constraint_of_the_users_own_is_named(pip: Pip) -> None:
    said = "The conflict is caused by:\n The user requested (constraint) demo<1\nERROR: ResolutionImpossible: see pip"
    pip.answers(download_error=said)
    with pytest.raises(NotFetchedError, match="the constraint demo<1 forbids it"):
        pip.shelf.wheel("demo", "1.0", "linux-x86_64", None)


def test_an_unknown_distribution_has_no_releases(pip: Pip) -> None:
    pip.answers(versions={})
    assert pip.shelf.releases("demo", "any") == ()


@pytest.mark.parametrize(
    "said",
    [
        "WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching distribution found for demo",
        "No module named pip",
    ],
)
def test_silence_of_the_index_is_not_taken_for_absence(pip: Pip, said: str) -> None:
    pip.answers(listing_error=said)
    with pytest.raises(KbError, match="cannot list the releases of demo"):
        pip.shelf.releases("demo", "any")


@pytest.mark.parametrize(
    ("file", "platform"),
    [
        ("demo-1.0-py3-none-any.whl", "any"),
        ("demo-1.0-py2.py3-none-any.whl", "any"),
        (FILE, "linux-x86_64"),
        ("demo-1.0-cp38-cp38-manylinux1_x86_64.whl", "linux-x86_64"),
        ("demo-1.0-cp38-cp38-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", "linux-aarch64"),
        ("demo-1.0-cp311-none-macosx_11_0_arm64.whl", "macos-arm64"),
        ("demo-1.0-py3-none-win_amd64.whl", "windows-x86_64"),
        ("demo-1.0-cp311-cp311-win32.whl", None),
        ("demo.tar.gz", None),
    ],
)
def test_the_name_of_a_wheel_tells_its_platform(file: str, platform: str | None) -> None:
    assert platform_of(file) == platform
    if platform:
        assert fits(file, "Demo", "1.0", platform)
        assert not fits(file, "demo", "1.1", platform)
        assert not fits(file, "other", "1.0", platform)
