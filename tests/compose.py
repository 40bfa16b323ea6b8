"""Logs with several failures, composed from captured tracebacks: the same logs from the same seed.

A log has one failure that began it (an entry, or an exception that no entry knows) and what came of it on other
ranks, in launchers and in wrappers, in an order and with noise as launchers write them. The parts are samples below
entries/ and the captured logs below tests/data/logs/.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.conftest import PROJECT

LOGS = PROJECT / "tests" / "data" / "logs"
SEED = 20261122
HEADER = "Traceback (most recent call last):"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*: \S")

TIMEOUT = "distributed/nccl-watchdog-timeout"
PEERS = tuple(
    f"distributed/{name}"
    for name in (
        "nccl-remote-error", "c10d-store-socket-timeout", "nccl-unhandled-system-error", "c10d-client-socket-timeout",
    )
)  # fmt: skip
"""What ranks raise that lost another one."""
NCCL_CUDA = "distributed/nccl-unhandled-cuda-error"
CUBLAS = "cuda/cublas-execution-failed"
EXIT_1, SIGABRT, SIGKILL = (f"distributed/elastic-{name}" for name in ("exitcode-1", "sigabrt-6", "sigkill-9"))
ENGINE = "vllm/engine-core-init-failed"

ROOTS = (
    "cuda/out-of-memory",
    "cuda/illegal-memory-access",
    "cuda/uncorrectable-ecc",
    "pytorch/linear-dtype-mismatch",
    "pytorch/tensors-on-different-devices",
    "pytorch/embedding-index-range",
    "pytorch/backward-twice",
    "pytorch/autograd-inplace-modified",
    "pytorch/multinomial-inf-nan",
    "pytorch/expected-sequence-length",
    "pytorch/no-grad-fn-element0",
    "pytorch/dataloader-worker-bus-error-shm",
    "attention/flash-attn-fp16-bf16-only",
    "huggingface/transformers-remove-unused-columns",
    "distributed/ddp-unused-parameters",
    "distributed/fsdp-uniform-dtype",
)
"""What a single rank dies of."""


@dataclass(frozen=True)
class Log:
    """One composed log and the truth about it."""

    id: str
    text: str
    entry: str | None
    """What began it; None where no entry knows that."""
    roles: dict[str, str] = field(default_factory=dict)
    noise: tuple[str, ...] = ()
    incident: str | None = None
    """Type of the exception that began it where no entry knows it."""

    def row(self) -> dict[str, Any]:
        """As a row of a corpus."""
        return {
            "id": self.id, "text": self.text, "entry": self.entry, "roles": self.roles, "noise": list(self.noise),
            "incident": self.incident,
        }  # fmt: skip


# --- parts ----------------------------------------------------------------------------------------------------


@cache
def tracebacks(entry_id: str) -> tuple[tuple[str, ...], ...]:
    """Bare tracebacks among an entry's samples: one header, at the margin, and nothing of a launcher."""
    found = []
    for path in sorted((PROJECT / "entries" / entry_id / "samples").glob("*.txt")):
        if path.name.startswith("not-"):
            continue
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
        if lines.count(HEADER) != 1 or any("ChildFailedError" in line or "\x1b" in line for line in lines):
            continue
        top = lines.index(HEADER)
        if any("Assertion" in line for line in lines[:top]):
            continue  # the error is what a kernel printed, and the traceback only the call that learned of it
        below = lines[top:]
        if any(EXCEPTION.match(line) for line in below[1:]):
            found.append(tuple(below))
    if not found:
        raise LookupError(f"{entry_id} has no sample that is a bare traceback")
    return tuple(found)


@cache
def captured(name: str) -> tuple[str, ...]:
    """Lines of a captured log."""
    return tuple((LOGS / name).read_text(encoding="utf-8").rstrip().split("\n"))


def of_rank(name: str, rank: int) -> tuple[str, ...]:
    """One rank's lines of a captured log, without its prefix."""
    mark = f"[rank{rank}]: "
    return tuple(line.removeprefix(mark) for line in captured(name) if line.startswith(mark))


def strangers() -> list[tuple[str, tuple[str, ...]]]:
    """Exceptions that no entry knows: type and traceback."""
    context = captured("chain-while-handling.txt")
    loader = captured("loader-worker-key.txt")
    return [
        ("ShardError", of_rank("gloo-peer-lost.txt", 1)),
        ("FileNotFoundError", context[len(context) - context[::-1].index(HEADER) - 1 :]),
        ("KeyError", (HEADER, *loader[loader.index("Original " + HEADER) + 1 :])),
    ]


