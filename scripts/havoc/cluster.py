"""The processes of a chaos run: Redis, the development model, several APIs and workers, each started as the Procfile
does, ended by pid, and started again by us when a fault ended it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from scripts import embedded_redis
from scripts.probes import free_port
from shared.ids import new_api_key

LEASE_S = 3.0
SKEW_S = 600  # one API and one worker are so far ahead, another worker so far behind
APIS = 3
WORKERS = 4
UP_S = 90.0
LOADED_S = 120.0  # Redis reads an append-only file of a long run, on a busy machine


class Member:
    """One process. `expected` is set while a fault of ours ends it: any other end is a violation."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.name = name
        self._command = command
        self._environment = dict(environment)
        self._cwd = cwd
        self._log = log
        self.process: asyncio.subprocess.Process | None = None
        self.busy = asyncio.Lock()  # one fault at a time
        self.expected = False

    async def start(self) -> None:
        """Starts it."""
        with self._log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, cwd=self._cwd, stdout=output, stderr=output,
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        self.expected = False

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.returncode is None

    def send(self, signum: signal.Signals) -> None:
        """A signal to this very process."""
        if self.alive and self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signum)

    async def end(self, signum: signal.Signals = signal.SIGKILL, patience_s: float = 15.0) -> None:
        """Ends it, for certain."""
        self.expected = True
        self.send(signum)
        if self.process is not None:
            try:
                async with asyncio.timeout(patience_s):
                    await self.process.wait()
            except TimeoutError:
                self.send(signal.SIGKILL)
                await self.process.wait()


class Cluster:
    """All of them. `tree`: the source that API and workers run from; jobs are kept for `retention_s`."""

    def __init__(self, folder: Path, tree: Path, retention_s: float) -> None:
        self.folder = folder
        self.tree = tree
        self.key_id, self.key = new_api_key(1_700_000_000_000)
        self.socket = folder / "redis.sock"
        self.redis_url = embedded_redis.url_of(self.socket)
        self.unexpected: list[str] = []
        self._watch: asyncio.Task[None] | None = None
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}
        for name in [name for name in environment if name.startswith("ERRAND_") and name != "ERRAND_VENV"]:
            del environment[name]
        model_port = free_port("127.0.0.1")
        self.model_url = f"http://127.0.0.1:{model_port}"
        environment |= {
            "REDIS_URL": self.redis_url,
            "OPENAI_BASE_URL": f"{self.model_url}/v1",
            "OPENAI_API_KEY": "none",
            "ERRAND_DEFAULT_MODEL": "errand-dev-extractive",
            "ERRAND_FETCH_PRIVATE_HOSTS": "127.0.0.1",  # where the receiver of webhooks is
            "ERRAND_DATA_DIR": str(folder),
            "ERRAND_ADMIN_KEY": self.key,
            "ERRAND_PRICES": '{"*": {"input": 0.15, "output": 0.6}}',  # so that limits in money count too
            "ERRAND_LEASE_SECONDS": str(LEASE_S),
            "ERRAND_DRAIN_SECONDS": "0.5",
            "ERRAND_RETRY_BASE_SECONDS": "0.1",
            "ERRAND_RETRY_MAX_SECONDS": "2",
            "ERRAND_WORKER_SLOTS": "16",
            "ERRAND_LOG_FORMAT": "json",
            "ERRAND_CHUNK_CHARACTERS": "600",
            "ERRAND_EMBEDDING_MODEL": "errand-dev-embedding",
            # So that a run sees the end of what it makes.
            "ERRAND_RETENTION_SECONDS": str(retention_s),
            "ERRAND_SEARCH_LOG_SECONDS": str(retention_s),
            "ERRAND_SEARCH_JOB_SECONDS": "60",
            "ERRAND_WEBHOOK_SECONDS": "5",  # a killed worker's deliveries are sent after 10 s more
            "ERRAND_WEBHOOK_RETENTION_SECONDS": str(retention_s),
        }
        python = sys.executable

        def member(name: str, *module: str, skew_s: int = 0, port: int | None = None) -> Member:
            command = [python, "-m", *(["scripts.havoc.skewed", str(skew_s)] if skew_s else []), *module]
            more = {"PORT": str(port)} if port is not None else {}
            return Member(name, command, environment | more, tree, folder / f"{name}.log")

        directory = folder / "redis"
        directory.mkdir()
        self.redis = Member(
            "redis", embedded_redis.command(embedded_redis.find_server(), directory, self.socket), environment, folder,
            folder / "redis.log",
        )  # fmt: skip
        pace = ["--tokens-per-second", "300", "--first-token-seconds", "0.02"]
        self.model = member("model", "scripts.dev_model", "--port", str(model_port), *pace)
        ports = [free_port("127.0.0.1") for _ in range(APIS)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.apis = [
            member(f"api{n}", "api", skew_s=SKEW_S if n == 1 else 0, port=port) for n, port in enumerate(ports)
        ]
        lanes = ("both", "interactive", "batch", "both")
        skews = (0, SKEW_S, -SKEW_S, 0)
        self.workers = [member(f"worker{n}", "worker", lanes[n], skew_s=skews[n]) for n in range(WORKERS)]
        # One of each lives as long as the run: no fault kills it, so what it leaks adds up.
        self.spared = (self.apis[-1], self.workers[-1])

    def mortal(self, members: list[Member]) -> list[Member]:
        """Those that a fault may kill."""
        return [member for member in members if member not in self.spared]

    @property
    def members(self) -> list[Member]:
        """Every process, in the order in which they are started."""
        return [self.redis, self.model, *self.apis, *self.workers]

    async def start(self) -> None:
        """Starts all and returns when a job would run. Raises TimeoutError."""
        await self.redis.start()
        await self.until_redis_answers()
        for member in self.members[1:]:
            await member.start()
        await self.until_ready()
        self._watch = asyncio.create_task(self._notice_ends(), name="watch")

    async def until_redis_answers(self) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(LOADED_S):
            while not await asyncio.to_thread(embedded_redis.answers, self.socket):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_ready(self) -> None:
        """Until every API says that it and both lanes are ready. Raises TimeoutError."""
        async with asyncio.timeout(UP_S), aiohttp.ClientSession() as session:
            for url in self.urls:
                while True:
                    with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError):
                        async with session.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                            body: Any = await answer.json(content_type=None)
                            if answer.status == 200 and all(body["checks"]["workers"].values()):
                                break
                    await asyncio.sleep(0.1)

    async def _notice_ends(self) -> None:
        while True:
            for member in self.members:
                if not member.alive and not member.expected and not member.busy.locked():
                    code = member.process.returncode if member.process else None
                    self.unexpected.append(f"{member.name} ended by itself with {code}")
                    await member.start()
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Ends all of them."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        for member in self.members:
            member.send(signal.SIGCONT)
        for member in reversed(self.members):
            await member.end(signal.SIGTERM if member is not self.redis else signal.SIGKILL)
