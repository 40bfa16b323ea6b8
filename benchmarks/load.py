"""`python -m benchmarks.load`: `kb serve` under load on this machine. Prints latency, errors and memory.

Requests are what people and programs ask: pastes of the catalogue, entry pages, searches, an unknown error.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

PROJECT = Path(__file__).parent.parent


def resident(pid: int) -> float:
    """MiB of memory a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def questions() -> list[tuple[str, str, dict[str, str] | None]]:
    """Method, path and JSON body."""
    samples = sorted(PROJECT.glob("entries/*/*/samples/*.txt"))
    chosen = random.Random(7).sample(samples, min(60, len(samples)))
    asked: list[tuple[str, str, dict[str, str] | None]] = [
        ("POST", "/api/v1/match", {"text": path.read_text(encoding="utf-8")}) for path in chosen
    ]
    asked += [("GET", f"/entries/{path.parts[-4]}/{path.parts[-3]}", None) for path in chosen[:20]]
    asked += [("GET", "/", None), ("GET", "/search?q=unscale+float16", None), ("GET", "/entries", None)]
    asked.append(("POST", "/api/v1/match", {"text": "KeyError: 'rows'"}))
    return asked


async def load(url: str, seconds: float, connections: int, pid: int) -> None:
    """Ask until the time is over, each connection one question after the other."""
    asked = questions()
    times: list[float] = []
    outcomes: Counter[str] = Counter()
    memory: list[float] = []
    end = time.monotonic() + seconds

    async def one(client: httpx.AsyncClient, seed: int) -> None:
        pick = random.Random(seed)
        while time.monotonic() < end:
            method, path, body = pick.choice(asked)
            began = time.perf_counter()
            try:
                answer = await client.request(method, url + path, json=body)
                outcomes[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                outcomes[type(error).__name__] += 1
            times.append(time.perf_counter() - began)

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident(pid))
            await asyncio.sleep(1)

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:
        await asyncio.gather(watch(), *(one(client, seed) for seed in range(connections)))
    times.sort()
    middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(f"{connections} connections, {seconds:.0f} s: {len(times)} answers, {len(times) / seconds:.0f} a second")
    print(f"outcomes: {dict(outcomes)}")
    print(f"latency: median {middle * 1000:.1f} ms, p99 {late * 1000:.1f} ms, longest {times[-1] * 1000:.1f} ms")
    quarter = max(1, len(memory) // 4)
    second, last = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    print(f"memory: {memory[0]:.0f} MiB at the start, {second:.1f} in the second quarter, {last:.1f} in the last")


def main() -> None:
    """Start a server on a free port of the loopback interface, load it, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=50)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "kb", "serve", "--port", str(port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(url + "/healthz")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        asyncio.run(load(url, options.seconds, options.connections, server.pid))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
