"""No-op jobs drained from a full queue: ours, plain arq as it comes and tuned, and a bare loop, in one run.

    ./scripts/run python -m scripts.bench.drain [--jobs 10000] [--workers 1 2 4] [--rounds 3] [--rtt-ms 2.6]

Our workers are processes started as the Procfile starts them, with 100 slots, on a Redis with `appendfsync always`.
They are stopped while the queue is filled, so that the clock and the CPU time begin with the work. Rounds alternate;
medians. Also shown: commands and reads (about round trips) that Redis served per job, and CPU per job.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import redis
import redis.asyncio as redis_asyncio
from arq.connections import ArqRedis

from scripts.bench.arq_worker import QUEUE
from scripts.bench.common import durable_redis, filled, fsync_probe, jiffies, paused, running, slowed
from shared.keys import Keys

SLOTS = 100
BATCH = 100


class Figure(NamedTuple):
    """What one round showed; per job, CPU in µs."""

    rate: float
    commands: float
    reads: float
    cpu_us: float
    redis_cpu_us: float


def counters(client: redis.Redis) -> tuple[int, int, float]:
    """Commands that clients sent (not those inside scripts), reads from sockets, and Redis's own CPU seconds."""
    info: Any = client.info("all")
    commands = sum(info.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in CLIENT_COMMANDS)
    return commands, info["total_reads_processed"], info["used_cpu_user"] + info["used_cpu_sys"]


# What workers send by themselves; all else in the statistics runs inside scripts (ours), or is arq's.
CLIENT_COMMANDS = frozenset({"evalsha", "eval", "subscribe", "ping", "info"})


@contextmanager
def our_workers(
    url: str, prefix: str, folder: str, count: int, sleep_s: float, slots: int = SLOTS
) -> Iterator[list[int]]:
    """Worker processes, listening and idle; yields their pids."""
    environment = {
        "REDIS_URL": url, "ERRAND_REDIS_PREFIX": prefix, "ERRAND_DATA_DIR": folder, "ERRAND_WORKER_SLOTS": str(slots),
        "BENCH_SLEEP_S": str(sleep_s), "ERRAND_DRAIN_SECONDS": "0",
    }  # fmt: skip
    client: Any = redis.Redis.from_url(url)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running(["scripts.bench.worker", "interactive"], environment)) for _ in range(count)
        ]
        while client.scard(f"{prefix}idle:interactive") < count:
            time.sleep(0.02)
        yield [process.pid for process in processes]


def ours(url: str, jobs: int, workers: int, sleep_s: float = 0.0, rtt_ms: float = 0.0) -> Figure:
    """One round of the engine."""
    prefix = f"b{time.monotonic_ns()}:"
    client: Any = redis.Redis.from_url(url)
    with (
        tempfile.TemporaryDirectory() as folder,
        slowed(url, rtt_ms) as through,
        our_workers(through, prefix, folder, workers, sleep_s) as pids,
    ):
        with paused(pids):
            asyncio.run(filled(url, prefix, jobs))
            before, cpu = counters(client), jiffies(pids)
            started = time.perf_counter()
        done = Keys(prefix).retention
        while client.zcard(done) < jobs:
            time.sleep(0.002)
        seconds = time.perf_counter() - started
        after, cpu_after = counters(client), jiffies(pids)
    client.flushall()
    return Figure(
        jobs / seconds,
        (after[0] - before[0]) / jobs,
        (after[1] - before[1]) / jobs,
        (cpu_after - cpu) * 1e6 / jobs,
        (after[2] - before[2]) * 1e6 / jobs,
    )


