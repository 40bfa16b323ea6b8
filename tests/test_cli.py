"""The command line as a person and as a script would use it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, entry

PASTE = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nRuntimeError: the frobnicator of pytorch/some-error jammed at step 7\n'


def kb(
    *arguments: str | Path, stdin: str | bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "kb", *map(str, arguments)],
        input=data if data is not None else b"",
        capture_output=True,
        env={**os.environ, **environment},
        cwd=PROJECT,
        timeout=120,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def root(catalogue: Callable[..., Path]) -> Path:
    return catalogue(entry())


def test_a_known_paste_is_answered_from_a_file_a_pipe_and_a_dash(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(PASTE)
    answers = [
        kb("match", "--entries", root, file),
        kb("match", "--entries", root, stdin=PASTE),
        kb("match", "-", "--entries", root, stdin=PASTE),
    ]
    assert {done.returncode for done in answers} == {0}
    assert len({done.stdout for done in answers}) == 1
    assert "pytorch/some-error" in answers[0].stdout
    assert "Oil it." in answers[0].stdout
    assert "\x1b" not in answers[0].stdout


def test_an_unknown_paste_is_unknown_with_what_was_understood() -> None:
    done = kb("match", stdin=PASTE.replace("frobnicator", "widget"))
    assert done.returncode == 1
    assert done.stdout.startswith("unknown")
    assert "RuntimeError: the widget" in done.stdout
    assert "a.py:1 in f" in done.stdout


def test_json_is_the_documented_shape(root: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    done = kb("match", "--format=json", "--entries", root, stdin=PASTE)
    answer = json.loads(done.stdout)
    jsonschema.validate(answer, json.loads((PROJECT / "schemas" / "match.schema.json").read_text()))
    assert answer["abstained"] is False
    match = answer["matches"][0]
    assert (match["entry_id"], match["level"], match["role"], match["line"]) == (
        "pytorch/some-error",
        "exact",
        "root",
        4,
    )
    start, end = match["span"]
    assert PASTE.split("\n")[3][start:end] == "the frobnicator of pytorch/some-error jammed at step 7"
    assert match["fixes"][0]["measured"] is None


def test_several_inputs_give_one_line_each(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(PASTE)
    done = kb("match", "-f", "jsonl", "--entries", root, tmp_path / "a", tmp_path / "b")
    assert [json.loads(line)["matches"][0]["entry_id"] for line in done.stdout.splitlines()] == [
        "pytorch/some-error"
    ] * 2
    refused = kb("match", "-f", "json", tmp_path / "a", tmp_path / "b")
    assert (refused.returncode, "--format jsonl" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"", "nothing to match"),
        (b" \n ", "nothing to match"),
        (bytes(range(256)) * 300, "binary"),
        (b"\x1f\x8b\x08junk", "gzip"),
    ],
)
def test_bad_input_is_refused_clearly(stdin: bytes, said: str) -> None:
    done = kb("match", stdin=stdin)
    assert done.returncode == 2
    assert said in done.stderr
    assert "remedy:" in done.stderr
    assert done.stdout == ""


def test_missing_files_and_folders_are_refused_clearly(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "nope", "no such file"), (tmp_path, "is a folder")):
        done = kb("match", path)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_fifty_megabytes_of_one_letter_are_survived() -> None:
    done = kb("match", stdin=b"a" * 50_000_000)
    assert done.returncode == 1
    assert done.stdout.startswith("unknown")


def test_invalid_utf8_does_not_hide_the_error(root: Path) -> None:
    done = kb("match", "--entries", root, stdin=b"caf\xe9 \xff\n" + PASTE.encode())
    assert done.returncode == 0


def test_a_hostile_paste_cannot_act_on_the_terminal() -> None:
    done = kb("match", stdin="ValueError: \x1b]0;owned\x07\x1b[2J \u202eevil \x9b31m \x00\n")
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\x00"} & set(done.stdout)
    as_json = kb("match", "-f", "json", stdin="ValueError: \u202eevil \x9b31m\n")
    assert not {"\u202e", "\x9b"} & set(as_json.stdout)
    json.loads(as_json.stdout)


def test_markdown_shows_markup_as_text() -> None:
    done = kb("match", "-f", "markdown", stdin="ValueError: <script>alert(1)</script> `x` @everyone\n")
    assert "`` ValueError: <script>alert(1)</script> `x` @everyone``" in done.stdout.replace("``V", "`` V")
    assert "<script>" not in re.sub(r"``.*?``", "", done.stdout)


def test_a_broken_entry_is_reported_and_skipped(root: Path) -> None:
    broken = root / "pytorch" / "broken"
    broken.mkdir()
    (broken / "entry.json").write_text("{")
    done = kb("match", "--entries", root, stdin=PASTE)
    assert done.returncode == 0
    assert "pytorch/broken/entry.json" in done.stderr
    assert "pytorch/some-error" in done.stdout


def test_a_team_folder_can_be_named_in_the_environment(root: Path) -> None:
    assert kb("match", stdin=PASTE, KB_ENTRIES=str(root)).returncode == 0
    assert kb("match", stdin=PASTE, KB_ENTRIES=str(root / "nope")).returncode == 2


def test_an_overlay_entry_changed_is_seen_at_once(root: Path, catalogue: Callable[..., Path]) -> None:
    assert kb("match", "--entries", root, stdin=PASTE).returncode == 0
    catalogue(entry(regex="an altogether different message", signature="an altogether different message"))
    assert kb("match", "--entries", root, stdin=PASTE).returncode == 1


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "emptied", "folder", "scattered"])
def test_a_damaged_index_is_rebuilt(tmp_path: Path, root: Path, damage: str) -> None:
    cache = {"KB_CACHE": str(tmp_path / "cache")}
    index = Path(kb("index", "--path", "--entries", root, **cache).stdout.strip())
    whole = index.read_bytes()
    if damage == "folder":
        index.unlink()
        index.mkdir()
    else:
        middle = whole[:4096] + b"\xff" * (len(whole) - 4096)
        scattered = whole.replace(b'{"schema_version"', b"{!!!!!!!!!!!!!!!!")
        damaged = {"truncated": whole[: len(whole) // 2], "overwritten": middle, "emptied": b"", "scattered": scattered}
        index.write_bytes(damaged[damage])
    done = kb("match", "--entries", root, stdin=PASTE, **cache)
    assert done.returncode == 0, done.stderr
    assert "pytorch/some-error" in done.stdout


def test_two_first_runs_at_once_both_succeed(tmp_path: Path, root: Path) -> None:
    environment = {**os.environ, "KB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "kb", "match", "--entries", str(root)]
    running = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=PROJECT
        )
        for _ in range(4)
    ]
    done = [process.communicate(PASTE.encode(), timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert {err for _, err in done} == {b""}
    assert len({out for out, _ in done}) == 1


def test_an_unwritable_cache_falls_back_to_memory(tmp_path: Path, root: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = kb("match", "--entries", root, stdin=PASTE, KB_CACHE=str(blocked / "cache"))
    assert done.returncode == 0
    assert "kept in memory" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_for_the_output_is_an_error_not_a_traceback(root: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kb", "match", "--entries", str(root)],
            input=PASTE.encode(),
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
            check=False,
        )
    assert done.returncode == 2
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(root: Path) -> None:
    command = f"{sys.executable} -m kb list --entries {root} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.stderr == ""


def on_a_terminal(*arguments: str, **environment: str) -> str:
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kb", *arguments], stdin=subprocess.PIPE, stdout=other, stderr=subprocess.PIPE, cwd=PROJECT,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    process.communicate(PASTE.encode(), timeout=120)
    os.close(other)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:
        pass  # the other end is closed
    os.close(main)
    return shown.decode()


def test_colours_on_a_terminal_unless_unwanted(root: Path) -> None:
    assert "\x1b[" in on_a_terminal("match", "--entries", str(root))
    assert "\x1b[" not in on_a_terminal("match", "--entries", str(root), NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal("match", "--entries", str(root), TERM="dumb")


def test_output_fits_the_terminal(root: Path) -> None:
    for width in (50, 80):
        shown = on_a_terminal("match", "--entries", str(root), COLUMNS=str(width), NO_COLOR="1")
        assert max(map(len, shown.splitlines())) <= width


def test_show_search_list(root: Path) -> None:
    shown = kb("show", "pytorch/some-error", "--entries", root)
    assert (shown.returncode, "It was not oiled." in shown.stdout) == (0, True)
    record = json.loads(kb("show", "pytorch/some-error", "-f", "json", "--entries", root).stdout)
    assert record["verification_tier"] == "sourced"
    assert record["workarounds"][0]["success_rate"] is None
    assert "pytorch/some-error" in kb("search", "frobnicator", "--entries", root).stdout
    assert kb("search", "zzzunheardof").returncode == 1
    assert kb("search", '"; drop table entries --', 'NEAR("').returncode in (0, 1)
    listed = kb("list", "--domain", "pytorch", "--entries", root).stdout
    assert "pytorch/some-error" in listed
    assert "cuda/" not in listed


def test_an_id_that_is_nearly_right_gets_the_right_one(root: Path) -> None:
    done = kb("show", "pytorch/some-eror", "--entries", root)
    assert done.returncode == 2
    assert "pytorch/some-error" in done.stderr


def test_chinese_where_the_entry_has_it(root: Path, catalogue: Callable[..., Path]) -> None:
    catalogue(entry(root_cause_zh="没有上油。", workarounds_zh=["给它上油。"]))
    done = kb("match", "--locale", "zh", "--entries", root, stdin=PASTE)
    assert "没有上油。" in done.stdout
    assert "给它上油。" in done.stdout
    assert kb("match", "--locale", "xx", stdin=PASTE).returncode == 2


def test_a_known_environment_moves_a_fix_that_does_not_apply(catalogue: Callable[..., Path], tmp_path: Path) -> None:
    data = entry()
    data["workarounds"] = [
        {**data["workarounds"][0], "id": "a-old", "applies_when": {"packages": {"torch": "<2.0"}}},
        {**data["workarounds"][0], "id": "b-any"},
    ]
    root = catalogue(data)
    file = tmp_path / "env.json"
    file.write_text(json.dumps({"packages": {"torch": "2.6.0"}}))

    def order(*more: str) -> list[tuple[str, Any]]:
        done = kb("match", "-f", "json", "--entries", root, *more, stdin=PASTE)
        return [(fix["id"], fix["applies"]) for fix in json.loads(done.stdout)["matches"][0]["fixes"]]

    assert order() == [("a-old", None), ("b-any", None)]
    assert order("--env", str(file)) == [("b-any", None), ("a-old", False)]


def test_import_and_read_back_the_verbatim_record(tmp_path: Path) -> None:
    from tests.test_foreign import RECORD, write

    root = tmp_path / "mine"
    done = kb("import", write(tmp_path), "--to", root)
    assert done.returncode == 0
    assert done.stdout.startswith("huggingface/some-claim\t")
    back = kb("show", "huggingface/some-claim", "--reported", "--entries", root)
    assert json.loads(back.stdout) == RECORD
    shown = json.loads(kb("show", "huggingface/some-claim", "-f", "json", "--entries", root).stdout)
    assert shown["verification_tier"] == "ai_generated"
    assert shown["fix_success_rate"] is None
    assert set(RECORD) <= set(shown)
    assert kb("import", write(tmp_path), "--to", root).returncode == 2


def test_schemas_are_printed(tmp_path: Path) -> None:
    names = kb("schema").stdout.split()
    assert names == ["entry", "evidence", "match", "provenance", "published"]
    assert json.loads(kb("schema", "match").stdout)["title"]
    assert kb("schema", "nope").returncode == 2
    assert len(kb("schema", "--write", tmp_path).stdout.split()) == 5


def test_eval_scores_a_corpus(root: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": PASTE, "entry": "pytorch/some-error", "noise": ["none"]},
        {"id": "b", "text": "KeyError: 'x'", "entry": None},
    ]
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("\n".join(map(json.dumps, rows)))
    report = json.loads(kb("eval", corpus, "--json", "--entries", root).stdout)
    assert (report["top1"]["k"], report["top1"]["n"], report["false_answers"]["k"], report["false_answers"]["n"]) == (
        1,
        1,
        0,
        1,
    )
    corpus.write_text('{"text": 3}')
    refused = kb("eval", corpus)
    assert (refused.returncode, f"{corpus}:1" in refused.stderr) == (2, True)


def test_the_quick_path_and_the_framework_agree_on_options(root: Path) -> None:
    from kb.cli import match

    asked = ["a.txt", "-f", "json", "--locale=zh", "--env", "auto", "--redact", "paths", "--entries", str(root)]
    quick = match.plain(asked)
    assert quick == match.Options(("a.txt",), "json", "zh", env="auto", redact="paths", entries=(str(root),))
    assert match.plain(["--help"]) is None
    assert match.plain(["--nonsense"]) is None
    assert match.plain(["--format"]) is None
    help_text = kb("match", "--help").stdout
    assert all(option in help_text for option in ("--format", "-f", "--locale", "--env", "--redact", "--entries"))
    assert kb("match", "--nonsense").returncode == 2
