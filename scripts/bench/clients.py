"""Many streams at once: clients that are cut off at random and resume, and clients that only wait.

    ./scripts/run python -m scripts.bench.clients reconnects [--clients 500] [--events 1000] [--processes 2]
    ./scripts/run python -m scripts.bench.clients idle [--clients 5000]
    ./scripts/run python -m scripts.bench.clients all

`reconnects`: real jobs report events at random moments while clients read them at `/api/jobs/{id}/stream`, spread over
several API processes. Each client is cut off again and again, wherever it happens to be (before the head, within the
replay, live), comes back to any of the processes after a random pause and resumes with Last-Event-ID. In the middle one
of the processes gets SIGTERM and is started again. Each client checks number and content of everything it gets: exit
code 1 unless all of them have seen each event once, in order, to the final one and `[DONE]`.

`idle`: one API process without a worker; each client reads the stream of a queued job of its own, and nothing happens.
Memory and CPU of the process, heartbeats, connections to Redis, and the time from a `DELETE` to the event at the one
client whom it concerns. Beside it a bare aiohttp server that holds as many silent streams for the same clients.

Needs Linux (memory and CPU are read from /proc) and as many file descriptors as clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import msgspec

from scripts.bench.common import durable_redis, fsync_probe, jiffies, percentile, running
from scripts.bench.stream import process, redis_pid, until_ready
from scripts.probes import require_port
from shared.errors import ConfigurationError
from shared.ids import new_api_key
from shared.redis import connect

if TYPE_CHECKING:
    from worker.context import JobContext

HOST = "127.0.0.1"
READY_S = 30.0  # a process has so long to answer
FINAL = frozenset({"job.complete", "job.failed", "job.cancelled", "job.expired"})
CHANCE = random.Random()  # noqa: S311 - moments and pauses
SETTLE_S = 5.0  # what is left of connecting has ended by then, and each job's place in the queue was told
IDLE_S = 30.0
CANCELS = 20
WARM = 50  # streams that come and go before memory is first measured

BARE = """
import asyncio, os, uvloop
from aiohttp import web
async def main():
    over = asyncio.Event()
    async def stream(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": ready\\n")
        while not over.is_set():
            try:
                async with asyncio.timeout(15):
                    await over.wait()
            except TimeoutError:
                await response.write(b": waiting\\n")
        return response
    app = web.Application()
    app.router.add_get("/stream", stream)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"]), backlog=1024).start()
    await over.wait()
uvloop.run(main())
"""


# -- the jobs of `reconnects` ----------------------------------------------------------------------------------------


class Told(msgspec.Struct):
    """The result of a job that reports events."""

    events: int


async def tell(_: Any, context: JobContext) -> Told:
    """The task: reports `BENCH_EVENTS` numbered events at random moments within about `BENCH_SECONDS`."""
    events, seconds = int(os.environ["BENCH_EVENTS"]), float(os.environ["BENCH_SECONDS"])
    due = time.monotonic()
    for number in range(1, events + 1):
        due += CHANCE.expovariate(events / seconds)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        context.report.event("delta", text=str(number))
    return Told(events)


def work() -> int:
    """`python -m worker interactive`, with the task above registered as any is."""
    from worker.__main__ import main as worker_main

    sys.argv[1:] = ["interactive"]
    return worker_main({"chat": tell})


# -- clients that are cut off ----------------------------------------------------------------------------------------


class Tally:
    """What all clients met together."""

    def __init__(self) -> None:
        self.cuts = self.cuts_before_head = self.cuts_in_replay = 0
        self.sent_on = self.dropped = self.broken = self.refused = self.other_answers = self.ended_by_204 = 0

    def met(self) -> dict[str, int]:
        """The counts by name."""
        return dict(vars(self))


class Client:
    """One client over all its connections: what it has seen so far."""

    def __init__(self, job_id: str, ports: Sequence[int], key: str, cut_every: float, tally: Tally) -> None:
        self.job_id, self.ports, self.key, self.cut_every, self.tally = job_id, ports, key, cut_every, tally
        self.newest = self.events = self.told = self.gaps = self.duplicates = self.wrong = 0
        self.retry_s = 2.0
        self.final = ""
        self.done = False

    async def run(self) -> None:
        """Reads to the end of the job's events, over as many connections as it takes."""
        while not self.done:
            pause_s = await self.read()
            await asyncio.sleep(pause_s)

    async def read(self) -> float:
        """Reads on one connection, to its cut or its end; how long to wait before the next one, in seconds."""
        connection = Connection(self)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, HOST, CHANCE.choice(self.ports))
        except OSError:
            self.tally.refused += 1  # the process that is being started again
            return CHANCE.uniform(0.05, 0.3)
        try:
            return await connection.ended
        finally:
            connection.transport.abort()

    def see(self, number: int, event: dict[str, Any]) -> None:
        """Checks an event that came."""
        self.events += 1
        if number <= self.newest:
            self.duplicates += 1
            return
        self.gaps += number - self.newest - 1
        self.newest = number
        if self.final or event["seq"] != number:
            self.wrong += 1
        if event["type"] == "delta":
            self.told += 1
            self.wrong += event["text"] != str(self.told)
        elif event["type"] in FINAL:
            self.final = event["type"]


