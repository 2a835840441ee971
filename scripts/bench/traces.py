"""What spans cost: no-op jobs drained, and streamed chats, with `ERRAND_TRACES` off and on, in one run.

    ./scripts/run python -m scripts.bench.traces [--jobs 10000] [--streams 50] [--rounds 5]

Rounds alternate; medians. `otlp` exports every span to a server on loopback that reads and forgets them. `away` is the
same with nobody there. The jobs were made by a client that traces, so that each attempt is a span of its trace. CPU is
that of our processes, the exporter's thread included: per job, and per 1,000 tokens of streams at 50 tokens a second.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import redis

from scripts.bench.common import ADMIN_KEY, durable_redis, filled, fsync_probe, jiffies, paused, running
from scripts.bench.stream import MESSAGES, Target, round_of, until_ready
from scripts.probes import free_port
from shared.keys import Keys
from shared.scope import Scope, entered
from shared.trace_context import TraceContext

WAYS = ("off", "otlp", "away")
SINK = """
import asyncio, os, uvloop
from aiohttp import web
async def main():
    async def take(request):
        await request.read()
        return web.Response(content_type="application/x-protobuf")
    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"])).start()
    await asyncio.Event().wait()
uvloop.run(main())
"""
PARENT = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


def environment_of(way: str, sink_port: int, nobody: int) -> dict[str, str]:
    """The settings of a way."""
    if way == "off":
        return {"ERRAND_TRACES": "off"}
    port = sink_port if way == "otlp" else nobody
    return {"ERRAND_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}


def drained(url: str, jobs: int, environment: dict[str, str]) -> tuple[float, float]:
    """(jobs per second, CPU µs per job) of one worker."""
    prefix = f"b{time.monotonic_ns()}:"
    client: Any = redis.Redis.from_url(url)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = {
            "REDIS_URL": url, "ERRAND_REDIS_PREFIX": prefix, "ERRAND_DATA_DIR": folder, "ERRAND_WORKER_SLOTS": "100",
            "ERRAND_DRAIN_SECONDS": "0", **environment,
        }  # fmt: skip
        worker = stack.enter_context(running(["scripts.bench.worker", "interactive"], settings))
        while client.scard(f"{prefix}idle:interactive") < 1:
            time.sleep(0.02)
        with paused([worker.pid]):
            with entered(Scope({"request_id": "req_0123456789ABCDEF"}, PARENT)):
                asyncio.run(filled(url, prefix, jobs))
            cpu, started = jiffies([worker.pid]), time.perf_counter()
        done = Keys(prefix).retention
        while client.zcard(done) < jobs:
            time.sleep(0.002)
        seconds = time.perf_counter() - started
        time.sleep(1)  # what is exported after the last job counts too
        cpu_us = (jiffies([worker.pid]) - cpu) * 1e6 / jobs
    client.flushall()
    return jobs / seconds, cpu_us


@contextmanager
def streaming(url: str, upstream: str, environment: dict[str, str]) -> Iterator[Target]:
    """An API and a worker to stream from."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        port = free_port("127.0.0.1")
        settings = {
            "REDIS_URL": url, "ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": ADMIN_KEY, "PORT": str(port),
            "ERRAND_REDIS_PREFIX": f"s{time.monotonic_ns()}:", "OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "none",
            "ERRAND_WORKER_SLOTS": "128", "ERRAND_DEFAULT_MODEL": "bench", **environment,
        }  # fmt: skip
        api = stack.enter_context(running(["api"], settings))
        worker = stack.enter_context(running(["worker", "interactive"], settings))
        asyncio.run(until_ready(f"http://127.0.0.1:{port}", "/readyz"))
        headers = {"Authorization": f"Bearer {ADMIN_KEY}", "traceparent": PARENT.traceparent}
        yield Target("errand", f"http://127.0.0.1:{port}/api/chat/stream", b'{"text": ', [api.pid, worker.pid], headers,
                     {"messages": MESSAGES})  # fmt: skip


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.traces", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="no-op jobs of a round (default %(default)s)")
    parser.add_argument("--streams", type=int, default=50, help="streams at a time (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="of a stream (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default %(default)s)")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    job_us: dict[str, list[float]] = {way: [] for way in WAYS}
    stream_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    first_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        url = stack.enter_context(durable_redis())
        sink_port, nobody, upstream_port = (free_port("127.0.0.1") for _ in range(3))
        upstream = f"http://127.0.0.1:{upstream_port}/v1"
        command = [sys.executable, "-m", "scripts.bench.upstream", str(upstream_port), str(arguments.tokens), "50"]
        for started in (
            subprocess.Popen(command),
            subprocess.Popen([sys.executable, "-c", SINK], env={"PORT": str(sink_port)}),
        ):
            stack.callback(started.wait, 20)
            stack.callback(started.terminate)
        asyncio.run(until_ready(upstream, "/"))
        asyncio.run(until_ready(f"http://127.0.0.1:{sink_port}", "/"))
        for _ in range(arguments.rounds):
            for way in WAYS:
                environment = environment_of(way, sink_port, nobody)
                rate, cpu_us = drained(url, arguments.jobs, environment)
                rates[way].append(rate)
                job_us[way].append(cpu_us)
                with streaming(url, upstream, environment) as target:
                    round_of(target, 2, arguments.tokens)  # warm
                    target.cpu_ms.clear()
                    first_ms[way].append(round_of(target, arguments.streams, arguments.tokens))
                    stream_ms[way] += target.cpu_ms
    print(
        f"{arguments.jobs} no-op jobs drained by one worker; {arguments.streams} streams of {arguments.tokens} tokens"
    )
    for way in WAYS:
        rate, cpu_us, first, cpu_ms = (
            statistics.median(figures[way]) for figures in (rates, job_us, first_ms, stream_ms)
        )
        print(
            f"  traces {way:<5} {rate:>8.0f} jobs/s {cpu_us:>6.0f} µs CPU a job   "
            f"first text {first:>6.1f} ms {cpu_ms:>6.1f} ms CPU per 1,000 tokens"
        )
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
