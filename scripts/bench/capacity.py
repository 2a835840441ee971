"""What a job costs: memory and disk in Redis while it waits and while it is kept, and CPU of each process.

    ./scripts/run python -m scripts.bench.capacity [--jobs 1000] [--tokens 250] [--prompt 400]
    ./scripts/run python -m scripts.bench.capacity --replicas

Chat jobs through the whole stack, once without a worker (what a waiting job takes), then with one (what a finished one
takes, and what it cost). Memory is Redis's `used_memory`, so it holds the overhead of the allocator's size classes but
not fragmentation; below it stand the keys that a job leaves, by `MEMORY USAGE`. Disk is what the append-only file grew
by before it is rewritten. CPU is each process's own, as the kernel counts it: its inverse is what one core of it
carries. docs/scaling.md says how to size with these figures.

`--replicas`: what `?replicas=1` in REDIS_URL costs, with a replica on the same machine, disk and network left out: jobs
taken in through the store, one at a time and 64 at a time, with and without it in turn.

Needs Linux (CPU is read from /proc).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import aiohttp
import msgspec

from scripts.bench.common import ADMIN_KEY, durable_redis, fsync_probe, jiffies, record, running
from scripts.bench.stream import process, until_ready
from scripts.probes import free_port
from shared.ids import new_api_key
from shared.keys import Keys
from shared.redis import Redis, connect
from shared.specs import Lane
from shared.stores.jobs import JobsStore
from shared.stores.tenants import DEFAULT_TENANT, TenantsStore

RATE = 1_000  # tokens per second of the upstream
CHANNELS = 5_000
PREFIX = "errand:"
_ID = re.compile(r"(?:job|ten|key|req|hold)_[0-9A-Z]{26}|\b[0-9a-f]{32,64}\b|\d{4}-\d\d-\d\d")


class State(msgspec.Struct, frozen=True):
    """Redis at one moment: bytes, seconds of CPU, commands."""

    memory: int
    disk: int
    cpu_s: float
    commands: int


async def state(client: Redis) -> State:
    """What Redis says of itself."""
    info: dict[str, Any] = await client.info()
    return State(
        info["used_memory"], info["aof_current_size"], info["used_cpu_user"] + info["used_cpu_sys"],
        info["total_commands_processed"],
    )  # fmt: skip


async def submit(session: aiohttp.ClientSession, url: str, jobs: int, prompt: int) -> None:
    """Submits jobs, 32 at a time."""
    room = asyncio.Semaphore(32)

    async def one(number: int) -> None:
        words = f"{number} " + "word " * (prompt // 5)
        body = {"type": "chat", "input": {"messages": [{"role": "user", "content": words[:prompt]}]}}
        async with room, session.post(f"{url}/api/jobs", json=body) as answer:
            assert answer.status == 202, await answer.text()

    await asyncio.gather(*(one(number) for number in range(jobs)))


async def until_done(client: Redis, jobs: int) -> None:
    """Returns when so many jobs are kept as final."""
    deadline = time.monotonic() + 600
    while await client.zcard(f"{PREFIX}retention") < jobs:
        if time.monotonic() > deadline:
            raise SystemExit("the jobs did not end")
        await asyncio.sleep(0.1)


async def families(client: Redis) -> dict[str, tuple[int, int]]:
    """Keys by what they are, ids left out: (number, bytes)."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    async for key in client.scan_iter(count=1_000):
        name = _ID.sub("…", key.decode().removeprefix(PREFIX))
        count, size = found[name]
        found[name] = count + 1, size + int(await client.memory_usage(key, samples=0) or 0)
    return dict(found)


async def channels(client: Redis, url: str) -> float:
    """Bytes of Redis that a subscribed channel takes, as an API process has one per job that is read."""
    before = (await state(client)).memory
    listener = connect(url, timeout_s=None)
    pubsub: Any = listener.pubsub()
    try:
        for start in range(0, CHANNELS, 500):
            await pubsub.subscribe(*(f"{PREFIX}ev:job_{number:026}" for number in range(start, start + 500)))
        heard = 0
        while heard < CHANNELS:
            heard += await pubsub.get_message(timeout=5) is not None
        return ((await state(client)).memory - before) / CHANNELS
    finally:
        await pubsub.aclose()
        await listener.aclose()