class Connection(asyncio.Protocol):
    """One connection of a client, to its cut or its end. `ended` gets the pause before the next one, in seconds."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.raw = self.text = b""
        self.status = 0
        self.live = self.said_done = False
        self.left = 1 + int(CHANCE.expovariate(1 / client.cut_every))
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport = cast(asyncio.Transport, transport)
        client = self.client
        resume = f"Last-Event-ID: {client.newest}\r\n" if client.newest else ""
        self.transport.write(
            f"GET /api/jobs/{client.job_id}/stream HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {client.key}\r\n{resume}\r\n".encode()
        )
        if CHANCE.random() < 0.05:  # not only between two events: also before the head, or while nothing comes
            self.timer = asyncio.get_running_loop().call_later(CHANCE.uniform(0, 0.05), self.cut)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's protocol."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.ended.done():
            self.client.tally.broken += bool(self.status)
            self.client.tally.dropped += not self.status
            self.ended.set_result(self.client.retry_s)

    def cut(self) -> None:
        """Breaks the connection off; what came and was not looked at yet is lost. Half of the cuts are a reset."""
        if self.ended.done():
            return
        tally = self.client.tally
        tally.cuts += 1
        tally.cuts_before_head += not self.status
        tally.cuts_in_replay += bool(self.status) and not self.live
        if CHANCE.random() < 0.5:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.transport.abort()
        # Mostly a moment; now and then so long that more than one page of the log has to be read again.
        self.ended.set_result(CHANCE.uniform(1.0, 5.0) if CHANCE.random() < 0.1 else CHANCE.expovariate(1 / 0.15))

    def end(self, pause_s: float) -> None:
        """The response has ended."""
        if not self.ended.done():
            self.transport.abort()
            self.ended.set_result(pause_s)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        if self.ended.done():
            return
        self.raw += data
        if not self.status:
            head, found, rest = self.raw.partition(b"\r\n\r\n")
            if not found:
                return
            self.status, self.raw = int(head.split(b" ", 2)[1]), rest
            if self.status == 204:
                self.client.tally.ended_by_204 += 1  # it was cut off between the final event and the end
                self.client.done = bool(self.client.final)
            elif self.status != 200:
                self.client.tally.other_answers += 1
            if self.status != 200:
                self.end(CHANCE.uniform(0.05, 0.3))
                return
        while not self.ended.done():
            size, found, rest = self.raw.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                return
            self.raw = rest[length + 2 :]
            if not length:
                self.over()
                return
            *blocks, self.text = (self.text + rest[:length]).split(b"\n\n")
            for block in blocks:
                self.take(block)
                if self.ended.done():
                    return

    def over(self) -> None:
        """The response is whole: either all was said, or the process stops and the client is to come back."""
        client = self.client
        if self.said_done:
            client.done = True
        else:
            client.tally.sent_on += 1
        self.end(client.retry_s)

    def take(self, block: bytes) -> None:
        """One block of the stream."""
        number, data, kind = b"", b"", b""
        for line in block.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"id":
                number = value
            elif name == b"data":
                data = value
            elif name == b"event":
                kind = value
            elif name == b"retry":
                self.client.retry_s = int(value) / 1000
        if data == b"[DONE]":
            self.said_done = bool(self.client.final)
            self.client.wrong += not self.client.final
        elif kind == b"replay.end":
            self.live = True
        elif number:
            self.client.see(int(number), msgspec.json.decode(data))
            self.left -= 1
            if not self.left:
                self.cut()


async def read_all(order: dict[str, Any]) -> dict[str, Any]:
    """All clients of `reconnects`; what they saw."""
    tally = Tally()
    jobs = order["jobs"]
    clients = [
        Client(jobs[number % len(jobs)], order["ports"], order["key"], order["cut_every"], tally)
        for number in range(order["clients"])
    ]
    started = time.perf_counter()
    tasks = [asyncio.create_task(client.run()) for client in clients]
    _, late = await asyncio.wait(tasks, timeout=order["limit_s"])
    took_s = time.perf_counter() - started
    for task in late:
        task.cancel()
    failed = [str(error) for task in tasks if task not in late and (error := task.exception())]
    return {
        **tally.met(), "took_s": took_s, "unfinished": sum(not client.done for client in clients), "failed": failed[:3],
        "events": sum(client.events for client in clients),
        "gaps": sum(client.gaps for client in clients),
        "duplicates": sum(client.duplicates for client in clients),
        "wrong": sum(client.wrong for client in clients),
        "incomplete": sum(client.final != "job.complete" or client.told != order["events"] for client in clients),
    }  # fmt: skip


# -- clients that only wait ------------------------------------------------------------------------------------------


class Waiting(asyncio.Protocol):
    """A client that reads and keeps nothing. `heard` is resolved with the time at which `mark` came."""

    __slots__ = ("crowd", "heard", "mark", "recent", "request", "transport")

    def __init__(self, crowd: Crowd, request: bytes, mark: bytes) -> None:
        self.crowd, self.request, self.mark, self.recent = crowd, request, mark, b""
        self.heard: asyncio.Future[float] | None = asyncio.get_running_loop().create_future()

    def await_mark(self, mark: bytes) -> asyncio.Future[float]:
        """The time at which `mark` will have come."""
        self.mark, self.recent = mark, b""
        self.heard = asyncio.get_running_loop().create_future()
        return self.heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport = cast(asyncio.Transport, transport)
        self.crowd.open += 1
        self.transport.write(self.request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's protocol."""
        self.crowd.open -= 1
        heard, self.heard = self.heard, None
        if heard is not None and not heard.done():
            heard.set_exception(ConnectionResetError("the server closed a stream"))

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        self.crowd.bytes += len(data)
        self.crowd.heartbeats += data.count(b": waiting")
        if self.heard is not None:
            self.recent += data
            if self.mark in self.recent:
                if not self.heard.done():
                    self.heard.set_result(time.perf_counter())
                self.heard, self.recent = None, b""


