"""What the benchmarks share: a durable Redis of their own, an fsync probe, medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts import embedded_redis


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
