"""Idle pick-up: from the call that enqueues a job to the first line of its task, on an idle worker.

    ./scripts/run python -m scripts.bench.pickup [--jobs 500]

The job is a no-op type that this benchmark registers with the engine as any type is registered; claim, lease, record,
events, journal and settlement run as always, on a Redis with `appendfsync always`. Beside it: arq as it comes and with
its poll at 10 ms, a bare BLPOP, and a probe of the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import arq
import msgspec
import redis.asyncio as redis_asyncio
from arq.connections import ArqRedis
from arq.worker import Worker

from scripts.bench.common import durable_redis, fsync_probe, percentile
from shared.keys import Keys
from shared.log import configure
from shared.redis import connect
from shared.settings import Settings
from shared.specs import ChatInput, ChatJob, ChatMessage, Lane
from shared.stores.jobs import JobsStore
from shared.stores.tenants import DEFAULT_TENANT, TenantsStore
from worker.__main__ import build
from worker.context import JobContext


class Noop(msgspec.Struct):
    """The result of a job that does nothing."""

    done: bool = True


async def ours(url: str, jobs: int) -> list[float]:
    """Latencies of the engine, in ms."""
    started_at: asyncio.Queue[float] = asyncio.Queue()

    async def noop(_: Any, __: JobContext) -> Noop:
        started_at.put_nowait(time.perf_counter())
        return Noop()

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(redis_url=url, redis_prefix="bench:", data_dir=Path(folder), drain_seconds=0)
        keys = Keys(settings.redis_prefix)
        client = connect(url)
        await TenantsStore(client, keys).ensure_admin("ek_01M81SGW152PHX78GHNCJWQHRS_" + "a" * 43)
        engine = build(settings, [Lane.INTERACTIVE], handlers={"chat": noop}, handle_signals=False)
        task = asyncio.create_task(engine.async_run())
        await engine.ready.wait()
        store = JobsStore(client, keys)
        spec = msgspec.json.encode(ChatJob(input=ChatInput(messages=[ChatMessage(role="user", content="x")]))).decode()
        record = {
            "type": "chat", "priority": "normal", "metadata": "{}", "model": "none", "spec": spec, "max_attempts": 3,
            "grant": 3, "timeout_ms": 60_000, "retention_ms": 60_000, "est": 10,
        }  # fmt: skip
        times = []
        for _ in range(jobs):
            before = time.perf_counter()
            await store.admit(
                tenant=DEFAULT_TENANT, lane=Lane.INTERACTIVE, record=record, class_ms=60_000, expires_in_ms=60_000
            )
            times.append((await started_at.get() - before) * 1000)
            await asyncio.sleep(0.01)  # the worker is idle again
        engine.stop()
        await task
        await engine.close()
        await client.aclose()
        return times


async def with_arq(url: str, jobs: int, poll_s: float) -> list[float]:
    """Latencies of plain arq, in ms."""
    started_at: asyncio.Queue[float] = asyncio.Queue()

    async def noop(_: Any) -> None:
        started_at.put_nowait(time.perf_counter())

    pool: Any = ArqRedis(connection_pool=redis_asyncio.ConnectionPool.from_url(url))
    worker = Worker(
        functions=[arq.func(cast(Any, noop), name="noop")], redis_pool=pool, queue_name="bench-arq", poll_delay=poll_s,
        handle_signals=False,
    )  # fmt: skip
    task = asyncio.create_task(worker.async_run())
    times = []
    for _ in range(jobs):
        await asyncio.sleep(0.01)
        before = time.perf_counter()
        await pool.enqueue_job("noop", _queue_name="bench-arq")
        times.append((await started_at.get() - before) * 1000)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return times


async def bare(url: str, jobs: int) -> list[float]:
    """RPUSH to a waiting BLPOP: what Redis and the client library cost by themselves, in ms."""
    reader, writer = redis_asyncio.from_url(url), redis_asyncio.from_url(url)
    times = []
    for _ in range(jobs):
        waiting = asyncio.ensure_future(reader.blpop(["bench-list"], 5))
        await asyncio.sleep(0.01)
        before = time.perf_counter()
        await writer.rpush("bench-list", "x")
        await waiting
        times.append((time.perf_counter() - before) * 1000)
    await reader.aclose()
    await writer.aclose()
    return times


async def measure(jobs: int) -> None:
    """Prints the table."""
    with durable_redis() as url:
        rows = [
            ("bare RPUSH → BLPOP", await bare(url, jobs)),
            ("errand", await ours(url, jobs)),
            ("arq, poll every 10 ms", await with_arq(url, jobs, 0.01)),
            ("arq, as it comes", await with_arq(url, max(20, jobs // 20), 0.5)),
        ]
    print("idle pick-up, enqueue to first line of the task, appendfsync always")
    for name, times in rows:
        middle, high = statistics.median(times), percentile(times, 0.99)
        print(f"  {name:<24} p50 {middle:7.2f} ms   p99 {high:7.2f} ms   n={len(times)}")
    print("  goal: p50 ≤ 2 ms, p99 ≤ 5 ms, where the fsync probe's p99 is ≤ 1 ms")
    print(f"  {fsync_probe()}")


def main() -> int:
    """The command. Returns its exit code."""
    import logging

    import uvloop

    parser = argparse.ArgumentParser(prog="python -m scripts.bench.pickup", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=500, help="jobs per row (default %(default)s)")
    configure("json", "error", "bench")
    logging.getLogger("arq").setLevel(logging.ERROR)
    uvloop.run(measure(parser.parse_args().jobs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
