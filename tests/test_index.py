"""The index: built from published records, read with the standard library, never trusted blindly."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb.catalog import load
from kb.errors import EntryError, IndexUnavailableError, UnknownEntryError
from kb.index import Hit, Index
from kb.index_build import build, build_memory
from kb.publish import Publication, publish_all
from tests.conftest import PROJECT, entry

Add = Callable[..., Path]


def publications(root: Path) -> tuple[Publication, ...]:
    found, problems = publish_all(load([root]))
    assert problems == ()
    return found


OOM = entry(
    "cuda/out-of-memory",
    signature="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    regex=r"(?:CUDA|HIP) out of memory\. Tried to allocate",
    exceptions=["OutOfMemoryError", "RuntimeError"],
    frames=["torch/cuda"],
    variants=[
        {"signature": "allocation failed on device 0", "regex": r"allocation failed on device \d", "frames": []},
        {"signature": "no room left on device 0", "regex": r"no room left on device \d"},
    ],
    aliases=["pytorch/cuda-oom", "cudaErrorMemoryAllocation (2)"],
    tags=["memory", "gpu"],
    signature_zh="显存不足",
    root_cause="The caching allocator found no free block that is large enough.",
    supersedes=["pytorch/dtype-mismatch"],
    transition_graph={"leads_to": ["pytorch/dtype-mismatch"], "preceded_by": ["distributed/rank-died"]},
)
DTYPE = entry(
    "pytorch/dtype-mismatch",
    signature="expected mat1 and mat2 to have the same dtype, but got: float != c10::BFloat16",
    regex=r"expected mat1 and mat2 to have the same dtype",
    kind="error",
    tags=["dtype"],
    root_cause="A bfloat16 layer was given float32 input, for example after a LoRA adapter.",
)
RANK = entry("distributed/rank-died", kind="wrapper", regex=r"ChildFailedError of rank \d{1,5}")
GONE = entry("pytorch/old-name", withdrawn="It was a duplicate.", moved_to="pytorch/dtype-mismatch")


@pytest.fixture
def index(catalogue: Add) -> Index:
    return build_memory(publications(catalogue(OOM, DTYPE, RANK, GONE)))


@pytest.fixture
def file(catalogue: Add, tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "index.sqlite"
    build(path, publications(catalogue(OOM, DTYPE)), (), "stamp 1")
    return path


def ids(hits: list[Hit]) -> list[str]:
    return [hit.entry_id for hit in hits]


# --- reading


def test_signatures_carry_what_matching_needs(index: Index) -> None:
    first, second, third = [one for one in index.signatures() if one.entry_id == "cuda/out-of-memory"]
    assert first.literals == ("cuda out of memory. tried to allocate", "hip out of memory. tried to allocate")
    assert first.exceptions == ("OutOfMemoryError", "RuntimeError")
    assert first.supersedes == ("pytorch/dtype-mismatch",)
    assert (first.ordinal, first.engine, first.kind, first.legacy) == (0, "re2", "error", False)
    assert first.frames == ("torch/cuda",)
    assert second.frames == (), "an empty list of frames asks for none"
    assert third.frames == ("torch/cuda",), "no list of frames inherits"
    assert second.signature == "allocation failed on device 0"


def test_signatures_come_in_the_order_of_ids(index: Index) -> None:
    found = [(one.entry_id, one.ordinal) for one in index.signatures()]
    assert found == sorted(found)
    assert {one.kind for one in index.signatures()} == {"error", "wrapper"}


def test_withdrawn_entries_explain_themselves_and_match_nothing(index: Index) -> None:
    assert index.record("pytorch/old-name")["moved_to"] == "pytorch/dtype-mismatch"
    assert "pytorch/old-name" not in {one.entry_id for one in index.signatures()}
    assert "pytorch/old-name" not in ids(index.list())
    assert "pytorch/old-name" not in ids(index.search("frobnicator old name"))


def test_records_are_whole_and_found_by_alias(index: Index) -> None:
    record = index.record("cuda/out-of-memory")
    assert record == index.record("pytorch/cuda-oom") == index.record("cudaErrorMemoryAllocation (2)")
    assert record["verification_tier"] == "sourced"
    assert record["workarounds"][0]["success_rate"] is None
    assert [one["id"] for one in index.records()] == sorted(one["id"] for one in (OOM, DTYPE, RANK, GONE))


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("cuda/out-of-memroy", "cuda/out-of-memory"),
        ("dtype-mismatch", "pytorch/dtype-mismatch"),
        ("pytorch/cuda-om", "cuda/out-of-memory"),
    ],
)
def test_an_unknown_id_is_guessed(index: Index, asked: str, meant: str) -> None:
    with pytest.raises(UnknownEntryError) as caught:
        index.record(asked)
    assert meant in caught.value.remedy
    assert caught.value.remedy.count("/") <= 3


@pytest.mark.parametrize("asked", ["", "zzzzzzzz", "'; drop table entries; --", "\0", "é" * 500])
def test_an_id_like_no_other_gets_the_way_to_search(index: Index, asked: str) -> None:
    with pytest.raises(UnknownEntryError) as caught:
        index.record(asked)
    assert "kb search" in caught.value.remedy


def test_edges_go_forward_from_both_ends(index: Index) -> None:
    assert index.edges() == {
        "cuda/out-of-memory": {"pytorch/dtype-mismatch"},
        "distributed/rank-died": {"cuda/out-of-memory"},
    }


def test_lists_are_filtered(index: Index) -> None:
    everything = ["cuda/out-of-memory", "distributed/rank-died", "pytorch/dtype-mismatch"]
    assert ids(index.list()) == everything
    assert ids(index.list(domain="pytorch")) == ["pytorch/dtype-mismatch"]
    assert ids(index.list(tag="gpu")) == ["cuda/out-of-memory"]
    assert ids(index.list(tier="sourced")) == everything
    assert ids(index.list(domain="cuda", tag="dtype")) == []


# --- searching


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("bfloat16 lora", "pytorch/dtype-mismatch"),
        ("CUDA out of memory", "cuda/out-of-memory"),
        ("pytorch/cuda-oom", "cuda/out-of-memory"),
        ("cudaErrorMemoryAllocation", "cuda/out-of-memory"),
        ("alloc", "cuda/out-of-memory"),
        ("显存", "cuda/out-of-memory"),
        ("存不足", "cuda/out-of-memory"),
        ("dtype zzzz", "pytorch/dtype-mismatch"),
        ("memory", "cuda/out-of-memory"),
    ],
)
def test_search_finds(index: Index, words: str, first: str) -> None:
    assert ids(index.search(words))[0] == first


def test_search_is_limited_by_number_and_domain(index: Index) -> None:
    assert len(index.search("frobnicator oiled", limit=1)) == 1
    assert ids(index.search("oiled", domain="distributed")) == ["distributed/rank-died"]
    assert index.search("oiled", limit=0) == []
    assert index.search("oiled", domain="nowhere") == []


@pytest.mark.parametrize(
    "words",
    [
        "",
        " ",
        '"',
        '""" OR',
        "NEAR(a b)",
        "id:x",
        "a AND",
        "*",
        "-memory",
        "^memory",
        "x" * 100_000,
        "(" * 50,
        "\0memory",
    ],
)
def test_hostile_queries_only_find_or_do_not(index: Index, words: str) -> None:
    assert isinstance(index.search(words), list)
    assert isinstance(index.related(words.split()), list)