def gloo_peer(port: int) -> tuple[str, ...]:
    """What gloo says on a rank whose peer is gone."""
    return tuple(line.replace("3975", str(port)) for line in of_rank("gloo-peer-lost.txt", 0))


def watchdog(rank: int, rng: random.Random) -> tuple[str, ...]:
    """Two lines of the NCCL watchdog, as torch 2.7 writes them behind its rank prefix."""
    clock = f"E612 07:55:4{rng.randint(0, 9)}.{rng.randint(0, 999_999_999):09d}"
    late = 600_000 + rng.randint(1, 99)
    return (
        f"[{clock} ProcessGroupNCCL.cpp:632] [Rank {rank}] Watchdog caught collective operation timeout: "
        f"WorkNCCL(SeqNum=9114, OpType=ALLREDUCE, NumelIn=218112000, NumelOut=54528000, Timeout(ms)=600000) "
        f"ran for {late} milliseconds before timing out.",
        f"[{clock} ProcessGroupNCCL.cpp:2268] [PG ID 0 PG GUID 0(default_pg) Rank {rank}]  failure detected by "
        "watchdog at work sequence id: 9114 PG status: last enqueued work: 9114, last completed work: 9113",
    )


def torchrun(failed: int, others: Sequence[int], code: int = 1, other_code: int = -15) -> list[str]:
    """torchrun's last words, as captured, with `failed` as the first observed failure."""
    lines = captured("gloo-peer-lost.txt")
    start = next(i for i, line in enumerate(lines) if "failed (exitcode: 1)" in line)
    end = lines.index("Failures:")
    signals = {-15: "SIGTERM", -6: "SIGABRT", -9: "SIGKILL"}

    def block(number: int, rank: int, code: int) -> list[str]:
        name = f"  ({signals[code]})" if code in signals else " "
        trace = (
            f"Signal {-code} ({signals[code]}) received by PID {5000 + rank}"
            if code in signals
            else "To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html"
        )
        return [
            f"[{number}]:", "  time      : 2026-11-22_17:29:35", "  host      : localhost",
            f"  rank      : {rank} (local_rank: {rank % 8})", f"  exitcode  : {code} (pid: {5000 + rank}){name}",
            "  error_file: <N/A>", f"  traceback : {trace}",
        ]  # fmt: skip

    head = [
        line.replace("exitcode: 1)", f"exitcode: {code})")
        .replace("local_rank: 1 (pid: 5514)", f"local_rank: {failed % 8} (pid: {5000 + failed})")
        for line in lines[start : end + 1]
    ]  # fmt: skip
    listed = [line for number, rank in enumerate(others, 1) for line in block(number, rank, other_code)]
    rule = "-" * 60
    return [*head, *listed, rule, "Root Cause (first observed failure):", *block(0, failed, code), "=" * 60]


# --- putting together -----------------------------------------------------------------------------------------

PREFIXES: dict[str, Callable[[int], str]] = {
    "rank": lambda rank: f"[rank{rank}]: ",
    "default": lambda rank: f"[default{rank}]:",
    "srun": lambda rank: f"{rank}: ",
    "mpirun": lambda rank: f"[1,{rank}]<stderr>:",
    "none": lambda _rank: "",
    "ray": lambda rank: f"(RayTrainWorker pid={4000 + rank}, ip=10.0.0.{rank // 8 + 1}) ",
}


def prefixed(lines: Sequence[str], rank: int, style: str) -> list[str]:
    """Lines as a launcher of this style marks them."""
    mark = PREFIXES[style](rank)
    if style == "rank":  # torch writes its own log lines without a blank
        return [(mark.rstrip() if line.startswith("[E") else mark) + line for line in lines]
    return [mark + line for line in lines]


def interleaved(streams: Sequence[Sequence[str]], rng: random.Random) -> list[str]:
    """Streams merged line by line at random, each in its own order."""
    waiting = [list(stream) for stream in streams if stream]
    merged = []
    while waiting:
        stream = rng.choice(waiting)
        merged.append(stream.pop(0))
        waiting = [rest for rest in waiting if rest]
    return merged


def ordered(root: Sequence[str], others: Sequence[Sequence[str]], order: str, rng: random.Random) -> list[str]:
    """The root's lines before the others, after them, or among them."""
    rest = list(others)
    rng.shuffle(rest)
    if order == "among":
        return interleaved([root, *rest], rng)
    blocks = [root, *rest] if order == "before" else [*rest, root]
    return [line for block in blocks for line in block]


