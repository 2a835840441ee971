"""Accepted `POST /api/jobs` per second of one API process, beside the bare limit: aiohttp and one Redis script.

    ./scripts/run python -m scripts.bench.submit [--seconds 5] [--clients 32]

Both servers are processes on uvloop that answer the same clients in the same run; rounds alternate; medians.
The bare server reads the body, runs one script that stores it (HSET, ZADD, XADD, PUBLISH) and answers 202. Ours is the
API as `scripts/start` runs it: authentication, strict decoding, idempotency, limits, queue, logs and metrics on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from scripts.bench.common import durable_redis, fsync_probe, percentile, running
from scripts.probes import free_port
from shared.ids import new_api_key

BODY = json.dumps({"type": "chat", "input": {"messages": [{"role": "user", "content": "Say hello." * 10}]}}).encode()

BARE = '''
import os, uvloop, redis.asyncio as redis
from aiohttp import web
SCRIPT = """
local seq = redis.call('INCR', KEYS[1])
redis.call('HSET', KEYS[2] .. seq, 'spec', ARGV[1], 'status', 'queued')
redis.call('ZADD', KEYS[3], seq, seq)
redis.call('XADD', KEYS[4] .. seq, '1-0', 't', 'job.queued')
redis.call('PUBLISH', KEYS[5], '1')
return seq
"""
async def main():
    client = redis.from_url(os.environ["REDIS_URL"], max_connections=512)
    script = client.register_script(SCRIPT)
    async def submit(request):
        body = await request.read()
        number = await script(keys=["b:n", "b:job:", "b:ready", "b:log:", "b:wake"], args=[body])
        return web.json_response({"jobId": f"job_{number}", "status": "queued"}, status=202)
    app = web.Application()
    app.router.add_post("/api/jobs", submit)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"])).start()
    import asyncio
    await asyncio.Event().wait()
uvloop.run(main())
'''


async def load(url: str, key: str, clients: int, seconds: float) -> tuple[float, list[float]]:
    """(accepted per second, latencies in ms) of one bounded round."""
    latencies: list[float] = []
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    deadline = time.perf_counter() + seconds
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def client() -> None:
            while time.perf_counter() < deadline:
                started = time.perf_counter()
                async with session.post(f"{url}/api/jobs", data=BODY) as response:
                    assert response.status == 202, await response.text()
                    await response.read()
                latencies.append((time.perf_counter() - started) * 1000)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return len(latencies) / (time.perf_counter() - started), latencies


def in_process(url: str, key: str, clients: int, seconds: float) -> tuple[float, list[float]]:
    """The load from a process of its own, on uvloop."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "scripts.bench.submit",
            "--load",
            url,
            "--seconds",
            str(seconds),
            "--clients",
            str(clients),
        ],
        env={**os.environ, "BENCH_KEY": key},
        capture_output=True,
        text=True,
        check=True,
    )
    rate, latencies = json.loads(done.stdout)
    return rate, latencies


async def up(url: str) -> None:
    """Waits until a server answers."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/healthz"):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.submit", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="connections (default %(default)s)")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        import uvloop

        outcome = uvloop.run(load(arguments.load, os.environ["BENCH_KEY"], arguments.clients, arguments.seconds))
        print(json.dumps(outcome))
        return 0
    _, key = new_api_key(1_700_000_000_000)
    bare_rates, our_rates, bare_times, our_times = [], [], [], []
    with durable_redis() as redis_url, tempfile.TemporaryDirectory() as folder:
        bare_port, our_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        bare_file = Path(folder) / "bare.py"
        bare_file.write_text(BARE)
        shared = {"REDIS_URL": redis_url, "ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": key}
        bare = subprocess.Popen([sys.executable, str(bare_file)], env={**os.environ, **shared, "PORT": str(bare_port)})
        try:
            with running(["api"], {**shared, "PORT": str(our_port)}):
                bare_url, our_url = f"http://127.0.0.1:{bare_port}", f"http://127.0.0.1:{our_port}"
                asyncio.run(up(bare_url))
                asyncio.run(up(our_url))
                for _ in range(arguments.rounds):
                    rate, times = in_process(bare_url, key, arguments.clients, arguments.seconds)
                    bare_rates.append(rate)
                    bare_times += times
                    rate, times = in_process(our_url, key, arguments.clients, arguments.seconds)
                    our_rates.append(rate)
                    our_times += times
        finally:
            bare.terminate()
            bare.wait(10)
    ours, limit = statistics.median(our_rates), statistics.median(bare_rates)
    print(f"accepted POST /api/jobs per second, one API process, {arguments.clients} clients, appendfsync always")
    for name, rate, times in (("bare aiohttp + script", limit, bare_times), ("errand", ours, our_times)):
        middle, high = statistics.median(times), percentile(times, 0.99)
        print(f"  {name:<22} {rate:8.0f}/s   p50 {middle:6.2f} ms   p99 {high:6.2f} ms")
    print(f"  ratio {ours / limit:.0%} of the bare limit (goal: 60 %)")
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