class Crowd:
    """The clients of `idle`, in a process of their own."""

    def __init__(self) -> None:
        self.open = self.bytes = self.heartbeats = 0
        self.port, self.headers = 0, ""
        self.clients: list[Waiting] = []

    async def connect(self, order: dict[str, Any]) -> dict[str, Any]:
        """Opens a stream on each of the paths, many at a time; how long until all had their first bytes."""
        self.port = order["port"]
        self.headers = "".join(f"{name}: {value}\r\n" for name, value in order["headers"].items())
        loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(200)

        async def one(path: str) -> None:
            request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{self.headers}\r\n".encode()
            async with gate:
                client = Waiting(self, request, order["mark"].encode())
                first = client.heard
                await loop.create_connection(lambda: client, HOST, self.port)
                assert first is not None
                await first
            self.clients.append(client)

        started = time.perf_counter()
        try:
            async with asyncio.timeout(300):
                await asyncio.gather(*(one(path) for path in order["paths"]))
        except OSError as error:
            raise SystemExit(f"{error!r} with {self.open} streams open; are there enough file descriptors?") from None
        return {"took_s": time.perf_counter() - started}

    async def cancel(self, order: dict[str, Any]) -> dict[str, Any]:
        """Cancels jobs, one after the other; ms from each DELETE to the event at its client."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        by_path = {client.request.split(b" ", 2)[1].decode(): client for client in self.clients}
        times = []
        for job_id in order["jobs"]:
            arrival = by_path[f"/api/jobs/{job_id}/stream"].await_mark(b"event: job.cancelled")
            started = time.perf_counter()
            writer.write(f"DELETE /api/jobs/{job_id} HTTP/1.1\r\nHost: {HOST}\r\n{self.headers}\r\n".encode())
            async with asyncio.timeout(30):
                times.append((await arrival - started) * 1000)
                head = await reader.readuntil(b"\r\n\r\n")
                (length,) = (line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length))
            await asyncio.sleep(CHANCE.uniform(0.1, 0.3))
        writer.close()
        return {"ms": times}

    async def close(self) -> dict[str, Any]:
        """Closes all streams."""
        for client in self.clients:
            client.transport.abort()
        self.clients.clear()
        await asyncio.sleep(0.2)
        return {}

    def counts(self) -> dict[str, Any]:
        """What has come so far."""
        return {"open": self.open, "bytes": self.bytes, "heartbeats": self.heartbeats}


async def serve_orders() -> None:
    """The clients' process: one order a line on standard input, one answer a line on standard output, to the end of
    the input."""
    crowd = Crowd()
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        match order["op"]:
            case "read":
                found = await read_all(order)
            case "connect":
                found = await crowd.connect(order)
            case "cancel":
                found = await crowd.cancel(order)
            case "close":
                found = await crowd.close()
            case _:
                found = crowd.counts()
        print(json.dumps(found), flush=True)


# -- the benchmark ---------------------------------------------------------------------------------------------------


class Load:
    """The clients' process, as the benchmark sees it."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child

    def tell(self, op: str, **order: Any) -> None:
        """Gives an order."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({"op": op, **order}) + "\n")
        self.child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to the order. Ends the benchmark when the clients failed: they have said why."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit("the clients failed")
        return dict(json.loads(line))

    def ask(self, op: str, **order: Any) -> dict[str, Any]:
        """Both."""
        self.tell(op, **order)
        return self.answer()


@contextmanager
def clients_process() -> Iterator[Load]:
    """A process for the clients, on uvloop."""
    child = subprocess.Popen(
        [sys.executable, "-m", "scripts.bench.clients", "--load"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        load = Load(child)
        load.ask("counts")
        yield load
    finally:
        child.terminate()
        child.wait(20)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def steady_port() -> int:
    """A free port below those that the kernel gives to clients: while its server is away, no client can be given it,
    nor connect to itself."""
    while True:
        port = CHANCE.randrange(20_000, 32_000)
        try:
            require_port(HOST, port)
            return port
        except ConfigurationError:
            continue


def many_files() -> None:
    """Raises this process's and its children's bound of open files as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def wait_for(port: int, path: str) -> None:
    """Waits until a server answers well, for a bounded time."""
    asyncio.run(asyncio.wait_for(until_ready(f"http://{HOST}:{port}", path), READY_S))


