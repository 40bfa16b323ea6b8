"""Batches: the answer of each log, whatever it is packed in; nothing done twice; nothing bad stops the rest."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from kb.batch import engine, report
from kb.batch.clusters import Clusters
from kb.batch.dealing import Dealing, Said
from kb.batch.fingerprint import fingerprint
from kb.batch.parts import parts, units_of
from kb.batch.reading import Fault, Log, read
from kb.batch.run import Options, Progress, Summary, run
from kb.batch.sources import find, opened
from kb.batch.store import Store
from kb.batch.table import match_table
from kb.batch.work import Job, catalogue
from kb.cli.app import app
from kb.errors import UsageError
from kb.knowledge import KnowledgeBase
from kb.models.result import Frame, Incident
from kb.opening import open_base
from tests.conftest import PROJECT

NOON = "2026-11-22T12:30:00Z"


@pytest.fixture(scope="module")
def base(cache: Path) -> KnowledgeBase:
    """What `kb match` asks."""
    before = os.environ.get("KB_CACHE")
    os.environ["KB_CACHE"] = str(cache)
    try:
        return open_base()
    finally:
        if before is None:
            del os.environ["KB_CACHE"]


def sample(place: int = 0) -> str:
    found = sorted((PROJECT / "entries").glob("*/*/samples/*.txt"))
    return [path.read_text(encoding="utf-8") for path in found if not path.name.startswith("not-")][place]


def stranger(number: int, kind: str = "LedgerError") -> str:
    """A failure that no entry knows, other figures each time."""
    return (
        f'step {number}\nTraceback (most recent call last):\n  File "/home/ada/job.py", line {number}, in step\n    run()\n'
        f"fancytrain.errors.{kind}: ledger entry 0x{number:08x} of /mnt/run-{number}/a.bin closed at step {number}\n"
    )


def lines(path: Path, texts: Sequence[str], **more: Any) -> Path:
    """A file of JSON Lines with the ids job-0, job-1, …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"id": f"job-{number}", "text": text, **more}) for number, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def batch(source: Path | str, out: Path, **options: Any) -> Summary:
    return run(Options(str(source), str(out), **{"workers": 1, "engine": "processes", **options}))


def answers(out: Path) -> list[dict[str, Any]]:
    table = pa.concat_tables([pq.read_table(path) for path in sorted((out / "logs").glob("*.parquet"))])
    return sorted(table.to_pylist(), key=lambda row: (row["log"], row["rank"]))


def table(out: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / f"{name}.parquet").to_pylist()
    return rows


def asked(base: KnowledgeBase, text: str) -> list[tuple[Any, ...]]:
    """What `kb match` answers, as the columns of a batch."""
    return [
        (match.entry_id, match.level, match.role, match.line, match.fixes[0].id if match.fixes else None)
        for match in base.match(text).matches
    ]


def given(rows: Sequence[dict[str, Any]], log: str) -> list[tuple[Any, ...]]:
    columns = ("entry", "level", "role", "line", "fix")
    return [tuple(row[name] for name in columns) for row in rows if row["log"] == log and row["entry"]]


