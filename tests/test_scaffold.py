"""`kb new`: a paste becomes a folder that a person finishes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import kb
from kb.catalog import load
from kb.errors import UsageError
from kb.lint import check
from kb.scaffold import draft, write

SECRET = "hf_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"
PASTE = f"""\
[rank3]: Traceback (most recent call last):
[rank3]:   File "/home/jane/train.py", line 88, in <module>
[rank3]:     model.load(path)
[rank3]:   File "/opt/conda/lib/python3.11/site-packages/vllm/weights.py", line 31, in load
[rank3]:     raise ValueError(...)
[rank3]: ValueError: The gizmo of /home/jane/run7/model-00001.bin has 12 shards but wants 8 ({SECRET})
"""
KNOWN = "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16\n"


def new(folder: Path, *options: str, paste: str = PASTE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kb", "new", "-", "--root", str(folder / "entries"), *options]
    return subprocess.run(command, input=paste, capture_output=True, text=True, check=False)


def test_a_folder_with_everything_that_can_be_read_off(tmp_path: Path) -> None:
    done = new(tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "entries/vllm/gizmo-shards-wants"
    assert [Path(line) for line in done.stdout.splitlines()] == [
        folder / "entry.json", folder / "verify.py", folder / "samples/reported.txt",
    ]  # fmt: skip
    entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    assert entry["exceptions"] == ["ValueError"]
    assert entry["raised_by"][0]["package"] == "vllm"
    assert "number: 12" in done.stderr
    for file in folder.rglob("*.*"):
        text = file.read_text(encoding="utf-8")
        assert SECRET not in text
        assert "/home/jane" not in text


def test_the_folder_loads_wins_its_sample_and_says_what_is_missing(tmp_path: Path) -> None:
    base = kb.open()
    write(draft(PASTE, base), tmp_path)
    catalog = load([tmp_path])
    assert not catalog.problems
    assert {finding.code for finding in check(catalog)} == {"todo-left", "samples-few"}


def test_where_an_environment_lies_is_left_out_of_the_sample() -> None:
    made = draft(PASTE.replace("/opt/conda/lib", "/srv/teams/jane/secret-project/.venv/lib"), kb.open())
    assert "secret-project" not in made.sample
    assert 'File "/venv/lib/python3.11/site-packages/vllm/weights.py", line 31, in load' in made.sample


def test_a_line_that_only_announces_the_message_takes_the_next_one_along() -> None:
    paste = PASTE.replace("The gizmo of", "Error(s) in loading gizmos:\n[rank3]: \tsize mismatch of")
    made = draft(paste, kb.open())
    assert made.entry["signature"].startswith("ValueError: Error(s) in loading gizmos: size mismatch of ")


def test_what_is_known_already_is_said(tmp_path: Path) -> None:
    done = new(tmp_path, paste=KNOWN)
    assert done.returncode == 1
    assert "pytorch/linear-dtype-mismatch answers this paste already" in done.stderr
    assert not (tmp_path / "entries").exists()
    assert new(tmp_path, "--anyway", "--id", "pytorch/mine", paste=KNOWN).returncode == 0


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    assert new(tmp_path).returncode == 0
    done = new(tmp_path, "--anyway", "--id", "vllm/gizmo-shards-wants")
    assert done.returncode == 2
    assert "is there already" in done.stderr


@pytest.mark.parametrize("name", ["../../etc/passwd", "Upper/case", "nodomain", "a/b/c", "a/.."])
def test_an_id_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    done = new(tmp_path, "--id", name)
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def test_programs_get_json(tmp_path: Path) -> None:
    told = json.loads(new(tmp_path, "--json").stdout)
    assert told["id"] == "vllm/gizmo-shards-wants"
    assert told["generalized"]
    assert Path(told["folder"]).is_dir()


def test_a_paste_without_an_exception_is_refused() -> None:
    with pytest.raises(UsageError, match="no exception was found"):
        draft("all is well\n", kb.open())