def noisy(lines: Sequence[str], kind: str, rng: random.Random) -> str:
    """The whole log as something that collects logs would keep it."""
    if kind == "ci timestamps":
        lines = [
            f"2026-11-22T13:{n // 600 % 60:02d}:{n // 10 % 60:02d}.{n % 10}390001Z {s}" for n, s in enumerate(lines)
        ]
    elif kind == "quoted":
        lines = [f"> {line}" for line in lines]
    elif kind == "compose":
        lines = [f"trainer-1  | {line}" for line in lines]
    elif kind == "kubernetes":
        lines = [f"[pod/sft-worker-0/pytorch] {line}" for line in lines]
    elif kind == "ansi":
        lines = [f"\x1b[31m{line}\x1b[0m" if rng.random() < 0.3 else line for line in lines]
    elif kind == "healthy lines":
        mixed = []
        for step, line in enumerate(lines):
            if step % 40 == 0:
                mixed.append(f"{{'loss': 1.{rng.randint(1000, 9999)}, 'learning_rate': 1.94e-05, 'epoch': 0.{step}}}")
            mixed.append(line)
        lines = mixed
    return "\n".join(lines) + "\n"


NOISES = ("none", "none", "ci timestamps", "quoted", "ansi", "healthy lines", "kubernetes")


@dataclass(frozen=True)
class Start:
    """What began a log."""

    entry: str | None
    lines: tuple[str, ...]
    type: str | None = None


def start(rng: random.Random, *, known: bool = True) -> Start:
    """A failure of one rank, of an entry or of none."""
    if known:
        entry_id = rng.choice(ROOTS)
        return Start(entry_id, rng.choice(tracebacks(entry_id)))
    name, lines = rng.choice(strangers())
    return Start(None, lines, name)


def log(name: str, begun: Start, lines: Sequence[str], roles: dict[str, str], rng: random.Random, noise: str) -> Log:
    """A log with its labels."""
    kinds = () if noise == "none" else (noise,)
    others = {entry_id: role for entry_id, role in roles.items() if entry_id != begun.entry}
    return Log(name, noisy(lines, noise, rng), begun.entry, others, (*kinds, name.partition("-")[0]), begun.type)


# --- kinds of logs --------------------------------------------------------------------------------------------


def timeouts(name: str, rng: random.Random, *, known: bool = True) -> Log:
    """One rank fails, the watchdogs of all others time out, and torchrun sums up."""
    size = rng.choice((2, 4, 8, 8, 16, 32, 100))
    failing = rng.randrange(size)
    style = rng.choice(("rank", "rank", "default", "srun", "ray", "none") if known else ("rank", "srun", "ray"))
    begun = start(rng, known=known)
    others = [prefixed(watchdog(rank, rng), rank, style) for rank in range(size) if rank != failing]
    order = rng.choice(("before", "after") if style == "none" else ("before", "after", "among"))
    lines = ordered(prefixed(begun.lines, failing, style), others, order, rng)
    roles = {TIMEOUT: "consequence"}
    if style == "rank" and rng.random() < 0.6:
        lines += torchrun(failing, [r for r in range(min(size, 8)) if r != failing], other_code=-6)
        roles |= {EXIT_1: "wrapper", SIGABRT: "wrapper"}
    return log(name, begun, lines, roles, rng, rng.choice(NOISES))


def unknown_timeouts(name: str, rng: random.Random) -> Log:
    """As `timeouts`, begun by what no entry knows."""
    return timeouts(name, rng, known=False)


def lost_peers(name: str, rng: random.Random, *, known: bool = True) -> Log:
    """One rank fails, gloo tells the others that the connection is closed."""
    size = rng.choice((2, 3, 4, 8))
    failing = rng.randrange(size)
    begun = start(rng, known=known)
    style = rng.choice(("rank", "rank", "mpirun", "srun"))
    others = [prefixed(gloo_peer(3900 + rank), rank, style) for rank in range(size) if rank != failing]
    lines = ordered(prefixed(begun.lines, failing, style), others, rng.choice(("before", "after", "among")), rng)
    roles = {"distributed/gloo-connection-closed": "consequence"}
    if style == "rank":
        lines += torchrun(failing, [r for r in range(size) if r != failing])
        roles |= {EXIT_1: "wrapper"}
    return log(name, begun, lines, roles, rng, rng.choice(NOISES))


