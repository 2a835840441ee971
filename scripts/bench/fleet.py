"""The queue's other figures beside plain arq in the same run: slots in use, idle commands, loss, cancel, fairness.

    ./scripts/run python -m scripts.bench.fleet [sleeping] [idle] [slots] [kills] [recovery] [cancel] [fairness]

Our workers are processes started as the Procfile starts them, on a Redis with `appendfsync always`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis
import redis.asyncio as redis_asyncio
from arq.connections import ArqRedis

from scripts.bench.arq_worker import QUEUE
from scripts.bench.common import ADMIN_KEY, durable_redis, filled, fsync_probe, paused, percentile, record, running
from scripts.bench.drain import our_workers
from shared.keys import Keys
from shared.log import configure
from shared.redis import connect
from shared.settings import Settings
from shared.specs import Lane
from shared.stores.jobs import JobsStore
from shared.stores.tenants import DEFAULT_TENANT, TenantsStore
from worker.__main__ import build

PREFIX = "b:"


def client_of(url: str) -> Any:
    """A plain client."""
    return redis.Redis.from_url(url)


async def fill_arq(url: str, jobs: int) -> None:
    """Jobs on arq's queue."""
    pool: Any = ArqRedis(connection_pool=redis_asyncio.ConnectionPool.from_url(url))
    for start in range(0, jobs, 200):
        batch = range(min(200, jobs - start))
        await asyncio.gather(*(pool.enqueue_job("noop", _queue_name=QUEUE) for _ in batch))
    await pool.aclose()


def arq_worker(stack: ExitStack, url: str, slots: int, sleep_s: float, *, tuned: bool) -> int:
    """A worker process of plain arq; its pid."""
    command = ["scripts.bench.arq_worker", str(slots), "0.01" if tuned else "0.5", str(sleep_s)]
    return stack.enter_context(running(command + (["uvloop"] if tuned else []), {"REDIS_URL": url})).pid


def sleeping() -> None:
    """2,000 jobs that sleep 50 ms on 100 slots."""
    jobs, slots, nap_s = 2_000, 100, 0.05
    ideal_s = jobs * nap_s / slots
    ours, theirs = [], []
    with durable_redis() as url:
        client = client_of(url)
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder, our_workers(url, PREFIX, folder, 1, nap_s) as pids:
                with paused(pids):
                    asyncio.run(filled(url, PREFIX, jobs))
                    started = time.perf_counter()
                while client.zcard(f"{PREFIX}retention") < jobs:
                    time.sleep(0.002)
                ours.append(ideal_s / (time.perf_counter() - started))
            client.flushall()
            with ExitStack() as stack:
                pid = arq_worker(stack, url, slots, nap_s, tuned=True)
                time.sleep(2.0)
                with paused([pid]):
                    asyncio.run(fill_arq(url, jobs))
                    started = time.perf_counter()
                while client.zcard(QUEUE) > 0:
                    time.sleep(0.002)
                theirs.append(ideal_s / (time.perf_counter() - started))
                os.kill(pid, signal.SIGKILL)
            client.flushall()
    print(f"{jobs} jobs that sleep {nap_s * 1000:g} ms, {slots} slots: share of the ideal {slots / nap_s:.0f}/s")
    print(f"  errand {statistics.median(ours):.0%}   arq tuned {statistics.median(theirs):.0%}   (goal: 95 %)")


def idle() -> None:
    """Commands that an idle worker sends."""
    seconds = 12.0
    with durable_redis() as url:
        client = client_of(url)

        def rate(inside: Callable[[], dict[str, int]]) -> float:
            before = inside()
            time.sleep(seconds)
            after = inside()
            return sum(after[name] - before.get(name, 0) for name in after) / seconds

        def sent() -> dict[str, int]:
            counts = {name: entry["calls"] for name, entry in client.info("commandstats").items()}
            return {name: counts.get(name, 0) for name in ("cmdstat_evalsha", "cmdstat_ping", "cmdstat_info")}

        with tempfile.TemporaryDirectory() as folder, our_workers(url, PREFIX, folder, 1, 0):
            time.sleep(2)
            ours = rate(sent)
        with ExitStack() as stack:
            pid = arq_worker(stack, url, 10, 0, tuned=False)
            time.sleep(2)
            own = {"cmdstat_info", "cmdstat_config", "cmdstat_evalsha"}
            theirs = rate(
                lambda: {name: entry["calls"] for name, entry in client.info("commandstats").items() if name not in own}
            )
            os.kill(pid, signal.SIGKILL)
    print("commands per second of one idle worker")
    print(f"  errand {ours:.1f}   arq as it comes {theirs:.1f}   (goal: ≤ 2)")