@settings(deadline=None, max_examples=150)
@given(words=st.text(max_size=40))
def test_no_text_breaks_a_search(words: str) -> None:
    assert isinstance(_SMALL.search(words), list)
    assert isinstance(_SMALL.related([words, "memory"]), list)


_SMALL = build_memory(())


def test_related_entries_share_rare_words(index: Index) -> None:
    (hit,) = index.related(["mat1", "and", "mat2", "have", "got", "another", "dtype,", "which"])
    assert hit.entry_id == "pytorch/dtype-mismatch"
    assert set(hit.terms) >= {"mat1", "mat2"}


def test_one_shared_word_among_several_is_no_relation(index: Index) -> None:
    assert index.related(["bfloat16", "allocator"]) == []
    assert index.related(["nothing", "here", "shared"]) == []
    assert index.related([]) == []


# --- the file


def test_a_built_file_opens_with_its_stamp_only(file: Path) -> None:
    with Index.open(file, stamp="stamp 1") as opened:
        assert ids(opened.list()) == ["cuda/out-of-memory", "pytorch/dtype-mismatch"]
        assert opened.path == file
    with Index.open(file, stamp=None) as opened:
        assert opened.signatures()
    with pytest.raises(IndexUnavailableError, match="older than its entries"):
        Index.open(file, stamp="stamp 2")


