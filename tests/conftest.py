"""A real Redis, a real development model, and the stack in this process: real HTTP, real SDK, a prefix per test."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from api.app import create_app
from api.keys import DOORS, TENANTS
from api.server import EdgeRunner
from scripts import embedded_redis
from scripts.dev_model import create_app as create_model
from scripts.probes import free_port
from shared.keys import Keys
from shared.redis import Redis, connect
from shared.settings import Settings, env_name
from shared.stores.events import EventsStore
from shared.stores.jobs import JobsStore
from tests.receiver import Receiver
from tests.scripted_model import ScriptedModel
from worker.__main__ import build
from worker.engine import Engine
from worker.tasks import HANDLERS

ROOT = Path(__file__).parents[1]
ADMIN_KEY = "ek_01M81SGW152PHX78GHNCJWQHRS_" + "a" * 43


class RedisServer:
    """A durable Redis on a private socket; tests may kill and restart one of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.url = embedded_redis.url_of(self.socket)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        command = embedded_redis.command(embedded_redis.find_server(), self.directory, self.socket)
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 20
        while not embedded_redis.answers(self.socket):
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="errand-t-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server(short_dir: Path) -> Iterator[RedisServer]:
    server = RedisServer(short_dir / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(short_dir: Path) -> Iterator[RedisServer]:
    """A server that this test alone may kill."""
    server = RedisServer(short_dir / secrets.token_hex(4))
    server.start()
    yield server
    server.stop()


class DevModel:
    """The development model on loopback, and its test controls."""

    def __init__(self, base: str) -> None:
        self.base = base

    async def faults(self, *faults: dict[str, Any]) -> None:
        await self._call("POST", "/dev/faults", list(faults))

    async def pace(self, **pace: float) -> None:
        await self._call("POST", "/dev/pace", pace)

    async def limits(self, **limits: Any) -> None:
        await self._call("POST", "/dev/limits", limits)

    async def profile(self, name: str) -> None:
        await self._call("POST", "/dev/profile", {"profile": name})

    async def stats(self, *, calls: bool = False) -> dict[str, Any]:
        return await self._call("GET", "/dev/stats" + ("?calls" if calls else ""))

    async def reset(self) -> None:
        await self.faults()
        await self.limits()
        await self.profile("openai")
        await self.pace(tokensPerSecond=0, firstTokenSeconds=0, tokensPerChunk=1)
        await self._call("DELETE", "/dev/stats")

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        async with aiohttp.ClientSession() as session, session.request(method, self.base + path, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()


@pytest.fixture(scope="session")
async def model_server() -> AsyncIterator[DevModel]:
    runner = web.AppRunner(create_model(), access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield DevModel(f"http://{host}:{port}")
    await runner.cleanup()


@pytest.fixture
async def model(model_server: DevModel) -> AsyncIterator[DevModel]:
    await model_server.reset()
    yield model_server
    await model_server.reset()


class Answer:
    """An HTTP answer, read whole."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class Member:
    """A process of a stack: what a signal does to it, the kernel does."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns. Also from a freeze, also twice."""
        self.process.kill()
        self.process.wait(20)

    def freeze(self) -> None:
        """SIGSTOP: its connections stay, nothing more is read or written."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)


class Stack:
    """API and workers of one prefix, in this process, or in processes of their own where a test ends or freezes one."""

    def __init__(self, settings: Settings, redis_url: str) -> None:
        self.settings = settings
        self.redis_url = redis_url
        self.base = ""
        self.keys = Keys(settings.redis_prefix)
        self.client: Redis = connect(redis_url)
        self.jobs = JobsStore(self.client, self.keys)
        self.events = EventsStore(self.client, self.keys)
        self.engines: list[Engine] = []
        self._runners: list[web.AppRunner] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._members: list[Member] = []
        self.session = aiohttp.ClientSession()

    async def start_api(self) -> str:
        app = create_app(self.settings)
        await app[TENANTS].ensure_admin(ADMIN_KEY)
        runner = EdgeRunner(app, self.settings, shutdown_timeout=0.5, doors=app[DOORS])
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._runners.append(runner)
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}"
        self.base = self.base or url
        return url

    async def stop_api(self) -> None:
        await self._runners.pop().cleanup()

    async def start_worker(self, lane: str = "batch", *, handlers: Any = HANDLERS, **changes: Any) -> Engine:
        """`handlers` by job type, where a test needs tasks that take a known time."""
        lanes = ["interactive", "batch"] if lane == "both" else [lane]
        engine = build(
            msgspec.structs.replace(self.settings, **changes), lanes, handlers=handlers, handle_signals=False
        )
        self.engines.append(engine)
        self._tasks.append(asyncio.create_task(engine.async_run()))
        async with asyncio.timeout(5):
            await engine.ready.wait()
        return engine

    async def stop_worker(self, engine: Engine) -> None:
        index = self.engines.index(engine)
        engine.stop()
        await self._tasks[index]

    async def spawn_worker(self, lane: str = "interactive", *, tree: Path = ROOT) -> Member:
        """A worker in a process of its own, with this stack's settings; it is alive when this returns. `tree` is the
        source that it runs."""
        member = self._spawn("worker", lane, tree=tree)
        mark = f"-{member.process.pid}-"  # workers have their pid in their name
        async with asyncio.timeout(30):
            while not any(mark in name.decode() for name in await self.client.zrange(self.keys.workers(lane), 0, -1)):
                assert member.process.poll() is None, member.log.read_text()
                await asyncio.sleep(0.02)
        return member

    async def spawn_api(self, *, tree: Path = ROOT) -> str:
        """An API in a process of its own; the address where it answers."""
        port = free_port("127.0.0.1")
        member, url = self._spawn("api", tree=tree, PORT=str(port)), f"http://127.0.0.1:{port}"
        async with asyncio.timeout(30):
            while True:
                with suppress(aiohttp.ClientError):
                    async with self.session.get(f"{url}/healthz"):
                        return url
                assert member.process.poll() is None, member.log.read_text()
                await asyncio.sleep(0.02)

    def _spawn(self, *module: str, tree: Path = ROOT, **environment: str) -> Member:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ERRAND_")}
        own = {
            env_name(field.name): str(value)
            for field in msgspec.structs.fields(Settings)
            if (value := getattr(self.settings, field.name)) not in (None, field.default)
        }
        log = self.settings.data_dir / f"{module[0]}-{len(self._members)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                env={**inherited, "ERRAND_ADMIN_KEY": ADMIN_KEY, **own, **environment},
                cwd=tree, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self._members.append(Member(process, log))
        return self._members[-1]

    def kill_worker(self, engine: Engine) -> None:
        """A worker of this process, whose tools are the test's, lets go of its jobs and its leases run out. It is no
        SIGKILL: what it has in hand may still be written. That is `spawn_worker` and `Member.kill`."""
        engine._client.connection_pool.connection_kwargs["path"] = "/nonexistent"
        for attempt in list(engine.running.values()):
            attempt._lost = True
            if attempt._task:
                attempt._task.cancel()
        self._tasks[self.engines.index(engine)].cancel()

    async def stop(self) -> None:
        for member in self._members:
            member.kill()
        for engine, task in zip(self.engines, self._tasks, strict=True):
            engine.stop()
            with suppress(asyncio.CancelledError):
                async with asyncio.timeout(10):
                    await task
            await engine.close()
        for runner in self._runners:
            await runner.cleanup()
        await self.session.close()
        await self.client.aclose()

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = ADMIN_KEY, **options: Any
    ) -> Answer:
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {key}")
        if isinstance(body, bytes):
            options["data"] = body
            headers.setdefault("Content-Type", "application/json")
        elif body is not None:
            options["json"] = body
        async with self.session.request(method, self.base + path, headers=headers, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def submit(self, job: dict[str, Any], **options: Any) -> str:
        answer = await self.call("POST", "/api/jobs", job, **options)
        assert answer.status == 202, answer.text
        return str(answer.json["jobId"])

    async def finished(self, job_id: str, **options: Any) -> Any:
        for _ in range(6):
            answer = await self.call("GET", f"/api/jobs/{job_id}?wait=10", **options)
            assert answer.status == 200, answer.text
            if answer.json["status"] in ("complete", "failed", "cancelled", "expired"):
                return answer.json
        raise AssertionError(f"not final: {answer.json}")

    async def until(self, job_id: str, status: str) -> Any:
        async with asyncio.timeout(15):
            while True:
                view = (await self.call("GET", f"/api/jobs/{job_id}")).json
                if view["status"] == status:
                    return view
                await asyncio.sleep(0.01)

    async def log(self, job_id: str) -> list[dict[str, Any]]:
        answer = await self.call("GET", f"/api/jobs/{job_id}/events?limit=1000")
        return list(answer.json["data"])

    async def tenant(self, **limits: Any) -> tuple[str, str]:
        made = await self.call("POST", "/api/admin/tenants", {"name": "other", "limits": limits})
        tenant = made.json["tenantId"]
        key = await self.call("POST", f"/api/admin/tenants/{tenant}/keys", {})
        return tenant, key.json["key"]


def settings_for(redis_url: str, model: DevModel, data_dir: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "redis_url": redis_url,
        "redis_prefix": f"t{secrets.token_hex(4)}:",
        "openai_base_url": f"{model.base}/v1",
        "openai_api_key": "none",
        "default_model": "errand-dev-extractive",
        "data_dir": data_dir,
        "retry_base_seconds": 0.05,
        "model_retries": 0,  # most tests count attempts; tests/test_upstream.py is about repeats within one
        "drain_seconds": 0.2,
        "chunk_characters": 2_000,
    }
    return Settings(**{**values, **changes})


@pytest.fixture
async def make_stack(redis_server: RedisServer, model: DevModel, tmp_path: Path) -> AsyncIterator[Any]:
    made: list[Stack] = []

    async def make(
        *, workers: tuple[str, ...] = (), redis_url: str | None = None, api: bool = True, **changes: Any
    ) -> Stack:
        url = redis_url or redis_server.url
        stack = Stack(settings_for(url, model, tmp_path, **changes), url)
        made.append(stack)
        if api:
            await stack.start_api()
        for lane in workers:
            await stack.start_worker(lane)
        return stack

    yield make
    async with AsyncExitStack() as stops:  # one that fails leaves the others to be stopped
        for stack in made:
            stops.push_async_callback(stack.stop)


@pytest.fixture
async def edge(make_stack: Any) -> Stack:
    """The API without workers."""
    stack: Stack = await make_stack()
    return stack


@pytest.fixture
async def stack(make_stack: Any) -> Stack:
    """The API and a worker on each lane."""
    made: Stack = await make_stack(workers=("interactive", "batch"))
    return made


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver of webhooks."""
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedModel]:
    """A model that answers what the test has written down."""
    server = ScriptedModel()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def hooked(make_stack: Any) -> Stack:
    """The API and a worker that may send to loopback."""
    made: Stack = await make_stack(workers=("both",), fetch_private_hosts="127.0.0.1")
    return made


def chat(text: str = "Say something.", **more: Any) -> dict[str, Any]:
    """A chat submission."""
    return {"type": "chat", "input": {"messages": [{"role": "user", "content": text}]}, **more}


def analysis(text: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A document-analysis submission of an inline text."""
    return {
        "type": "document-analysis",
        "input": {"document": {"text": text}, "tasks": list(tasks) or [{"kind": "summary"}]},
        **more,
    }