def slots_in_use() -> None:
    """How many of 16 × 10 slots a fleet uses."""
    workers, slots, nap_s, jobs = 16, 10, 6.0, 400
    with durable_redis() as url:
        client = client_of(url)
        with tempfile.TemporaryDirectory() as folder, our_workers(url, PREFIX, folder, workers, nap_s, slots):
            asyncio.run(filled(url, PREFIX, jobs))
            ours, until = 0, time.monotonic() + nap_s
            while time.monotonic() < until:
                ours = max(ours, int(client.hget(f"{PREFIX}pace:interactive", "running") or 0))
                time.sleep(0.05)
        client.flushall()
        with ExitStack() as stack:
            pids = [arq_worker(stack, url, slots, nap_s, tuned=False) for _ in range(workers)]
            time.sleep(14)
            asyncio.run(fill_arq(url, jobs))
            theirs, until = 0, time.monotonic() + nap_s
            while time.monotonic() < until:
                theirs = max(theirs, sum(1 for _ in client.scan_iter("arq:in-progress:*", count=1000)))
                time.sleep(0.05)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
    print(f"slots in use, a fleet of {workers} × {slots} with {jobs} jobs queued")
    print(f"  errand {ours} of {workers * slots}   arq {theirs}   (goal: all)")


def kills() -> None:
    """1,000 jobs of 20 ms, five SIGKILLs of the worker: never finished, finished twice."""
    jobs, nap_s = 1_000, 0.02
    environment = {"ERRAND_LEASE_SECONDS": "2"}
    with durable_redis() as url, tempfile.TemporaryDirectory() as folder:
        client = client_of(url)
        asyncio.run(filled(url, PREFIX, jobs))
        environment |= {
            "REDIS_URL": url, "ERRAND_REDIS_PREFIX": PREFIX, "ERRAND_DATA_DIR": folder, "ERRAND_WORKER_SLOTS": "10",
            "BENCH_SLEEP_S": str(nap_s), "BENCH_COUNT": f"{folder}/ran",
        }  # fmt: skip
        for _ in range(5):
            with running(["scripts.bench.worker", "interactive"], environment) as process:
                base = client.zcard(f"{PREFIX}retention")
                while client.zcard(f"{PREFIX}retention") < min(jobs, base + 120):
                    time.sleep(0.005)
                process.kill()
        with running(["scripts.bench.worker", "interactive"], environment):
            until = time.monotonic() + 60
            while client.zcard(f"{PREFIX}retention") < jobs and time.monotonic() < until:
                time.sleep(0.05)
        finished = client.zcard(f"{PREFIX}retention")
        ran = Counter((Path(folder) / "ran").read_text().split())
        again = sum(count > 1 for count in ran.values())
    print(f"{jobs} jobs of {nap_s * 1000:g} ms, five SIGKILLs of the worker")
    print(f"  never finished {jobs - finished}   ran to their end twice {again}   (goal: 0 / ≤ 3; arq 0 / 3)")


def recovery() -> None:
    """SIGKILL of a worker to its job running again on another, default settings."""
    times = []
    with durable_redis() as url:
        client = client_of(url)
        for _ in range(3):
            with ExitStack() as stack:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                pids = stack.enter_context(our_workers(url, PREFIX, folder, 1, 120.0, 1))
                asyncio.run(filled(url, PREFIX, 1))
                while not (leases := client.zrange(f"{PREFIX}leases", 0, -1)):
                    time.sleep(0.01)
                time.sleep(0.7)
                stack.enter_context(our_workers(url, PREFIX, folder, 1, 120.0, 1))
                os.kill(pids[0], signal.SIGKILL)
                started, job = time.monotonic(), f"{PREFIX}job:{leases[0].decode()}"
                while client.hget(job, "attempt") != b"2":
                    time.sleep(0.01)
                times.append(time.monotonic() - started)
            client.flushall()
    print("worker SIGKILL to its job running again, lease 15 s")
    print(f"  errand max {max(times):.1f} s of {len(times)}   (goal: ≤ 20 s; arq 310 s)")


