"""What the benchmarks share: a durable Redis of their own, an fsync probe, medians."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import msgspec

from scripts import embedded_redis
from shared.keys import Keys
from shared.redis import connect
from shared.specs import ChatInput, ChatJob, ChatMessage, Lane
from shared.stores.jobs import JobsStore
from shared.stores.tenants import DEFAULT_TENANT, TenantsStore

ADMIN_KEY = "ek_01M81SGW152PHX78GHNCJWQHRS_" + "a" * 43  # of a Redis that lives as long as the benchmark


@contextmanager
def durable_redis() -> Iterator[str]:
    """The URL of an embedded Redis with the settings of `scripts/start` (`appendfsync always`)."""
    with tempfile.TemporaryDirectory(prefix="errand-b-") as folder:
        directory = Path(folder)
        socket = embedded_redis.socket_path(directory)
        process = subprocess.Popen(embedded_redis.command(embedded_redis.find_server(), directory, socket))
        try:
            while not embedded_redis.answers(socket):
                time.sleep(0.02)
            yield embedded_redis.url_of(socket)
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def running(module: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, started as `scripts/start` starts it, logs to nowhere."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the others lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def fsync_probe(count: int = 300) -> str:
    """p50 and p99 of an fsync of 4 kB on this disk, in the same run."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="errand-fsync-") as file:
        for _ in range(count):
            file.write(b"x" * 4096)
            started = time.perf_counter()
            file.flush()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return f"fsync probe: p50 {statistics.median(times):.2f} ms, p99 {percentile(times, 0.99):.2f} ms"


def record() -> dict[str, str | int]:
    """The first fields of a small job, as the API writes them."""
    spec = msgspec.json.encode(
        ChatJob(input=ChatInput(messages=[ChatMessage(role="user", content="x" * 100)]))
    ).decode()
    return {
        "type": "chat", "priority": "normal", "metadata": "{}", "model": "none", "spec": spec, "max_attempts": 3,
        "grant": 3, "timeout_ms": 60_000, "retention_ms": 600_000, "est": 50,
    }  # fmt: skip


async def filled(url: str, prefix: str, jobs: int, tenants: Sequence[str] = (DEFAULT_TENANT,)) -> None:
    """Admits jobs through the store, as the API does, to the tenants in turn."""
    client = connect(url)
    keys = Keys(prefix)
    await TenantsStore(client, keys).ensure_admin(ADMIN_KEY)
    store, fields = JobsStore(client, keys), record()
    for start in range(0, jobs, 500):
        await asyncio.gather(
            *(
                store.admit(
                    tenant=tenants[number % len(tenants)], lane=Lane.INTERACTIVE, record=fields, class_ms=60_000,
                    expires_in_ms=3_600_000,
                )
                for number in range(start, min(start + 500, jobs))
            )
        )  # fmt: skip
    await client.aclose()


@contextmanager
def paused(pids: Sequence[int]) -> Iterator[None]:
    """The processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def jiffies(pids: Sequence[int]) -> float:
    """CPU seconds that the processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def slowed(url: str, rtt_ms: float) -> Iterator[str]:
    """The URL of a relay to a Redis on a Unix socket that adds `rtt_ms` to each round trip; the URL itself for 0."""
    if not rtt_ms:
        yield url
        return
    target = unquote(url.removeprefix("unix://"))
    with tempfile.TemporaryDirectory(prefix="errand-r-") as folder:
        path = str(Path(folder) / "relay.sock")
        process = subprocess.Popen([sys.executable, "-m", "scripts.bench.relay", path, target, str(rtt_ms)])
        try:
            while not Path(path).exists():
                time.sleep(0.02)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait(10)