async def measure(arguments: argparse.Namespace, stack: ExitStack) -> None:
    """Prints what was found."""
    _, key = new_api_key(1_700_000_000_000)
    url = stack.enter_context(durable_redis())
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    upstream_port, port = free_port("127.0.0.1"), free_port("127.0.0.1")
    words = [sys.executable, "-m", "scripts.bench.upstream", str(upstream_port), str(arguments.tokens), str(RATE)]
    stack.enter_context(process(words))
    ours = {
        "REDIS_URL": url, "ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": key, "PORT": str(port),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1", "OPENAI_API_KEY": "none",
        "ERRAND_WORKER_SLOTS": "64", "ERRAND_DEFAULT_MODEL": "bench",
    }  # fmt: skip
    api = stack.enter_context(running(["api"], ours))
    base, jobs = f"http://127.0.0.1:{port}", arguments.jobs
    await until_ready(base, "/healthz")
    client = connect(url, timeout_s=60)
    await client.config_set("auto-aof-rewrite-percentage", 0)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        with running(["worker", "interactive"], ours):  # what is made once is there
            await submit(session, base, 50, arguments.prompt)
            await until_done(client, 50)
        empty, api_s = await state(client), jiffies([api.pid])
        await submit(session, base, jobs, arguments.prompt)
        waiting, api_s = await state(client), jiffies([api.pid]) - api_s
        with running(["worker", "interactive"], ours) as worker:
            await until_done(client, 51)  # it has started: what that took is not the jobs'
            begun, worker_s = await state(client), jiffies([worker.pid])
            done = await client.zcard(f"{PREFIX}retention") - 50
            await until_done(client, jobs + 50)
            kept, worker_s = await state(client), jiffies([worker.pid]) - worker_s
            connections = len(await client.client_list()) - 1
        ran = jobs - done
        found = await families(client)
        events = 0
        async for name in client.scan_iter(f"{PREFIX}log:*", count=1_000):
            events += await client.xlen(name)
    a_channel = await channels(client, url)
    await client.aclose()
    logs = next((size for name, (_, size) in found.items() if name.startswith("log:")), 0)
    print(f"{jobs} chat jobs, prompts of {arguments.prompt} characters, answers of {arguments.tokens} tokens")
    print(
        f"  a waiting job    {(waiting.memory - empty.memory) / jobs / 1024:6.2f} kB of memory, "
        f"{(waiting.disk - empty.disk) / jobs / 1024:6.2f} kB of append-only file"
    )
    print(f"  a kept job       {(kept.memory - empty.memory) / jobs / 1024:6.2f} kB of memory, "
          f"{(kept.disk - empty.disk) / jobs / 1024:6.2f} kB of append-only file in all, "
          f"{events / (jobs + 50):.1f} events, {logs / max(1, events):.0f} bytes each")  # fmt: skip
    for name, (count, size) in sorted(found.items(), key=lambda item: -item[1][1])[:8]:
        print(f"    {name:<28} {count:6} keys, {size / count:8.0f} bytes each")
    print(f"  a stream that is read: {a_channel:.0f} bytes of Redis for its channel")
    print(f"  connections to Redis of one API process and one worker: {connections}")
    print(
        f"  to take one in:  API {api_s / jobs * 1000:.2f} ms of CPU, "
        f"Redis {(waiting.cpu_s - empty.cpu_s) / jobs * 1000:.2f} ms"
    )
    print(f"  to run one:      worker {worker_s / ran * 1000:.2f} ms of CPU, "
          f"Redis {(kept.cpu_s - begun.cpu_s) / ran * 1000:.2f} ms in "
          f"{(kept.commands - begun.commands) / ran:.1f} commands, those within scripts included")  # fmt: skip


async def admitted(url: str, prefix: str, jobs: int, at_once: int) -> float:
    """Seconds that it takes to take in jobs through the store, as the API does."""
    client = connect(url)
    store, fields, room = JobsStore(client, Keys(prefix)), record(), asyncio.Semaphore(at_once)

    async def one() -> None:
        async with room:
            await store.admit(
                tenant=DEFAULT_TENANT, lane=Lane.BATCH, record=fields, class_ms=60_000, expires_in_ms=3_600_000
            )

    await TenantsStore(client, Keys(prefix)).ensure_admin(ADMIN_KEY)
    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(jobs)))
    took = time.perf_counter() - began
    await client.aclose()
    return took


async def replicated(stack: ExitStack) -> None:
    """Prints what the word of a replica costs."""
    url, replica = stack.enter_context(durable_redis()), stack.enter_context(durable_redis())
    primary, follower = connect(url), connect(replica)
    # A replica finds its primary by host and port only.
    port = free_port("127.0.0.1")
    await primary.execute_command("CONFIG", "SET", "port", port)
    await follower.execute_command("REPLICAOF", "127.0.0.1", port)
    while (await follower.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)
    for at_once, jobs in ((1, 300), (64, 4_000)):
        times: dict[str, list[float]] = {"": [], "?replicas=1": []}
        for number in range(5):
            for option, found in times.items():
                found.append(await admitted(url + option, f"b{at_once}{number}{option[1:4]}:", jobs, at_once) / jobs)
        plain, strict = (statistics.median(found) for found in times.values())
        print(
            f"{at_once:3} at a time: {1 / plain:7,.0f}/s, with ?replicas=1 {1 / strict:7,.0f}/s ({plain / strict:.0%});"
            f" {plain * 1000:.2f} and {strict * 1000:.2f} ms each"
        )
    await primary.aclose()
    await follower.aclose()


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.capacity", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000, help="(default %(default)s)")
    parser.add_argument("--tokens", type=int, default=250, help="of an answer (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=400, help="characters (default %(default)s)")
    parser.add_argument("--replicas", action="store_true", help="what ?replicas=1 costs, instead")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        asyncio.run(replicated(stack) if arguments.replicas else measure(arguments, stack))
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