async def _cancel(url: str, folder: str, rounds: int) -> list[float]:
    cancelled: asyncio.Queue[float] = asyncio.Queue()
    started: asyncio.Queue[None] = asyncio.Queue()

    async def task(_: Any, __: Any) -> None:
        started.put_nowait(None)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.put_nowait(time.perf_counter())
            raise

    settings = Settings(redis_url=url, redis_prefix=PREFIX, data_dir=Path(folder), drain_seconds=0)
    client, keys = connect(url), Keys(PREFIX)
    await TenantsStore(client, keys).ensure_admin(ADMIN_KEY)
    engine = build(settings, [Lane.INTERACTIVE], handlers={"chat": task}, handle_signals=False)
    running_engine = asyncio.create_task(engine.async_run())
    await engine.ready.wait()
    store, fields, times = JobsStore(client, keys), record(), []
    for _ in range(rounds):
        admitted = await store.admit(
            tenant=DEFAULT_TENANT, lane=Lane.INTERACTIVE, record=fields, class_ms=0, expires_in_ms=60_000
        )
        await started.get()
        await asyncio.sleep(0.01)
        before = time.perf_counter()
        await store.cancel(DEFAULT_TENANT, admitted.job_id)
        times.append((await cancelled.get() - before) * 1000)
    engine.stop()
    await running_engine
    await engine.close()
    await client.aclose()
    return times


def cancel() -> None:
    """Cancel of a running job: the call to CancelledError in its task."""
    import uvloop

    with durable_redis() as url, tempfile.TemporaryDirectory() as folder:
        times = uvloop.run(_cancel(url, folder, 200))
    print("cancel of a running job, call to CancelledError")
    middle, high = statistics.median(times), percentile(times, 0.99)
    print(f"  errand p50 {middle:.2f} ms, p99 {high:.2f} ms   (goal: p50 ≤ 5; arq 267)")


def fairness() -> None:
    """A queues 1,000 jobs of 50 ms, then B one, on 5 slots: when B's job starts."""
    waits, passed = [], []
    with durable_redis() as url:
        client = client_of(url)
        for _ in range(5):
            with tempfile.TemporaryDirectory() as folder, our_workers(url, PREFIX, folder, 1, 0.05, 5):
                asyncio.run(filled(url, PREFIX, 1_000))
                client.hset(f"{PREFIX}tenant:ten_b", mapping={"id": "ten_b", "name": "b"})
                before = client.zcard(f"{PREFIX}retention")
                asyncio.run(filled(url, PREFIX, 1, ["ten_b"]))
                while not client.zcard(f"{PREFIX}jobs:ten_b"):
                    time.sleep(0.001)
                job = f"{PREFIX}job:{client.zrange(f'{PREFIX}jobs:ten_b', 0, 0)[0].decode()}"
                while not client.hget(job, "started_ms"):
                    time.sleep(0.001)
                row = client.hmget(job, "created_ms", "started_ms")
                waits.append(int(row[1]) - int(row[0]))
                passed.append(client.zcard(f"{PREFIX}retention") - before)
            client.flushall()
    print("A has 1,000 jobs of 50 ms on 5 slots, then B submits one: B's wait")
    print(f"  errand p50 {statistics.median(waits):.0f} ms, max {max(waits)} ms   (goal: one job's time, 50 ms)")


FIGURES: dict[str, Callable[[], None]] = {
    "sleeping": sleeping, "idle": idle, "slots": slots_in_use, "kills": kills, "recovery": recovery,
    "cancel": cancel, "fairness": fairness,
}  # fmt: skip


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.fleet", description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)} (default: all)")
    chosen = parser.parse_args().figures or list(FIGURES)
    if unknown := [name for name in chosen if name not in FIGURES]:
        parser.error(f"there is no figure {unknown[0]!r}; choose from {', '.join(FIGURES)}")
    configure("json", "error", "bench")
    for name in chosen:
        FIGURES[name]()
    print(fsync_probe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