def test_every_log_is_answered_as_kb_match_answers_it_whatever_it_is_packed_in(
    tmp_path: Path, base: KnowledgeBase
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    texts = [sample(place) for place in range(0, 300, 25)] + [stranger(7), "", "step 1\nstep 2\n", "half \ud83d pair"]
    healthy = "".join(f"INFO step {number} loss 2.0\n" for number in range(60_000))
    large = healthy + sample(30) + healthy
    (source / "plain" / "deep").mkdir(parents=True)
    for number, text in enumerate(texts):
        (source / "plain" / f"{number}.log").write_bytes(text.encode("utf-8", "replace"))
    (source / "plain" / "deep" / "large.log").write_text(large, encoding="utf-8")
    (source / "plain" / "packed.log.gz").write_bytes(gzip.compress(texts[3].encode()))
    (source / "plain" / "_SUCCESS").write_text("left by another program")
    lines(source / "a.jsonl", texts)
    with gzip.open(source / "b.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(
            json.dumps({"id": f"packed-{number}", "text": text}) + "\n" for number, text in enumerate(texts)
        )
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    columns = {"id": [f"row-{number}" for number in range(len(texts))], "text": clean}
    pq.write_table(pa.table(columns), source / "c.parquet", row_group_size=3)

    summary = batch(source, out, workers=2, size=5)

    rows = answers(out)
    for number, text in enumerate(clean):
        for name in (f"plain/{number}.log", f"job-{number}", f"packed-{number}", f"row-{number}"):
            assert given(rows, name) == asked(base, text), name
    assert given(rows, "plain/packed.log.gz") == asked(base, texts[3])
    assert given(rows, "plain/deep/large.log") == asked(base, large)
    assert summary.logs == 4 * len(texts) + 2 == len({row["log"] for row in rows})
    assert summary.faults == 0 and summary.lost == ()
    assert summary.known + summary.unknown + summary.silent == summary.logs


def test_a_table_of_nothing_but_ids_and_texts_is_enough_for_other_engines(base: KnowledgeBase) -> None:
    rows = match_table(pa.table({"id": ["a", "b"], "text": [sample(), stranger(1)]}), base).to_pylist()
    assert given(rows, "a") == asked(base, sample())
    assert [(row["entry"], row["role"], row["exception"], row["line"]) for row in rows if row["log"] == "b"] == [
        (None, "root", "LedgerError", 5)
    ]


def test_a_log_whose_first_failure_is_unknown_says_so_and_keeps_what_followed(base: KnowledgeBase) -> None:
    text = (PROJECT / "entries/distributed/elastic-exitcode-1/samples").glob("*.txt")
    wrapper = next(path.read_text(encoding="utf-8") for path in sorted(text) if not path.name.startswith("not-"))
    both = stranger(3) + wrapper
    rows = match_table(pa.table({"id": ["a"], "text": [both]}), base).to_pylist()
    assert base.match(both).unknown_root is not None
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["entry"] is None and rows[0]["fingerprint"]
    assert given(rows, "a") == asked(base, both)


def test_a_second_run_does_nothing_again_but_what_is_new_or_changed(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(4):
        lines(source / f"{number}.jsonl", [stranger(number)] * 3)

    def watch(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Options(str(source), str(out), workers=1, engine="processes", size=1), watch)
    written = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.json")}
    assert len(written) >= 2 and not (out / "summary.json").exists()

    resumed = batch(source, out, size=1)
    assert (resumed.parts, resumed.logs) == (4, 12)
    assert resumed.done_before == len(written)
    assert {path: path.stat().st_mtime_ns for path in written} == written

    lines(source / "1.jsonl", [stranger(1)] * 5)
    lines(source / "4.jsonl", [stranger(4)])
    grown = batch(source, out, size=1)
    assert (grown.parts, grown.done_before, grown.logs) == (5, 3, 15)
    assert len(answers(out)) == 15, "answers of what is no longer there are gone"


def test_what_cannot_be_read_is_told_with_its_place_and_the_rest_is_answered(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    good = lines(source / "a.jsonl", [stranger(1), stranger(2)])
    first = len(good.read_bytes())
    with good.open("ab") as stream:
        stream.write(b'{"id": "cut", "text": "half of\n[1, 2]\n{"id": "no text"}\n')
        stream.write(json.dumps({"id": "after", "text": stranger(3)}).encode())
    whole = gzip.compress(b"".join(json.dumps({"text": stranger(n)}).encode() + b"\n" for n in range(500)), 1)
    (source / "b.jsonl.gz").write_bytes(whole[: len(whole) * 2 // 3])
    (source / "c.jsonl.gz").write_bytes(b"never packed")
    pq.write_table(pa.table({"id": ["x"], "text": [stranger(4)]}), source / "d.parquet")
    data = (source / "d.parquet").read_bytes()
    (source / "e.parquet").write_bytes(data[:40] + b"\xff" * 30 + data[70:-8] + b"\xff" * 8)
    pq.write_table(pa.table({"id": ["x"], "words": ["y"]}), source / "f.parquet")
    (source / "g.log").write_bytes(bytes(range(256)) * 40)
    (source / "h.log").write_bytes(b"")

    summary = batch(source, out)

    faults = {(row["source"], row["place"]): row["reason"] for row in table(out, "failures")}
    at = [first, first + 31, first + 38]
    assert {place for name, place in faults if name == "a.jsonl"} == {f"byte {place}" for place in at}
    assert {name for name, _ in faults} == {f"{name}" for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.gz", "e.parquet", "f.parquet", "g.log")}  # fmt: skip
    assert "text" in faults["f.parquet", ""] and "binary" in faults["g.log", ""]
    by_source = Counter(row["source"] for row in answers(out))
    assert by_source["a.jsonl"] == 3 and by_source["d.parquet"] == 1 and by_source["h.log"] == 1
    assert 0 < by_source["b.jsonl.gz"] < 500, "what was read before the cut is kept"
    assert summary.faults == len(faults) and summary.lost == ()

    (source / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": stranger(1)}).encode()))
    assert batch(source, out).faults == summary.faults - 1


def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    texts = [stranger(number) for number in range(240)]
    for number in range(12):
        lines(source / f"{number:02}.jsonl", texts[number * 20 : number * 20 + 20])
    killed: list[int] = []

    def watch(progress: Progress) -> None:
        if progress.done >= 2 and not killed:
            victim = multiprocessing.active_children()[0]
            killed.append(victim.pid or 0)
            os.kill(victim.pid or 0, signal.SIGKILL)

    summary = run(Options(str(source), str(out), workers=2, engine="processes", size=1), watch)
    assert killed
    assert (summary.logs, summary.unknown, summary.lost) == (240, 240, ())
    assert not list(out.rglob(".tmp*")) and not list(out.rglob("*.begun"))
    assert Counter((row["source"], row["log"]) for row in answers(out)).most_common(1)[0][1] == 1


def deadly(folder: str, task: str) -> str:
    """Marks the part as begun, as a job does; the part `bad` ends its process each time."""
    store = Store(folder)
    store.write(f"parts/{task}.begun", b"")
    if task == "bad":
        with (Path(folder) / "deaths").open("a") as stream:
            stream.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    store.write(f"parts/{task}.json", json.dumps({"logs": 1}).encode())
    store.remove(f"parts/{task}.begun")
    return json.dumps({"key": task, "logs": 1, "failed": None})


def test_a_part_that_kills_every_worker_is_given_up_and_all_others_are_done(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.prepare("parts")
    names = ["a", "b", "bad", "c", "d", "e"]
    deal = partial(engine.deal, "processes", partial(deadly, str(tmp_path)))
    said = {one.key: one for one in Dealing(deal, store, {name: name for name in names}, 2)}
    assert sorted(said) == sorted(names)
    assert said.pop("bad").failed
    assert all(one == Said(key, 1, None) for key, one in said.items())
    assert (tmp_path / "deaths").read_text() == "xxx"


def test_a_worker_with_other_entries_than_the_run_refuses(tmp_path: Path) -> None:
    lines(tmp_path / "in" / "a.jsonl", ["x"])
    Store(str(tmp_path / "out")).prepare("logs", "parts")
    job = Job(str(tmp_path / "in"), str(tmp_path / "out"), (), "of another release")
    [part] = parts(find(job.source), opened(job.source)[0], job.catalogue)
    said = json.loads(job(f"{part.key} {part.payload}"))
    assert "other entries" in said["failed"]
    assert not list((tmp_path / "out" / "logs").iterdir())


def test_results_and_logs_may_both_be_remote(base: KnowledgeBase) -> None:
    system, _ = opened("memory://job-logs")
    system.pipe_file("/job-logs/day=1/a.jsonl", json.dumps({"id": "a", "text": stranger(1), "time": NOON}).encode())
    store = Store("memory://answers")
    store.prepare("logs", "parts")
    job = Job("memory://job-logs", "memory://answers", (), catalogue(base))
    [part] = parts(find(job.source), system, job.catalogue)
    assert json.loads(job(f"{part.key} {part.payload}")) == {"key": part.key, "logs": 1, "faults": 0, "failed": None}
    assert store.names("logs") == {f"{part.key}.parquet"} and store.names("parts") == {f"{part.key}.json"}
    record = json.loads(store.read(f"parts/{part.key}.json") or b"")
    assert record["counts"] == [["2026-11-22T12:00:00+00:00", None, "root", True, 1]]
    assert [cluster["log"] for cluster in record["clusters"]] == ["a"]


def logs_of(source: Path, size: int) -> list[Log | Fault]:
    system, _ = opened(str(source))
    units = [unit for part in parts(find(str(source)), system, "", size) for unit in units_of(part.payload)]

    def none(_: object) -> list[Any]:
        raise AssertionError("nothing here is large")

    return [item for unit in units for item in read(unit, system, none)]


@pytest.mark.parametrize("ending", ["\n", "\n\n", ""])
def test_a_file_cut_into_stretches_gives_every_line_once(tmp_path: Path, ending: str) -> None:
    texts = ["x" * (n * 997 % 9_000) + "\u00e9\n" for n in range(60)]
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"id": str(number), "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    path.write_text("\n".join(rows) + ending, encoding="utf-8")
    for size in (1, 2, 3, 7, 1000):
        found = logs_of(tmp_path, size)
        assert [(item.id, item.text) for item in found if isinstance(item, Log)] == [
            (str(number), text) for number, text in enumerate(texts)
        ]
    assert len(list(parts(find(str(tmp_path)), opened(str(tmp_path))[0], "", 1))) > 50


def test_parquet_is_cut_at_row_groups_and_rows_without_an_id_have_a_place(tmp_path: Path) -> None:
    texts = [os.urandom(3_000).hex() for _ in range(50)]
    times = pa.array([datetime(2026, 11, 18, 4, tzinfo=UTC)] * 50, pa.timestamp("us"))
    pq.write_table(pa.table({"text": texts, "time": times}), tmp_path / "a.parquet", row_group_size=7)
    found = [item for item in logs_of(tmp_path, 10) if isinstance(item, Log)]
    assert [item.text for item in found] == texts
    assert [item.id for item in found] == [f"a.parquet:{number}" for number in range(50)]
    assert {item.time.isoformat() for item in found if item.time} == {"2026-11-18T04:00:00+00:00"}
    assert len(list(parts(find(str(tmp_path)), opened(str(tmp_path))[0], "", 10))) > 1


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (NOON, NOON),
        ("2026-11-22T13:30:00+01:00", NOON),
        ("2026-11-22 12:30:00", NOON),
        (1795350600, NOON),
        (1795350600000, NOON),
        ("last Tuesday", None),
        (True, None),
        (1e300, None),
        ({}, None),
        (None, None),
    ],
)
def test_times_are_read_as_programs_write_them(tmp_path: Path, given: Any, known: str | None) -> None:
    lines(tmp_path / "a.jsonl", ["x"], time=given)
    [log] = logs_of(tmp_path, 10)
    assert isinstance(log, Log)
    assert (log.time.strftime("%Y-%m-%dT%H:%M:%SZ") if log.time else None) == known


def test_many_bad_lines_are_told_in_part_and_counted_in_full(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("no\n" * 250 + json.dumps({"text": "x"}) + "\n")
    found = logs_of(tmp_path, 10_000)
    assert len(found) == 102 and isinstance(found[-2], Log)
    assert isinstance(found[-1], Fault) and "150 more" in found[-1].reason


def incident(message: str, type: str = "a.b.LedgerError", **more: Any) -> Incident:
    return Incident("exception", type, message, 1, **more)


def test_a_fingerprint_holds_what_stays_and_not_what_varies() -> None:
    said = "entry 0x{0:08x} of /mnt/run-{0}/a.bin at step_{0} of job 3f2a{0}aa9c, {0} of {0} MiB\n{0} more"
    one, other = (fingerprint(incident(said.format(number))) for number in (41, 1977))
    assert one.key == other.key and one.message != other.message
    keys = {
        fingerprint(incident("no module named foo")).key,
        fingerprint(incident("no module named bar")).key,
        fingerprint(incident("no module named bar", "OtherError")).key,
    }
    assert len(keys) == 3
    assert fingerprint(incident("x", "torch.cuda.LedgerError")).key == fingerprint(incident("x")).key


def test_an_example_is_short_and_holds_no_secret() -> None:
    frames = tuple(Frame(f"/home/ada/{'deep/' * number}x.py", number, "f") for number in range(60))
    token = "hf_" + "a" * 30
    seen = fingerprint(incident(f"HF_TOKEN={token} " + "word " * 200 + token, frames=frames))
    assert len(seen.example) <= 400 and len(seen.message) <= 300
    assert not any("hf_a" in text or "/home/ada" in text for text in seen)


def test_clusters_are_counted_over_all_parts_with_first_and_last_time(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for day in range(3):
        texts = [stranger(100 * day + number) for number in range(20)] + [stranger(day, "ShardError")] * day
        lines(source / f"{day}.jsonl", [*texts, "nothing"], time=f"2026-11-2{day}T08:15:00Z")
    summary = batch(source, out, size=1)
    clusters = table(out, "unknown")
    assert [(row["exception"], row["logs"]) for row in clusters] == [("LedgerError", 60), ("ShardError", 3)]
    assert [(row["first"].day, row["last"].day) for row in clusters] == [(20, 22), (21, 22)]
    assert (summary.logs, summary.unknown, summary.silent, summary.kinds) == (66, 63, 3, 2)
    assert sum(row["logs"] for row in table(out, "counts")) == 66
    assert Counter(row["fingerprint"] for row in answers(out) if row["fingerprint"]) == {
        row["fingerprint"]: row["logs"] for row in clusters
    }


def test_of_too_many_kinds_the_frequent_ones_are_kept() -> None:
    clusters = Clusters(most=3)
    for number in range(7):
        row = {"fingerprint": str(number), "logs": number + 1, "first": None, "last": None}
        clusters.add([row])
    assert [row["fingerprint"] for row in clusters.rows()] == ["6", "5", "4"]
    assert clusters.dropped == 1 + 2 + 3 + 4


def hostile() -> Iterator[str]:
    name = "<img src=x onerror=alert(1)>"
    yield f'Traceback (most recent call last):\n  File "{name}.py", line 1, in <script>\nValueError: {name} \x1b[31m\u202e{{{{7*7}}}}\n'
    yield "ValueError: Authorization: Bearer abcdefghijklmnopqrstuvwx0123 refused for ada@example.com\n"
    yield 'requests.exceptions.ConnectionError: https://ada:hunter2secret@example.com/x "><script>alert(2)</script>\n'


def test_a_report_escapes_and_redacts_what_came_from_logs(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    rows = [{"id": "<b>id</b>", "text": text, "time": NOON} for text in (*hostile(), sample())]
    (source / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "<i>no JSON</i>\n")
    (source / "<u>.parquet").write_text("<s>")
    done = batch(source, out)
    assert CliRunner().invoke(app, ["batch", "report", str(out)]).exit_code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not any(tag in page for tag in ("<script", "<img", "<b>id", "<i>", "<u>", "<s>", "\x1b", "\u202e"))
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "&lt;b&gt;id&lt;/b&gt;" in page and "{{7*7}}" in page
    assert "<rect" in page and 'http-equiv="Content-Security-Policy"' in page
    assert f"{done.unknown:,}" in page
    kept = "".join(str(answers(out)) + str(table(out, name)) for name in ("unknown", "failures"))
    written = [path.read_bytes().decode("latin-1") for path in out.rglob("*.json")]
    for secret in ("hunter2secret", "abcdefghijklmnopqrstuvwx0123", "ada@example.com"):
        assert secret not in page + kept + "".join(written)


def test_a_report_needs_a_batch_that_has_ended(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no batch has ended"):
        report.draw(str(tmp_path))


def test_the_command_says_what_came_of_it_and_draws_no_bar_into_a_pipe(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    lines(source / "a.jsonl", [stranger(1), sample(), "nothing"])
    arguments = ["batch", str(source), str(out), "--workers", "1", "--engine", "processes"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "logs        3" in done.stdout and "1 kinds" in done.stdout
    assert done.stderr == ""
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and json.loads((out / "summary.json").read_text())["done_before"] == 1


def test_an_output_that_would_mix_things_up_is_refused(tmp_path: Path) -> None:
    source, other = lines(tmp_path / "in" / "a.jsonl", ["x"]).parent, lines(tmp_path / "two" / "a.jsonl", ["x"]).parent
    batch(source, tmp_path / "out")
    with pytest.raises(UsageError, match="holds the results of"):
        batch(other, tmp_path / "out")
    with pytest.raises(UsageError, match="lies in what is read"):
        batch(source, source / "out")
    with pytest.raises(UsageError, match="nothing there"):
        batch(tmp_path / "missing", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no files"):
        batch(tmp_path / "empty", tmp_path / "new")
    with Store(str(tmp_path / "out")).alone(), pytest.raises(UsageError, match="another run"):
        batch(source, tmp_path / "out")
    with pytest.raises(UsageError, match="no cluster"):
        batch(source, tmp_path / "new", address="ray://nowhere:1")
    with pytest.raises(UsageError, match="fsspec"):
        batch("nosuch://bucket/logs", tmp_path / "new")


def test_a_pattern_takes_what_it_names_and_a_file_may_have_its_characters(tmp_path: Path) -> None:
    for name in ("a/1.log", "a/2.txt", "b/3.log", "odd[1].log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked.log").symlink_to(tmp_path / "a" / "1.log")
    os.mkfifo(tmp_path / "pipe")
    assert [unit.name for unit in find(f"{tmp_path}/*/*.log") if "loop" not in unit.name] == ["a/1.log", "b/3.log"]
    assert [unit.name for unit in find(f"{tmp_path}/odd[1].log")] == ["odd[1].log"]
    assert [unit.name for unit in find(str(tmp_path))] == [
        "a/1.log", "a/2.txt", "b/3.log", "linked.log", "odd[1].log",
    ]  # fmt: skip