def unknown_peers(name: str, rng: random.Random) -> Log:
    """As `lost_peers`, begun by what no entry knows."""
    return lost_peers(name, rng, known=False)


def remote_errors(name: str, rng: random.Random) -> Log:
    """One rank fails, NCCL or the store tells the others in tracebacks of their own."""
    size = rng.choice((2, 4, 8))
    failing = rng.randrange(size)
    begun = start(rng, known=rng.random() < 0.7)
    other = rng.choice(PEERS)
    peers = [
        prefixed(rng.choice(tracebacks(other)), rank, "rank") for rank in range(size) if rank != failing
    ]  # fmt: skip
    lines = ordered(prefixed(begun.lines, failing, "rank"), peers, rng.choice(("before", "after", "among")), rng)
    return log(name, begun, lines, {other: "consequence"}, rng, rng.choice(NOISES))


def same_everywhere(name: str, rng: random.Random) -> Log:
    """All ranks fail alike and torchrun sums up."""
    size = rng.choice((2, 4, 8, 64))
    begun = start(rng, known=rng.random() < 0.8)
    streams = [prefixed(begun.lines, rank, "rank") for rank in range(size)]
    lines = interleaved(streams, rng) if rng.random() < 0.5 else [line for stream in streams for line in stream]
    lines += torchrun(rng.randrange(size), range(1, min(size, 8)))
    return log(name, begun, lines, {EXIT_1: "wrapper"}, rng, rng.choice(NOISES))


def launcher_first(name: str, rng: random.Random) -> Log:
    """One process fails, unmarked, and the launcher's summary stands before or after it."""
    begun = start(rng, known=rng.random() < 0.6)
    summary = torchrun(rng.randrange(4), ())
    lines = [*begun.lines, *summary] if rng.random() < 0.5 else [*summary, "", *begun.lines]
    return log(name, begun, lines, {EXIT_1: "wrapper"}, rng, rng.choice(NOISES))


def assertions(name: str, rng: random.Random) -> Log:
    """A kernel asserts; host calls fail later, though their lines may come first."""
    entry_id = rng.choice(("cuda/device-assert-index-out-of-bounds", "cuda/device-assert-nll-class-range"))
    folder = PROJECT / "entries" / entry_id / "samples"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("recreated-*.txt"))]
    said = [line for line in rng.choice(texts).split("\n") if line.startswith((".", "/")) and "Assertion `" in line]
    if not said:
        said = [line for line in texts[0].split("\n") if "Assertion `" in line]
    said = [line[line.index("/") - 2 if line.startswith("..") else line.index("/") :] for line in said][:3]
    roles: dict[str, str] = {}
    triggered = [
        HEADER, '  File "/home/ml/train/step.py", line 40, in step', "    total += loss.item()",
        "torch.AcceleratorError: CUDA error: device-side assert triggered",
        "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.",
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    ]  # fmt: skip
    host: list[list[str]] = []
    for choice in rng.sample(("assert", CUBLAS, NCCL_CUDA), k=rng.randint(1, 3)):
        if choice == "assert":
            host.append(triggered)
        else:
            host.append(list(rng.choice([t for t in tracebacks(choice) if not any("cupy" in line for line in t)])))
            roles[choice] = "consequence"
    host_lines = [line for block in host for line in block]
    lines = [*host_lines, *said] if rng.random() < 0.5 else [*said, *host_lines]  # standard output may come last
    begun = Start(entry_id, tuple(lines))
    if rng.random() < 0.5:
        rank = rng.randrange(8)
        marked = prefixed(lines, rank, "rank")
        others = [prefixed(watchdog(r, rng), r, "rank") for r in range(8) if r != rank]
        return log(
            name,
            begun,
            ordered(marked, others, rng.choice(("before", "after", "among")), rng),
            {**roles, TIMEOUT: "consequence"},
            rng,
            rng.choice(NOISES),
        )
    return log(name, begun, lines, roles, rng, rng.choice(NOISES))


CAUSE = ("", "The above exception was the direct cause of the following exception:", "")
CONTEXT = ("", "During handling of the above exception, another exception occurred:", "")


