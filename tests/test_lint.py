"""`kb check` names each fault by code, file and field, and a sound entry has none."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kb.catalog import load
from kb.digest import arm_digests
from kb.errors import UsageError
from kb.lint import check
from kb.lint.history import write_once
from tests.conftest import entry
from tests.runs import document, trial, write

SAMPLE = "RuntimeError: the frobnicator of pytorch/some-error jammed at step 3\n"
SCRIPT = """\
import pytest

@pytest.mark.reproduces
def test_reproduces(): ...

@pytest.mark.workaround("oil-it")
def test_oil_it(): ...
"""


@pytest.fixture
def sound(catalogue: Callable[..., Path]) -> Callable[..., Path]:
    """Writes one entry with samples and a script, changed as asked."""

    def write(script: str | None = SCRIPT, **changes: Any) -> Path:
        data = entry()
        data["workarounds"] = [{**data["workarounds"][0], "verification": "verify.py::test_oil_it"}]
        root = catalogue({**data, **changes})
        folder = root / data["id"]
        (folder / "samples").mkdir()
        (folder / "samples" / "one.txt").write_text(SAMPLE)
        (folder / "samples" / "two.txt").write_text("[rank1]: " + SAMPLE)
        (folder / "samples" / "not-this.txt").write_text("RuntimeError: the frobnicator ran\n")
        if script is not None:
            (folder / "verify.py").write_text(script)
        return root

    return write


def codes(root: Path, **more: Any) -> list[str]:
    return [finding.code for finding in check(load([root]), **more)]


def test_a_sound_entry_has_no_finding(sound: Callable[..., Path]) -> None:
    assert codes(sound()) == []


def workaround(**changes: Any) -> dict[str, Any]:
    return {**entry()["workarounds"][0], **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"regex": r"the frobnicator of pytorch/some-error.*jammed at step"}, "regex-unbounded-gap"),
        ({"regex": r"(?=the frobnicator of pytorch/some-error jammed)the"}, "regex-not-re2"),
        ({"regex": r"frobnicator of pytorch/another"}, "regex-misses-signature"),
        ({"workarounds": [workaround(), workaround()]}, "id-repeated"),
        ({"workarounds": [workaround(addresses=["no-such-cause"])]}, "cause-missing"),
        ({"workarounds_zh": ["一", "二"]}, "zh-length"),
        ({"workarounds": [workaround(verification="verify.py::test_gone")]}, "arm-missing"),
        ({"transition_graph": {"leads_to": ["pytorch/nowhere"]}}, "link-missing"),
        ({"supersedes": ["pytorch/nowhere"]}, "link-missing"),
    ],
)
def test_each_fault_has_its_code(sound: Callable[..., Path], changes: dict[str, Any], expected: str) -> None:
    assert expected in codes(sound(**changes))


def test_an_arm_of_no_claim_and_a_fix_without_a_reproduction(sound: Callable[..., Path]) -> None:
    stray = SCRIPT.replace('"oil-it"', '"something-else"')
    assert {"arm-unclaimed", "arm-missing"} <= set(codes(sound(script=stray)))


def test_a_fix_without_a_reproducing_arm(sound: Callable[..., Path]) -> None:
    assert codes(sound(script=SCRIPT.replace("@pytest.mark.reproduces\n", ""))) == ["arm-missing"]


def test_a_script_that_is_not_python(sound: Callable[..., Path]) -> None:
    assert "arm-unreadable" in codes(sound(script="def ("))


def test_too_few_samples_and_samples_won_by_nobody_or_by_another(
    sound: Callable[..., Path], catalogue: Callable[..., Path]
) -> None:
    root = sound()
    folder = root / "pytorch" / "some-error" / "samples"
    (folder / "two.txt").write_text("KeyError: 'nothing known'\n")
    assert codes(root) == ["sample-unmatched"]
    (folder / "two.txt").unlink()
    (folder / "not-this.txt").unlink()
    assert codes(root) == ["samples-few", "samples-few"]
    catalogue(
        entry(
            "pytorch/thief",
            regex="frobnicator of pytorch/some-error jammed at step 3 with extras?|frobnicator of pytorch/some-error jammed",
            supersedes=["pytorch/some-error"],
        )
    )
    found = check(load([root]), only=["pytorch/some-error"])
    assert "sample-lost" in [finding.code for finding in found]
    (root / "pytorch" / "unfinished").mkdir()
    (root / "pytorch" / "unfinished" / "verify.py").touch()
    assert [finding for finding in check(load([root]), only=["pytorch/thief"]) if "unfinished" in finding.file] == []
    taken = [f for f in check(load([root]), only=["pytorch/thief"]) if f.code == "sample-lost"]
    assert [Path(finding.file).name for finding in taken] == ["one.txt"]


def test_a_near_miss_that_matches_and_a_clean_paste_that_matches(sound: Callable[..., Path], tmp_path: Path) -> None:
    root = sound()
    (root / "pytorch" / "some-error" / "samples" / "not-this.txt").write_text(SAMPLE)
    clean = tmp_path / "healthy.txt"
    clean.write_text("all fine\n" + SAMPLE)
    assert sorted(codes(root, clean=[clean])) == ["clean-matched", "near-miss-matched"]


def test_a_typed_in_rate_is_refused_by_name(sound: Callable[..., Path]) -> None:
    root = sound(confidence=0.87)
    (finding,) = [f for f in check(load([root])) if f.code == "catalogue-file"]
    assert (finding.field, finding.remedy) == ("confidence", "remove it, rates are computed from evidence")


def git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True)


def test_evidence_is_added_and_never_edited_or_removed(sound: Callable[..., Path]) -> None:
    root = sound()
    evidence = root / "pytorch" / "some-error" / "evidence"
    evidence.mkdir()
    for name in "ab":
        (evidence / f"{name}.json").write_text("{}")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    (evidence / "c.json").write_text("{}")
    assert list(write_once(root, "HEAD")) == []
    (evidence / "a.json").write_text('{"k": 1}')
    (evidence / "b.json").unlink()
    found = {Path(f.file).name: f.message.split(" since")[0] for f in write_once(root, "HEAD")}
    assert found == {"a.json": "was edited", "b.json": "was removed"}
    with pytest.raises(UsageError, match="no-such-revision"):
        list(write_once(root, "no-such-revision"))


def test_recovery_is_what_the_run_showed(sound: Callable[..., Path]) -> None:
    root = sound(recoverability="in_process")
    folder = root / "pytorch" / "some-error"
    digest = arm_digests(SCRIPT)["test_reproduces"]
    write(folder, document([trial("reproduce", arm_digest=digest, recovers=True)]))
    assert codes(root) == []
    write(folder, document([trial("reproduce", arm_digest=digest, recovers=False)]))
    assert codes(root) == ["recoverability-contradicted"]
