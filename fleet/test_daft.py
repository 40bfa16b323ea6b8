"""Daft does the same as plain processes, file for file, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.jobs import many
from kb.batch import engine
from kb.batch.run import Options, Progress, run

COUNT = 300


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for number in range(6):
        rows = "".join(json.dumps(log.row()) + "\n" for log in many(COUNT // 6, number * COUNT // 6))
        (folder / f"{number}.jsonl").write_text(rows, encoding="utf-8")
    (folder / "bad.parquet").write_bytes(b"PAR1 no more than that")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    out = tmp_path_factory.mktemp("expected") / "out"
    run(Options(str(source), str(out), workers=1, engine="processes", size=50))
    return results(out)


def results(out: Path) -> dict[str, pa.Table]:
    files = [*(out / "logs").glob("*.parquet"), *out.glob("*.parquet")]
    return {path.name: pq.read_table(path) for path in files}


def test_it_is_taken_where_it_is_installed() -> None:
    assert engine.chosen("auto", None) == engine.chosen("auto", "ray://somewhere:10001") == "daft"


@pytest.mark.parametrize("workers", [1, 2])
def test_daft_writes_what_processes_write(
    tmp_path: Path, source: Path, expected: dict[str, pa.Table], workers: int
) -> None:
    summary = run(Options(str(source), str(tmp_path / "out"), workers=workers, engine="daft", size=50))
    assert (summary.logs, summary.faults, summary.lost) == (COUNT, 1, ())
    assert results(tmp_path / "out") == expected


def test_a_killed_worker_costs_nothing(tmp_path: Path, source: Path, expected: dict[str, pa.Table]) -> None:
    killed: list[int] = []

    def watch(progress: Progress) -> None:
        if progress.done >= 1 and not killed:
            children = psutil.Process().children()
            victim = next(child for child in children if any("udf_worker" in word for word in child.cmdline()))
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    summary = run(Options(str(source), str(tmp_path / "out"), workers=2, engine="daft", size=10), watch)
    assert killed
    assert (summary.logs, summary.lost) == (COUNT, ())
    rows = [row for name, table in results(tmp_path / "out").items() if len(name) > 20 for row in table.to_pylist()]
    wanted = [row for name, table in expected.items() if len(name) > 20 for row in table.to_pylist()]
    assert sorted(map(str, rows)) == sorted(map(str, wanted))
