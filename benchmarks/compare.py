"""Compare in one run: this matcher, linear scans over the same entries, plain reading, and the bare interpreter.

    python -m benchmarks.compare [--largest 100000] [--log 100] [--peer PYTHON]

Every figure is CPU time, the best of several turns that take turns, so that a busy machine spoils none of them alone.
`--peer` names the interpreter of an environment that has deadends-dev.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import regex

from benchmarks import synthetic
from kb.denoise import denoise
from kb.errors import PatternError
from kb.excerpt import Scanner, excerpt
from kb.index import Index
from kb.literals import fold_case
from kb.matcher import find
from kb.opening import open_base
from kb.parse import parse
from kb.patterns import compile_pattern

PEER = """
import json, sys, time
from generator import lookup
texts = json.load(sys.stdin)
least = []
for text in texts:
    times = []
    for _ in range(3):
        start = time.process_time(); lookup.lookup_all(text); times.append(time.process_time() - start)
    least.append(min(times))
patterns = [canon["error"]["regex"] for canon in lookup._load_canons() if canon.get("error", {}).get("regex")]
print(json.dumps({"seconds": sum(least) / len(least), "patterns": patterns}))
"""


def fastest(turns: int, **jobs: Callable[[], object]) -> dict[str, float]:
    """Least CPU seconds of each job, the jobs taking turns."""
    found = dict.fromkeys(jobs, float("inf"))
    for _ in range(turns):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            found[name] = min(found[name], time.process_time() - start)
    return found


def table(title: str, found: dict[str, float], unit: float, name: str, each: float = 1) -> None:
    least = min(found.values())
    print(f"\n{title}")
    for job, seconds in found.items():
        print(f"  {job:34} {seconds / each / unit:12.1f} {name:4} {seconds / least:9.1f} x")


def warm_match(texts: list[str]) -> None:
    base = open_base()
    base.warm()
    signatures = base.index.signatures()
    with_re = [re.compile(one.regex, re.ASCII) for one in signatures]
    with_regex = [regex.compile(one.regex, regex.ASCII) for one in signatures]
    folded = [" ".join(text.split()) for text in texts]
    cased = [fold_case(text) for text in folded]
    parsed = [parse(denoise(text)) for text in texts]
    for text in texts:
        base.match(text)
    found = fastest(
        5,
        **{
            "candidates": lambda: [base.index.candidates(text) for text in cased],
            "candidates and confirming": lambda: [find(paste, base.index.candidates) for paste in parsed],
            "the whole kb.match()": lambda: [base.match(text) for text in texts],
            "linear scan with re": lambda: [[p.search(text) for p in with_re] for text in folded],
            "linear scan with regex": lambda: [[p.search(text) for p in with_regex] for text in folded],
        },
    )
    table(f"{len(texts)} pastes of 3 KB, {len(signatures)} signatures of the catalogue", found, 1e-6, "µs", len(texts))


def growth(texts: list[str], largest: int) -> None:
    cased = [fold_case(" ".join(text.split())) for text in texts]
    print("\nmade-up signatures that keep the policy; µs for each paste of 3 KB")
    print(f"  {'signatures':>10} {'grams':>8} {'warm':>8} {'confirm':>8} {'linear re':>10}   build s   MB/s of a log")
    count = 100
    while count <= largest:
        made = synthetic.index(synthetic.patterns(count))
        start = time.process_time()
        made.automaton()
        built = time.process_time() - start
        shown = made.signatures()[0].signature.replace(r".{0,80}", "x ").replace(r"\d{1,9}", "7")
        hits = [f"{text} {shown}" for text in cased]
        compile_pattern(made.signatures()[0].regex)
        jobs: dict[str, Callable[[], object]] = {
            "grams": lambda made=made: [made._by_grams(text) for text in cased],
            "warm": lambda made=made: [made.candidates(text) for text in cased],
            "confirm": lambda made=made, hits=hits: [_confirmed(made, text) for text in hits],
        }
        if count <= 10_000:
            linear = [re.compile(pattern, re.ASCII) for pattern in synthetic.patterns(count)]
            jobs["linear"] = lambda linear=linear: [[p.search(text) for p in linear] for text in cased[:2]]
        found = fastest(3, **jobs)
        each = {name: seconds / len(cased) * 1e6 for name, seconds in found.items()}
        slow = f"{found['linear'] / 2 * 1e6:10.0f}" if "linear" in found else f"{'-':>10}"
        speed = _scan_speed(made)
        cells = " ".join(f"{each[name]:8.0f}" for name in ("grams", "warm", "confirm"))
        print(f"  {count:10,} {cells} {slow} {built:9.2f} {speed:15.0f}")
        count *= 10


def _confirmed(made: Index, text: str) -> list[object]:
    return [compile_pattern(one.regex).search(text) for one in made.candidates(text)]


def _scan_speed(made: Index) -> float:
    pieces = list(synthetic.log(10))
    scanner: Scanner = made.scanner()
    found = fastest(2, scan=lambda: excerpt(pieces, scanner))
    return sum(map(len, pieces)) / found["scan"] / 1e6


def logs(megabytes: int, failure: str) -> None:
    base = open_base()
    base.warm()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.log"
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(synthetic.log(megabytes, failure))
        size = file.stat().st_size / 1e6

        def reading() -> None:
            with file.open("rb") as stream:
                while stream.read(262_144):
                    pass

        def matching() -> None:
            with file.open(encoding="utf-8") as stream:
                answer = base.match(base.excerpt(iter(lambda: stream.read(262_144), "")))
            assert answer.matches

        found = fastest(2, reading=reading, matching=matching)
    print(f"\na log of {size:.0f} MB with one failure in its middle")
    for job, seconds in found.items():
        print(f"  {job:34} {size / seconds:12.0f} MB/s {seconds / found['reading']:7.1f} x")


def whole_pipeline(failure: str) -> None:
    base = open_base()
    print("\nthe whole pipeline over growing inputs, ms; twice the input should take twice the time at most")
    kinds: dict[str, Callable[[int], str]] = {
        "healthy log": lambda size: "".join(synthetic.log(size / 1e6)),
        "repeated traceback": lambda size: (failure + "\n") * (size // len(failure)),
        "one line": lambda size: "a long line without end, " * (size // 25),
        "chained exceptions": lambda size: (
            "ValueError: x\n\nDuring handling of the above exception, another exception occurred:\n\n" * (size // 90)
        ),
        "carets and brackets": lambda size: "[" * (size // 4) + "^~ " * (size // 8) + "\n" * (size // 4),
        "NULs": lambda size: "\0" * size,
        "escapes": lambda size: "\x1b[" * (size // 2),
    }
    sizes = [100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000]
    print(f"  {'':24}" + "".join(f"{size // 1000:>8} K" for size in sizes))
    for kind, make in kinds.items():
        cells = []
        for size in sizes:
            text = make(size)
            cells.append(fastest(1, match=lambda text=text: base.match(text))["match"] * 1e3)
        print(f"  {kind:24}" + "".join(f"{cell:10.0f}" for cell in cells))


def cold() -> None:
    paste = synthetic.SAMPLES / "pytorch/linear-dtype-mismatch/samples/recreated-rank1-lora-eval.txt"
    floor = "import dataclasses, json, pathlib, sqlite3, re2"
    commands = {
        "python -c pass": ["-c", "pass"],
        "imports that cannot go": ["-c", floor],
        "kb match FILE": ["-m", "kb", "match", str(paste)],
        "kb match --format json FILE": ["-m", "kb", "match", "--format", "json", str(paste)],
    }
    found = dict.fromkeys(commands, float("inf"))
    with tempfile.TemporaryDirectory() as folder:  # where bytecode is kept, as an installation keeps it
        surroundings = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(10):
            for name, arguments in commands.items():
                found[name] = min(found[name], _process_seconds([sys.executable, *arguments], surroundings))
    table("one process, CPU", found, 1e-3, "ms")


def _process_seconds(command: list[str], surroundings: dict[str, str]) -> float:
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(command[0], command, surroundings, file_actions=nowhere)
    _, _, used = os.wait4(pid, 0)
    return used.ru_utime + used.ru_stime


def peer(interpreter: str, texts: list[str]) -> None:
    base = open_base()
    base.warm()
    asked = json.dumps(texts)
    done = subprocess.run([interpreter, "-c", PEER], input=asked, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    theirs = synthetic.index([regex for regex in told["patterns"] if _linear(regex)])
    theirs.automaton()
    for text in texts:
        base.match(text)
    pastes = [parse(denoise(text)) for text in texts]
    found = fastest(
        5,
        **{
            "kb.match(), our entries": lambda: [base.match(text) for text in texts],
            "our finding, the peer's patterns": lambda: [find(one, theirs.candidates) for one in pastes],
        },
    )
    each = {name: seconds / len(texts) for name, seconds in found.items()}
    table(
        f"a paste of 3 KB; the peer has {len(told['patterns'])} patterns",
        each | {"the peer": told["seconds"]},
        1e-6,
        "µs",
    )


def _linear(regex: str) -> bool:
    try:
        compile_pattern(regex)
    except PatternError:
        return False
    return True


def main() -> None:
    reading = argparse.ArgumentParser(description="Compare the matcher with other ways, side by side.")
    reading.add_argument("--largest", type=int, default=10_000, help="most made-up signatures")
    reading.add_argument("--log", type=int, default=100, help="MB of the log")
    reading.add_argument("--peer", help="interpreter of an environment that has deadends-dev")
    asked = reading.parse_args()
    texts = synthetic.pastes()
    warm_match(texts)
    growth(texts[:10], asked.largest)
    logs(asked.log, texts[0])
    whole_pipeline(texts[0])
    cold()
    if asked.peer:
        peer(asked.peer, texts)


if __name__ == "__main__":
    main()
