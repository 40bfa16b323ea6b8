"""`python -m benchmarks.batch`: `kb batch` over generated logs, against a plain loop in one process.

    python -m benchmarks.batch [--logs 20000] [--engines daft,processes] [--workers 1,2] [--kill] [--folder DIR]

Prints what each way costs: logs a second by the clock and for each second of CPU, which a busy machine does not
spoil, and the memory of driver and workers at a tenth of the way and at the end. Counts are compared with the plain
loop's, and with what is right by construction. `--kill` ends a worker in the middle; a corrupt file is always there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.jobs import UNKNOWN, many
from kb.batch.run import Options, Progress, Summary, run
from kb.opening import open_base

FILES = 8


@dataclass
class Truth:
    """What is right by construction."""

    logs: int = 0
    entries: Counter[str] = field(default_factory=Counter)
    kinds: Counter[int] = field(default_factory=Counter)


@dataclass
class Watch:
    """Looks at memory while a run goes on, and kills a worker if asked to."""

    kill: bool
    killed: bool = False
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)
    """MiB of the driver and of the largest worker, by how far the run was."""

    def __call__(self, progress: Progress) -> None:
        far = progress.done / progress.parts
        children = [pid for pid in descendants(os.getpid()) if resident(pid) > 30]
        if far >= 0.1 and children:
            now = (resident(os.getpid()), max(map(resident, children)))
            self.memory.setdefault("at 10 %", now)
            self.memory["at the end"] = now
        if self.kill and not self.killed and far >= 0.4 and children:
            os.kill(children[-1], signal.SIGKILL)
            self.killed = True


def resident(pid: int) -> float:
    """MiB of memory a process holds, 0 if it has gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS:")), 0.0)


def descendants(pid: int) -> list[int]:
    """Processes below a process that are alive."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        except OSError:
            continue
    return [one for child in found for one in (child, *descendants(child))]


def generate(folder: Path, count: int) -> Truth:
    """Write JSON Lines, some packed, and a file that is cut in the middle."""
    truth = Truth()
    each = -(-count // FILES)
    for number in range(FILES):
        wanted = min(each, count - number * each)
        path = folder / (f"{number}.jsonl.gz" if number == 0 else f"{number}.jsonl")
        with gzip.open(path, "wt", 3, encoding="utf-8") if number == 0 else path.open("w", encoding="utf-8") as stream:
            for log in many(max(0, wanted), number * each):
                stream.write(json.dumps(log.row()) + "\n")
                truth.logs += 1
                truth.entries[log.entry or ""] += 1
                if log.kind is not None:
                    truth.kinds[log.kind] += 1
    (folder / "corrupt.parquet").write_bytes(b"PAR1" + bytes(range(256)) * 16)
    return truth


def texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl*")):
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)["text"]


def loop(folder: Path) -> tuple[Counter[str], float, float]:
    """Read and match one log after the other in this process: answers by entry, seconds by the clock and of CPU."""
    base = open_base()
    base.warm()
    found: Counter[str] = Counter()
    wall, cpu = time.monotonic(), time.process_time()
    for text in texts(folder):
        answer = base.match(text)
        found[answer.matches[0].entry_id if answer.matches else ""] += 1
    return found, time.monotonic() - wall, time.process_time() - cpu


def plain(folder: Path) -> Counter[str]:
    """The plain loop alone, and one in each of two processes: what a second worker can bring on this machine."""
    found, wall, cpu = loop(folder)
    count = found.total()
    print(f"{'plain loop':<24} {count / wall:>8.0f} {wall:>8.1f} {count / cpu:>12.0f} {cpu:>8.1f}", flush=True)
    with ProcessPoolExecutor(2) as both:
        _, walls, cpus = zip(*both.map(loop, [folder, folder]), strict=True)
    wall, cpu = max(walls), sum(cpus)
    print(f"{'two plain loops at once':<24} {2 * count / wall:>8.0f} {wall:>8.1f} {2 * count / cpu:>12.0f} {cpu:>8.1f}")
    return found


def cpu_seconds() -> float:
    """Of this process and of all below it that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(folder: Path, engine: str, workers: int, size: int, *, kill: bool) -> tuple[Summary, Counter[str]]:
    """Run a batch and print what it took; answers by entry."""
    watch = Watch(kill)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        wall, cpu = time.monotonic(), cpu_seconds()
        summary = run(Options(str(folder), str(out), workers=workers, engine=engine, size=size), watch)  # type: ignore[arg-type]
        wall, cpu = time.monotonic() - wall, cpu_seconds() - cpu
        found: Counter[str] = Counter()
        for path in (out / "logs").glob("*.parquet"):
            entries: dict[str, str] = {}
            for row in pq.read_table(path, columns=["log", "entry"]).to_pylist():
                entries[row["log"]] = entries.get(row["log"]) or row["entry"] or ""
            found.update(entries.values())
    name = f"{engine}, {workers} worker{'s' if workers > 1 else ''}"
    memory = "   ".join(f"{when}: {driver:.0f} + {worker:.0f} MiB" for when, (driver, worker) in watch.memory.items())
    count = summary.logs
    print(f"{name:<24} {count / wall:>8.0f} {wall:>8.1f} {count / cpu:>12.0f} {cpu:>8.1f}   {memory}", flush=True)
    if kill:
        print(f"{'':<24} a worker was killed: {watch.killed}; parts not done: {len(summary.lost)}")
    return summary, found


def main() -> None:
    """Generate, run everything, compare. Exit code 1 if a count is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=20_000)
    parser.add_argument("--engines", default="daft,processes" if find_spec("daft") else "processes")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--part-size", type=int, default=1_000)
    parser.add_argument("--kill", action="store_true", help="end a worker of each run in the middle")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        truth = generate(folder, options.logs)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(f"{truth.logs:,} logs in {FILES} files of {size:.0f} MB, one file corrupt\n")
        print(f"{'':<24} {'logs/s':>8} {'s':>8} {'logs/CPU s':>12} {'CPU s':>8}   memory: driver + largest worker")
        expected = plain(folder)
        wrong = check("plain loop", truth, expected, None)
        for engine in options.engines.split(","):
            for workers in map(int, options.workers.split(",")):
                summary, found = measured(folder, engine, workers, options.part_size, kill=options.kill)
                wrong += check(f"{engine}, {workers}", truth, found, summary)
    print("\nall counts are right" if not wrong else f"\n{wrong} counts are wrong")
    raise SystemExit(1 if wrong else 0)


def check(name: str, truth: Truth, found: Counter[str], summary: Summary | None) -> int:
    """Compare with what is right by construction; returns how many counts are not."""
    wrong = [
        f"{entry or 'nothing'}: {found[entry]}, not {number}"
        for entry, number in truth.entries.items()
        if found[entry] != number
    ]
    if summary is not None:
        if (summary.logs, summary.faults, len(summary.lost)) != (truth.logs, 1, 0):
            wrong.append(f"logs {summary.logs}, faults {summary.faults}, lost {len(summary.lost)}")
        if summary.unknown < truth.kinds.total() or summary.kinds < len(UNKNOWN):
            wrong.append(f"unknown {summary.unknown} of {summary.kinds} kinds")
    for line in wrong:
        print(f"  {name}: {line}")
    return len(wrong)


if __name__ == "__main__":
    main()