def with_arq(url: str, jobs: int, workers: int, *, tuned: bool, sleep_s: float = 0.0, rtt_ms: float = 0.0) -> Figure:
    """One round of plain arq. `tuned`: uvloop and a poll every 10 ms."""
    client: Any = redis.Redis.from_url(url)

    async def fill() -> None:
        pool: Any = ArqRedis(connection_pool=redis_asyncio.ConnectionPool.from_url(url))
        for start in range(0, jobs, 200):
            count = min(200, jobs - start)
            await asyncio.gather(*(pool.enqueue_job("noop", _queue_name=QUEUE) for _ in range(count)))
        await pool.aclose()

    with slowed(url, rtt_ms) as through, ExitStack() as stack:
        command = ["scripts.bench.arq_worker", str(SLOTS), "0.01" if tuned else "0.5", str(sleep_s)]
        command += ["uvloop"] if tuned else []
        pids = [stack.enter_context(running(command, {"REDIS_URL": through})).pid for _ in range(workers)]
        time.sleep(2.5)
        with paused(pids):
            asyncio.run(fill())
            info: Any = client.info("all")
            before, cpu = (info["total_commands_processed"], info["total_reads_processed"]), jiffies(pids)
            redis_cpu = info["used_cpu_user"] + info["used_cpu_sys"]
            started = time.perf_counter()
        while client.zcard(QUEUE) > 0:
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        info = client.info("all")
        cpu_after = jiffies(pids)
        for pid in pids:
            os.kill(pid, 9)
    client.flushall()
    return Figure(
        jobs / seconds,
        (info["total_commands_processed"] - before[0]) / jobs,
        (info["total_reads_processed"] - before[1]) / jobs,
        (cpu_after - cpu) * 1e6 / jobs,
        (info["used_cpu_user"] + info["used_cpu_sys"] - redis_cpu) * 1e6 / jobs,
    )


def bare(url: str, jobs: int, rtt_ms: float = 0.0) -> float:
    """A bare Python loop with batched claims and acknowledgements, no record, no lease, no events: jobs per second."""
    client = redis.Redis.from_url(url)
    client.rpush("bare", *(b'{"n":%d}' % n for n in range(jobs)))
    with slowed(url, rtt_ms) as through:
        worker = redis.Redis.from_url(through)
        started, done = time.perf_counter(), 0
        while done < jobs:
            pipe = worker.pipeline(transaction=False)
            pipe.lpop("bare", BATCH)
            (batch,) = pipe.execute()
            worker.hset("bare-results", mapping={str(done + n): b'{"done":true}' for n in range(len(batch))})
            done += len(batch)
        seconds = time.perf_counter() - started
    client.flushall()
    return jobs / seconds


def row(name: str, figures: list[Figure]) -> float:
    """Prints the medians of some rounds; returns the rate."""
    rate, commands, reads, cpu, redis_cpu = (
        statistics.median(map(float, column)) for column in zip(*figures, strict=True)
    )
    print(f"  {name:<26}{rate:>9.0f}/s {commands:>10.2f} {reads:>8.2f} {cpu:>11.0f} µs {redis_cpu:>9.0f} µs")
    return rate


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.drain", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs in the queue (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="worker processes (default 1 2 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default %(default)s)")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="added round trip to Redis (default none)")
    parser.add_argument("--no-peers", action="store_true", help="only ours")
    arguments = parser.parse_args()
    jobs, rtt_ms = arguments.jobs, arguments.rtt_ms
    rounds: dict[str, list[Figure]] = {}
    bare_rates = []
    with durable_redis() as url:
        for _ in range(arguments.rounds):
            bare_rates.append(bare(url, jobs, rtt_ms))
            for workers in arguments.workers:
                rounds.setdefault(f"errand, {workers} worker(s)", []).append(ours(url, jobs, workers, rtt_ms=rtt_ms))
                if not arguments.no_peers:
                    few = jobs // 5
                    tuned = with_arq(url, few, workers, tuned=True, rtt_ms=rtt_ms)
                    rounds.setdefault(f"arq tuned, {workers} worker(s)", []).append(tuned)
                    plain = with_arq(url, few, workers, tuned=False, rtt_ms=rtt_ms)
                    rounds.setdefault(f"arq default, {workers} worker(s)", []).append(plain)
    added = f", {rtt_ms:g} ms of round trip added" if rtt_ms else ""
    print(f"no-op jobs drained, {jobs} queued, {SLOTS} at a time, appendfsync always{added}")
    print(f"  {'':<26}{'jobs':>11} {'commands':>10} {'reads':>8} {'worker CPU':>14} {'Redis CPU':>12}   per job")
    rates = {name: row(name, figures) for name, figures in rounds.items()}
    print(f"  {'bare batched loop':<26}{statistics.median(bare_rates):>9.0f}/s   (no record, lease or events)")
    one = rates.get("errand, 1 worker(s)")
    if one and "errand, 4 worker(s)" in rates:
        print(f"  four workers against one: {rates['errand, 4 worker(s)'] / one:.2f}")
    print("  goals: 15,000/s with one worker, 10,000/s with 2.6 ms of round trip; four workers never below 1.0 of one")
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