def refused(file: Path) -> str:
    with pytest.raises(IndexUnavailableError) as caught:
        Index.open(file, stamp="stamp 1")
    assert caught.value.remedy
    return caught.value.message


def test_a_missing_file_or_a_folder_is_unavailable(tmp_path: Path) -> None:
    assert "cannot read" in refused(tmp_path / "nowhere.sqlite")
    assert "cannot read" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 99, 100, 4096, -4096, -1])
def test_a_truncated_file_is_unavailable(file: Path, keep: int) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    assert "truncated" in refused(file) or "no SQLite file" in refused(file)


def test_another_file_or_a_damaged_one_is_unavailable(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(b"x" * len(data))
    assert "no SQLite file" in refused(file)
    file.write_bytes(data[:100] + b"\xff" * 3996 + data[4096:])
    assert "damaged" in refused(file)


def test_damage_further_in_is_found_when_read(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for page in range(3 * 4096, len(data), 4096):
        data[page : page + 64] = b"\xff" * 64
    file.write_bytes(data)
    with pytest.raises(IndexUnavailableError) as caught, Index.open(file, stamp="stamp 1") as opened:
        opened.signatures()
        opened.search("memory")
        list(opened.records())
    assert caught.value.remedy


def test_an_index_of_another_schema_is_unavailable(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("update meta set value = '999' where key = 'schema_version'")
    connection.commit()
    connection.close()
    assert "schema 999" in refused(file)


def test_another_sqlite_database_is_unavailable(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("create table t (x)")
    connection.commit()
    connection.close()
    assert "damaged" in refused(tmp_path / "other.sqlite")


def test_the_file_cannot_be_written_through_an_open_index(file: Path) -> None:
    with Index.open(file, stamp=None) as opened, pytest.raises(IndexUnavailableError, match="readonly"):
        opened._rows("delete from entries")


@pytest.mark.parametrize("name", ["a b.sqlite", "q?x=1#y.sqlite", "50%.sqlite", "索引.sqlite"])
def test_odd_file_names_open(catalogue: Add, tmp_path: Path, name: str) -> None:
    build(tmp_path / name, publications(catalogue(DTYPE)), (), "s")
    with Index.open(tmp_path / name, stamp="s") as opened:
        assert opened.signatures()


def test_reading_imports_only_the_standard_library() -> None:
    code = "import sys; import kb.index; print(*(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"kb", "__main__"}
    assert not {name for name in foreign if not name.startswith("_")}


# --- building


def tables(index: Index) -> dict[str, list[dict[str, Any]]]:
    names = [name for (name,) in index._rows("select name from table_docs")]
    found = {}
    for name in names:
        columns = [row[1] for row in index._rows(f"pragma table_info({name})")]
        found[name] = [dict(zip(columns, row, strict=True)) for row in index._rows(f"select * from {name}")]
    return found


def test_every_table_is_documented(index: Index) -> None:
    made = {
        name
        for (name,) in index._rows("select name from sqlite_master where type = 'table'")
        if not name.startswith(("sqlite_", "entries_fts_"))
    }
    documented = dict(index._rows("select name, description from table_docs"))
    assert set(documented) == made
    assert all(documented.values())


def test_plain_sql_answers_questions(index: Index) -> None:
    found = tables(index)
    assert {"entry_id": "cuda/out-of-memory", "tag": "gpu"} in found["tags"]
    (row,) = [row for row in found["workarounds"] if row["entry_id"] == "cuda/out-of-memory"]
    assert (row["state"], row["state_reason"], row["n"]) == ("unverifiable", "not written yet", None)
    assert {row["origin"] for row in found["transitions"]} == {"authored"}
    assert found["evidence"] == found["rates"] == []


def test_building_twice_gives_the_same_bytes(catalogue: Add, tmp_path: Path) -> None:
    found = publications(catalogue(OOM, DTYPE))
    for name in ("one", "two"):
        build(tmp_path / name, found, (), "s")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_building_replaces_and_leaves_nothing_beside(file: Path, catalogue: Add) -> None:
    opened = Index.open(file, stamp="stamp 1")
    build(file, publications(catalogue(OOM, DTYPE, RANK)), (), "stamp 2")
    assert len(opened.list()) == 2, "who has the old one open keeps it"
    with Index.open(file, stamp="stamp 2") as new:
        assert len(new.list()) == 3
    assert {path.suffix for path in file.parent.iterdir()} <= {".sqlite", ".lock"}


def test_a_failed_build_leaves_the_old_index(file: Path) -> None:
    def records() -> Any:
        yield from ()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        build(file, records(), (), "stamp 2")
    assert Index.open(file, stamp="stamp 1").signatures()
    assert {path.suffix for path in file.parent.iterdir()} <= {".sqlite", ".lock"}


def test_a_full_disk_is_an_error_that_callers_know(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from kb.errors import IndexUnavailableError\n"
        "from kb.index_build import build\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n"
        "    build(Path(sys.argv[1]), (), (), 's')\n"
        "except (OSError, IndexUnavailableError) as error:\n"
        "    print('told:', error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.stdout.startswith("told:"), done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_folder_that_cannot_be_is_an_error_that_callers_know(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        build(tmp_path / "file" / "index.sqlite", (), (), "s")


def test_two_processes_may_build_at_once(catalogue: Add, tmp_path: Path) -> None:
    root = catalogue(OOM, DTYPE)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kb.catalog import load\n"
        "from kb.index import Index\n"
        "from kb.index_build import build\n"
        "from kb.publish import publish_all\n"
        "path = Path(sys.argv[1])\n"
        "build(path, *publish_all(load([Path(sys.argv[2])])), 's')\n"
        "print(len(Index.open(path, stamp='s').list()))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "deep" / "index.sqlite"), str(root)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT)
        for _ in range(3)
    ]
    for process in running:
        out, err = process.communicate()
        assert out.strip() == "2", err


def test_problems_are_kept_for_later_runs() -> None:
    problem = EntryError("a/b/entry.json", "regex", "is missing", "add it")
    index = build_memory((), (problem,))
    (kept,) = index.problems()
    assert (kept.file, kept.field, kept.message, kept.remedy) == ("a/b/entry.json", "regex", "is missing", "add it")


# --- imported patterns


def reported(**record: Any) -> dict[str, Any]:
    return entry("a/imported", reported={"origin": "record.json", "record": record})


@pytest.mark.parametrize(
    ("pattern", "engine"), [("bnb_4bit_compute_dtype.*incompatible", "re2"), (r"(?<=device) assert (\d)\1", "regex")]
)
def test_an_imported_pattern_is_an_extra_signature(catalogue: Add, pattern: str, engine: str) -> None:
    index = build_memory(publications(catalogue(reported(regex=pattern, signature="as reported"))))
    own, extra = index.signatures()
    assert (own.legacy, extra.legacy) == (False, True)
    assert (extra.regex, extra.engine, extra.signature, extra.ordinal) == (pattern, engine, "as reported", 1)
    assert extra.literals


@pytest.mark.parametrize("pattern", ["(", "", None, 3, "(?:a{1000}){1000}", entry("a/imported")["regex"]])
def test_an_imported_pattern_nothing_can_run_is_left_out(catalogue: Add, pattern: Any) -> None:
    index = build_memory(publications(catalogue(reported(regex=pattern))))
    assert [one.legacy for one in index.signatures()] == [False]
    assert index.record("a/imported")["reported"]["record"] == {"regex": pattern}


def test_an_imported_record_comes_back_as_it_was(catalogue: Add) -> None:
    record = {
        "id": "b/x",
        "success_rate": 0.95,
        "versions": [{"removed": None}],
        "text": "é错\u2028",
        "n": 1e300,
        "e": {},
    }
    index = build_memory(publications(catalogue(reported(**record))))
    assert json.dumps(index.record("a/imported")["reported"]["record"]) == json.dumps(record)