def rss_kb(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise SystemExit(f"process {pid} has ended")


async def submit(port: int, key: str, jobs: int) -> list[str]:
    """Submits jobs over the API; their ids."""
    body = {"type": "chat", "input": {"messages": [{"role": "user", "content": "Tell me about the harbour."}]}}
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=32)) as session:

        async def one() -> str:
            async with session.post(f"http://{HOST}:{port}/api/jobs", json=body) as response:
                assert response.status == 202, await response.text()
                return str((await response.json())["jobId"])

        return list(await asyncio.gather(*(one() for _ in range(jobs))))


def reconnects(options: argparse.Namespace) -> bool:
    """Clients that are cut off. Whether each saw everything once."""
    jobs = max(1, options.clients // options.clients_per_job)
    _, key = new_api_key(1_700_000_000_000)
    with ExitStack() as stack:
        redis_url = stack.enter_context(durable_redis())
        ours = {
            "REDIS_URL": redis_url, "ERRAND_DATA_DIR": stack.enter_context(tempfile.TemporaryDirectory()),
            "ERRAND_ADMIN_KEY": key, "ERRAND_WORKER_SLOTS": str(jobs), "BENCH_EVENTS": str(options.events),
            "BENCH_SECONDS": str(options.seconds),
        }  # fmt: skip
        ports = [steady_port() for _ in range(options.processes)]
        api = [stack.enter_context(running(["api"], {**ours, "PORT": str(port)})) for port in ports]
        worker = stack.enter_context(running(["scripts.bench.clients", "--worker"], ours))
        for port in ports:
            wait_for(port, "/readyz")
        load = stack.enter_context(clients_process())
        order = {"jobs": asyncio.run(submit(ports[0], key, jobs)), "ports": ports, "key": key,
                 "clients": options.clients, "events": options.events, "cut_every": options.cut_every,
                 "limit_s": 3 * options.seconds + 60}  # fmt: skip
        pids = {"worker": worker.pid, "Redis": redis_pid(redis_url)}
        if options.processes > 1:
            pids["the API process that stays"] = api[0].pid
        load.tell("read", **order)
        time.sleep(options.seconds / 2)
        stopped = time.perf_counter()
        api[-1].terminate()
        code = api[-1].wait(20)
        stop_s = time.perf_counter() - stopped
        time.sleep(1)  # meanwhile clients find nobody there
        stack.enter_context(running(["api"], {**ours, "PORT": str(ports[-1])}))
        wait_for(ports[-1], "/healthz")
        away_s = time.perf_counter() - stopped
        found = load.answer()
        cpu_s = {name: jiffies([pid]) for name, pid in pids.items()}
    print(
        f"reconnects: {options.clients} clients on {options.processes} API processes, {options.clients_per_job} to a "
        f"job: {jobs} jobs of {options.events} events at random moments in about {options.seconds:g} s"
    )
    print(
        f"  {found['events']:,} events in {found['took_s']:.1f} s, {found['events'] / found['took_s']:,.0f}/s delivered"
        f" (the jobs set the pace); CPU: {', '.join(f'{name} {used:.1f} s' for name, used in cpu_s.items())}"
    )
    print(
        f"  {found['cuts']:,} cuts by clients ({found['cuts_before_head']:,} before the head, "
        f"{found['cuts_in_replay']:,} in the replay); {found['ended_by_204']} clients cut after the final event got 204"
    )
    print(
        f"  one process stopped by SIGTERM (exit code {code} after {stop_s:.2f} s, back after {away_s:.1f} s): "
        f"{found['sent_on']} streams sent on with `retry:`, {found['broken']} broken off without a word, "
        f"{found['dropped']} connections closed before an answer, {found['refused']:,} refused meanwhile, "
        f"{found['other_answers']} answers but 200 and 204"
    )
    print(
        f"  gaps {found['gaps']}, duplicates {found['duplicates']} (goal: 0, 0); wrong or out of order "
        f"{found['wrong']}, clients without all events {found['incomplete']}, without an end {found['unfinished']}"
    )
    for text in found["failed"]:
        print(f"  a client failed: {text}")
    faults = ("gaps", "duplicates", "wrong", "incomplete", "unfinished")
    return not any(found[name] for name in faults) and code == 0 and not found["failed"]


class Held(msgspec.Struct):
    """What one server used for its silent streams; kB and seconds."""

    before_kb: int
    connected_kb: int
    idle_kb: int
    connect_s: float
    cpu_s: float
    redis_cpu_s: float
    heartbeats: int
    received: int


def hold(load: Load, pid: int, redis: int | None, paths: Sequence[str], idle_s: float, **order: Any) -> Held:
    """Connects a client to each of the paths, and lets them wait."""
    load.ask("connect", paths=paths[:WARM], **order)
    load.ask("close")
    time.sleep(SETTLE_S)
    before_kb = rss_kb(pid)
    took = load.ask("connect", paths=paths, **order)
    time.sleep(SETTLE_S)
    connected_kb, first = rss_kb(pid), load.ask("counts")
    cpu_s, redis_s = jiffies([pid]), jiffies([redis]) if redis else 0.0
    time.sleep(idle_s)
    cpu_s, redis_s = jiffies([pid]) - cpu_s, (jiffies([redis]) if redis else 0.0) - redis_s
    idle_kb, last = rss_kb(pid), load.ask("counts")
    if last["open"] != len(paths):
        raise SystemExit(f"only {last['open']} of {len(paths)} streams are open")
    heartbeats, received = (last[name] - first[name] for name in ("heartbeats", "bytes"))
    return Held(before_kb, connected_kb, idle_kb, took["took_s"], cpu_s, redis_s, heartbeats, received)


async def redis_connections(url: str) -> tuple[int, list[int]]:
    """(connections of others than ourselves, the number of channels of each that subscribes to any)."""
    client = connect(url)
    try:
        own = str(await client.client_id())
        others = [row for row in await client.client_list() if row["id"] != own]
        return len(others), [int(row["sub"]) for row in others if int(row["sub"])]
    finally:
        await client.aclose()


def idle(options: argparse.Namespace) -> bool:
    """Clients that only wait. Whether their memory is within the goal and one subscriber serves them all."""
    count, idle_s = options.clients, options.seconds
    _, key = new_api_key(1_700_000_000_000)
    with ExitStack() as stack:
        redis_url = stack.enter_context(durable_redis())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ours = {"REDIS_URL": redis_url, "ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": key}
        port = steady_port()
        # Taken in by another process, so that nothing of it is left in the memory of the one that is measured.
        with running(["api"], {**ours, "PORT": str(port)}):
            wait_for(port, "/healthz")
            jobs = asyncio.run(submit(port, key, count))
        with running(["api"], {**ours, "PORT": str(port)}) as api, clients_process() as load:
            wait_for(port, "/healthz")
            headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {key}"}
            paths = [f"/api/jobs/{job_id}/stream" for job_id in jobs]
            redis = redis_pid(redis_url)
            our = hold(load, api.pid, redis, paths, idle_s, port=port, headers=headers, mark="replay.end")
            connections, subscribers = asyncio.run(redis_connections(redis_url))
            chosen = jobs[:: max(1, count // CANCELS)][:CANCELS]
            times = load.ask("cancel", jobs=chosen)["ms"]
        bare_file = Path(folder) / "bare.py"
        bare_file.write_text(BARE)
        port = steady_port()
        with process([sys.executable, str(bare_file)], PORT=str(port)) as server, clients_process() as load:
            wait_for(port, "/")
            bare = hold(load, server.pid, None, ["/stream"] * count, idle_s, port=port, headers={}, mark=": ready")
    print(f"idle: {count} clients on one API process, each reads the stream of a queued job of its own")
    for name, held in (("bare aiohttp", bare), ("errand", our)):
        each = (held.idle_kb - held.before_kb) / count
        print(
            f"  {name:<13} {each:5.1f} kB a client (memory {held.before_kb / 1024:.1f} MB before, "
            f"{held.connected_kb / 1024:.1f} MB when all were connected, {held.idle_kb / 1024:.1f} MB at the end); "
            f"connected in {held.connect_s:.1f} s; in {idle_s:g} s of idleness {held.cpu_s / idle_s:.1%} of a core, "
            f"{held.heartbeats:,} heartbeats, {held.received:,} bytes"
        )
    ours_kb, bare_kb = (our.idle_kb - our.before_kb) / count, (bare.idle_kb - bare.before_kb) / count
    print(f"  {ours_kb:.1f} kB a client (goal: <= 40), {ours_kb - bare_kb:+.1f} kB beside the bare server")
    print(
        f"  Redis: {connections} connections of the API, {len(subscribers)} of them subscribed (goal: 1), to "
        f"{sum(subscribers):,} channels; its CPU while all idle {our.redis_cpu_s / idle_s:.1%} of a core"
    )
    print(
        f"  DELETE of a job to the event at its client: p50 {statistics.median(times):.1f} ms, "
        f"p90 {percentile(times, 0.9):.1f} ms, max {max(times):.1f} ms of {len(times)}"
    )
    return ours_kb <= 40 and len(subscribers) == 1


def main() -> int:
    """The command. Returns its exit code."""
    if sys.argv[1:] == ["--worker"]:
        return work()
    if sys.argv[1:] == ["--load"]:
        import uvloop

        uvloop.run(serve_orders())
        return 0
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.clients", description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True, metavar="reconnects|idle|all")
    part = parts.add_parser(
        "reconnects", help="clients that are cut off at random and resume: nothing lost, nothing twice"
    )
    part.add_argument("--clients", type=int, default=500, help="(default %(default)s)")
    part.add_argument("--events", type=int, default=1000, help="that each job reports (default %(default)s)")
    part.add_argument("--processes", type=int, default=2, help="of the API (default %(default)s)")
    part.add_argument("--clients-per-job", type=int, default=10, help="that read the same job (default %(default)s)")
    part.add_argument(
        "--cut-every", type=float, default=150.0, help="events of a client, on average (default %(default)s)"
    )
    part.add_argument("--seconds", type=float, default=20.0, help="that a job takes, about (default %(default)s)")
    part.set_defaults(run=[reconnects])
    part = parts.add_parser("idle", help="clients that only wait: memory, CPU, connections, latency of an event")
    part.add_argument("--clients", type=int, default=5000, help="(default %(default)s)")
    part.add_argument("--seconds", type=float, default=IDLE_S, help="of idleness (default %(default)s)")
    part.set_defaults(run=[idle])
    parts.add_parser("all", help="both, with their defaults")
    options = parser.parse_args()
    chosen = [options] if options.part != "all" else [parser.parse_args([name]) for name in ("reconnects", "idle")]
    # With `finally`, also when it is stopped from outside: the processes it started end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    many_files()
    good = [run(options) for options in chosen for run in options.run]
    print(f"  {fsync_probe()}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
