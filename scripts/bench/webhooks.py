"""Deliveries to webhooks that one worker makes, beside a bare aiohttp client that posts the same bodies, in one run.

    ./scripts/run python -m scripts.bench.webhooks [--deliveries 3000] [--rounds 3] [--endpoints 1 8]

The deliveries are noted as the end of cancelled jobs, on a Redis with `appendfsync always`, while the worker is
stopped; the clock begins with the work, and ends when none is pending. The receiver is a process of its own that reads
each request whole and answers 200. An endpoint has at most eight requests under way, as the bare client has.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import aiohttp
import redis

from scripts.bench.common import durable_redis, fsync_probe, jiffies, paused, record, running
from shared.jobs import hook_field
from shared.keys import Keys
from shared.redis import connect
from shared.specs import Lane
from shared.stores.jobs import JobsStore
from shared.stores.tenants import DEFAULT_TENANT, TenantsStore
from shared.stores.webhooks import WebhooksStore
from shared.webhook_signing import new_secret, signed_headers
from shared.webhooks import aim, mark_of
from worker.webhooks.courier import MOST_EACH

ADMIN_KEY = "ek_01M81SGW152PHX78GHNCJWQHRS_" + "a" * 43
OPENED = frozenset({("127.0.0.1", None)})
AT_ONCE = 100


class Figure(NamedTuple):
    """One round."""

    rate: float
    cpu_us: float
    commands: float


class Answering(asyncio.Protocol):
    """Reads requests whole, answers each."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        assert self.transport is not None
        self.read += data
        while (end := self.read.find(b"\r\n\r\n")) >= 0:
            head = self.read[:end].lower()
            size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self.read) < end + 4 + size:
                return
            self.read = self.read[end + 4 + size :]
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def tell(ports: list[int], path: Path) -> None:
    """Writes the ports to a file that is there at once or not at all."""
    new = path.with_suffix(".new")
    new.write_text(" ".join(map(str, ports)))
    new.rename(path)


async def receive(count: int, path: str) -> None:
    """Listens on so many ports, which it writes to `path`, until it is stopped."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Answering, "127.0.0.1", 0) for _ in range(count)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    await asyncio.to_thread(tell, ports, Path(path))
    await asyncio.Event().wait()


async def noted(url: str, prefix: str, ports: list[int], count: int) -> bytes:
    """Notes deliveries to these endpoints in turn; the body of one."""
    client = connect(url)
    keys = Keys(prefix)
    jobs, store = JobsStore(client, keys), WebhooksStore(client, keys)
    await TenantsStore(client, keys).ensure_admin(ADMIN_KEY)
    await store.secret(DEFAULT_TENANT)

    async def one(number: int) -> None:
        target = f"http://127.0.0.1:{ports[number % len(ports)]}/hook"
        hook = hook_field(target, ["job.cancelled"], mark_of(aim(target, OPENED)), 600_000)
        admitted = await jobs.admit(
            tenant=DEFAULT_TENANT, lane=Lane.BATCH, record={**record(), "hook": hook}, class_ms=0, expires_in_ms=600_000
        )
        await jobs.cancel(DEFAULT_TENANT, admitted.job_id)

    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(one(number) for number in range(start, min(count, start + AT_ONCE))))
    (row, *_), _ = await store.listed(DEFAULT_TENANT, limit=1, after=None, status=None, job_id=None)
    body = bytes((await store.show(DEFAULT_TENANT, row.delivery_id)).payload)
    await client.aclose()
    return body


def ours(url: str, ports: list[int], count: int) -> tuple[Figure, bytes]:
    """One round of a worker; and the body of a delivery."""
    prefix = f"b{time.monotonic_ns()}:"
    client: Any = redis.Redis.from_url(url)
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "REDIS_URL": url, "ERRAND_REDIS_PREFIX": prefix, "ERRAND_DATA_DIR": folder, "ERRAND_DRAIN_SECONDS": "0",
            "ERRAND_FETCH_PRIVATE_HOSTS": "127.0.0.1",
        }  # fmt: skip
        with running(["scripts.bench.worker", "interactive"], environment) as process:
            while not client.scard(f"{prefix}idle:interactive"):
                time.sleep(0.02)
            pids = [process.pid]
            with paused(pids):
                body = asyncio.run(noted(url, prefix, ports, count))
                cpu, commands = jiffies(pids), client.info("commandstats")["cmdstat_evalsha"]["calls"]
                started = time.perf_counter()
            while client.zcard(Keys(prefix).undelivered):
                time.sleep(0.002)
            seconds = time.perf_counter() - started
            spent = jiffies(pids) - cpu
            commands = client.info("commandstats")["cmdstat_evalsha"]["calls"] - commands
    client.flushall()
    return Figure(count / seconds, spent * 1e6 / count, commands / count), body


async def bare(ports: list[int], count: int, body: bytes) -> float:
    """An aiohttp client with one session and eight requests an endpoint under way, signed likewise: requests per
    second."""
    left, secret = iter(range(count)), new_secret()

    async def post(session: aiohttp.ClientSession, port: int) -> None:
        for number in left:
            headers = signed_headers([secret], f"dlv_{number:026d}", int(time.time()), body)
            async with session.post(f"http://127.0.0.1:{port}/hook", data=body, headers=headers) as response:
                await response.read()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"}) as session:
        started = time.perf_counter()
        await asyncio.gather(*(post(session, port) for port in ports for _ in range(MOST_EACH)))
        return count / (time.perf_counter() - started)


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.webhooks", description=__doc__.partition("\n")[0])
    parser.add_argument("--deliveries", type=int, default=3_000, help="of each round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default %(default)s)")
    parser.add_argument("--endpoints", type=int, nargs="+", default=[1, 8], help="origins (default 1 8)")
    parser.add_argument("--receive", nargs=2, metavar=("COUNT", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import uvloop

    if arguments.receive is not None:
        uvloop.run(receive(int(arguments.receive[0]), arguments.receive[1]))
        return 0
    rates: dict[int, list[float]] = {}
    figures: dict[int, list[Figure]] = {}
    size = 0
    with durable_redis() as url, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ports")
        with running(["scripts.bench.webhooks", "--receive", str(max(arguments.endpoints)), path], {}):
            while not os.path.exists(path):
                time.sleep(0.02)
            ports = [int(word) for word in Path(path).read_text().split()]
            for _ in range(arguments.rounds):
                for count in arguments.endpoints:
                    figure, body = ours(url, ports[:count], arguments.deliveries)
                    figures.setdefault(count, []).append(figure)
                    size = len(body)
                    rates.setdefault(count, []).append(uvloop.run(bare(ports[:count], arguments.deliveries, body)))
    print(f"deliveries of one worker, {arguments.deliveries} due, bodies of {size} bytes, appendfsync always")
    for count in arguments.endpoints:
        rate, cpu, commands = (statistics.median(column) for column in zip(*figures[count], strict=True))
        limit = statistics.median(rates[count])
        print(
            f"  {count} endpoint(s): {rate:6.0f}/s, {cpu:5.0f} µs CPU and {commands:.2f} scripts each; "
            f"bare client {limit:6.0f}/s, a share of {rate / limit:.2f}"
        )
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