def chains(name: str, rng: random.Random) -> Log:
    """Chained exceptions: a probe for a package at the head, or a known error carried by another."""
    begun = start(rng)
    missing = captured("chain-missing-package.txt")
    stopped = captured("chain-direct-cause.txt")
    written = captured("chain-while-handling.txt")
    head = list(missing[: missing.index(CONTEXT[1]) + 2])
    tail = list(stopped[stopped.index(CAUSE[1]) - 1 :])
    crash = list(written[written.index(CONTEXT[1]) - 1 :])
    kind = rng.choice(("probe", "carried", "probe and carried", "crashed while reporting"))
    lines = [*(head if "probe" in kind else ()), *begun.lines]
    lines += tail if "carried" in kind else crash if "reporting" in kind else []
    roles: dict[str, str] = {}
    if rng.random() < 0.4:
        rank = rng.randrange(4)
        lines = prefixed(lines, rank, "rank") + torchrun(rank, ())
        roles = {EXIT_1: "wrapper"}
    return log(name, begun, lines, roles, rng, rng.choice(NOISES))


def compiled(name: str, rng: random.Random) -> Log:
    """A compiler backend fails for a reason of its own, and the tracer wraps it."""
    wrapper = "compile/dynamo-backend-compiler-failed"
    entry_id = rng.choice(("compile/triton-not-found", "compile/triton-ptxas-unknown-gpu-name"))
    begun = Start(entry_id, rng.choice(tracebacks(entry_id)))
    last = next(line for line in reversed(begun.lines) if line.strip() and "Set TORCH" not in line)
    carried = [
        HEADER, '  File "/home/ml/train/step.py", line 12, in <module>', "    step(batch)",
        "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:", last.split(".")[-1] if ":" not in last else last,
    ]  # fmt: skip
    lines = [*begun.lines, *CAUSE, *carried]
    return log(name, begun, lines, {wrapper: "wrapper"}, rng, rng.choice(NOISES))


def loader_workers(name: str, rng: random.Random) -> Log:
    """A DataLoader worker fails and the parent raises its traceback again."""
    known = rng.random() < 0.6
    begun = start(rng, known=known)
    if not known or begun.entry is None:
        begun = Start(None, strangers()[2][1], "KeyError")
    carrier = captured("loader-worker-key.txt")
    at = carrier.index("Original " + HEADER)
    kind = next(
        (line.partition(":")[0].rpartition(".")[2] for line in begun.lines[1:] if line[:1].isalpha() and ":" in line),
        "RuntimeError",
    )
    outer = [*carrier[: at - 1], f"{kind}: Caught {kind} in DataLoader worker process {rng.randrange(8)}."]
    lines = [*outer, "Original " + begun.lines[0], *begun.lines[1:]]
    roles: dict[str, str] = {}
    if rng.random() < 0.5:
        rank = rng.randrange(8)
        others = [prefixed(watchdog(r, rng), r, "rank") for r in range(8) if r != rank]
        lines = ordered(prefixed(lines, rank, "rank"), others, rng.choice(("before", "after", "among")), rng)
        roles = {TIMEOUT: "consequence"}
    return log(name, begun, lines, roles, rng, rng.choice(NOISES))


def engines(name: str, rng: random.Random) -> Log:
    """An engine process of a server fails, and the server says so."""
    entry_id = rng.choice((*ROOTS[:2], "vllm/bf16-compute-capability", "vllm/no-memory-for-cache-blocks", ""))
    begun = Start(entry_id, rng.choice(tracebacks(entry_id))) if entry_id else start(rng, known=False)
    mark = rng.choice(("EngineCore_DP0 pid=4402", "EngineCore pid=812", "Worker_TP3 pid=9021"))
    stamp = f"({mark}) ERROR 05-14 21:40:33 [core.py:790] "
    engine = [stamp + "EngineCore failed to start.", *(stamp + line for line in begun.lines)]
    server = [
        f"(APIServer pid=4311) {line}"
        for line in (
            HEADER,
            '  File "/opt/vllm/lib/python3.12/site-packages/vllm/v1/engine/utils.py", line 838, in wait_for_engine_startup',
            "    raise RuntimeError(",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        )
    ]
    lines = ordered(engine, [server], rng.choice(("before", "after", "among")), rng)
    return log(name, begun, lines, {ENGINE: "wrapper"}, rng, rng.choice(("none", "compose", "quoted", "kubernetes")))


def hardware(name: str, rng: random.Random) -> Log:
    """The kernel's log of a lost GPU among what programs said of it."""
    entry_id = "cuda/gpu-fallen-off-the-bus"
    begun = Start(
        entry_id,
        (
            "[88123.104520] NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            "[88123.104523] NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.",
        ),
    )
    rank = rng.randrange(8)
    host = prefixed(rng.choice(tracebacks("cuda/illegal-memory-access")), rank, "rank")
    others = [prefixed(watchdog(r, rng), r, "rank") for r in range(8) if r != rank]
    lines = ordered(begun.lines, [host, *others], rng.choice(("before", "after")), rng)
    roles = {"cuda/illegal-memory-access": "consequence", TIMEOUT: "consequence"}
    return log(name, begun, lines, roles, rng, rng.choice(("none", "quoted")))


def clocks(name: str, rng: random.Random) -> Log:
    """Logs of several ranks one after the other, each line with its logger's clock: the earliest failure began it."""
    first, second = rng.sample([r for r in ROOTS if r.startswith(("pytorch/", "attention/", "huggingface/"))], k=2)
    begun = Start(first, rng.choice(tracebacks(first)))
    later = rng.choice(tracebacks(second))
    early, late = rng.sample(range(8), k=2)
    minute = rng.randrange(10, 50)
    blocks = {
        early: [f"2026-11-22 13:{minute:02d}:07,{n:03d} ERROR {line}" for n, line in enumerate(begun.lines)],
        late: [f"2026-11-22 13:{minute:02d}:41,{n:03d} ERROR {line}" for n, line in enumerate(later)],
    }
    lines = [line for rank in sorted(blocks) for line in prefixed(blocks[rank], rank, "rank")]
    return log(name, begun, lines, {second: "consequence"}, rng, "none")


def summaries(name: str, rng: random.Random) -> Log:
    """Two ranks fail of different errors; only the launcher's summary knows which was first."""
    first, second = rng.sample([r for r in ROOTS if r.startswith(("pytorch/", "attention/", "huggingface/"))], k=2)
    begun = Start(first, rng.choice(tracebacks(first)))
    early, late = rng.sample(range(8), k=2)
    blocks = [prefixed(begun.lines, early, "rank"), prefixed(rng.choice(tracebacks(second)), late, "rank")]
    rng.shuffle(blocks)
    lines = [line for block in blocks for line in block] + torchrun(early, (late,))
    roles = {second: "consequence", EXIT_1: "wrapper"}
    return log(name, begun, lines, roles, rng, rng.choice(NOISES))


def killed(name: str, rng: random.Random) -> Log:
    """The system killed a process: only the launcher speaks."""
    begun = Start(None, ())
    lines = ["step 812 loss 2.0931", *torchrun(rng.randrange(8), (), code=-9)]
    return log(name, begun, lines, {SIGKILL: "wrapper"}, rng, rng.choice(NOISES))


def ray_tasks(name: str, rng: random.Random) -> Log:
    """A Ray task fails; the driver raises it again under Ray's name."""
    begun = start(rng, known=rng.random() < 0.7)
    last = next(line for line in begun.lines[1:] if line[:1].isalpha() and ":" in line)
    kind = last.partition(":")[0].rpartition(".")[2]
    worker = prefixed(begun.lines, rng.randrange(8), "ray")
    driver = [
        HEADER, '  File "/home/ml/train/driver.py", line 88, in <module>', "    ray.get(tasks)",
        f"ray.exceptions.RayTaskError({kind}): ray::train_step() (pid=4003, ip=10.0.0.1)",
        *begun.lines[1:],
    ]  # fmt: skip
    lines = [*worker, *driver] if rng.random() < 0.5 else [*driver, *worker]
    return log(name, begun, lines, {}, rng, rng.choice(NOISES))


KINDS: tuple[tuple[Callable[[str, random.Random], Log], int], ...] = (
    (timeouts, 32),
    (unknown_timeouts, 10),
    (lost_peers, 12),
    (unknown_peers, 8),
    (remote_errors, 12),
    (same_everywhere, 8),
    (launcher_first, 10),
    (assertions, 16),
    (chains, 16),
    (compiled, 4),
    (loader_workers, 10),
    (engines, 12),
    (hardware, 6),
    (clocks, 10),
    (summaries, 10),
    (killed, 3),
    (ray_tasks, 8),
)


def composed(seed: int = SEED) -> Iterator[Log]:
    """All logs, each with its own generator, so that adding a kind changes no other."""
    for kind, count in KINDS:
        for number in range(count):
            name = f"{kind.__name__}-{number:02d}"
            yield kind(name, random.Random(f"{seed}-{name}"))


def examples() -> list[Log]:
    """The captured logs with their labels."""
    labels = json.loads((LOGS / "labels.json").read_text(encoding="utf-8"))
    return [
        Log(name, (LOGS / name).read_text(encoding="utf-8"), label["entry"], label.get("roles", {}), (), label.get("incident"))
        for name, label in sorted(labels.items())
    ]  # fmt: skip
