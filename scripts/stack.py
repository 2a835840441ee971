"""The whole stack in one command: embedded Redis, development model, API and workers, supervised.

`python -m scripts.stack` prints `ready http://HOST:PORT` on standard output once a job would run, restarts any child
that dies, and on SIGINT or SIGTERM stops everything it started.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts import embedded_redis
from scripts.children import Child, say, stop_leftovers
from scripts.probes import all_lanes_alive, free_port, require_port, responds
from shared.errors import ConfigurationError
from shared.redis import wait_until_durable
from shared.settings import Settings

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
STEADY_S = 60.0  # a child that lived so long starts again at the least backoff
START_S = 60.0  # everything must be ready within this time
CONFIGURATION_EXIT = 2
DEV_MODEL_PACE = (
    "--tokens-per-second",
    "250",
    "--first-token-seconds",
    "0.1",
)  # about that of a hosted model
DEV_KEY = "development"


class AlreadyRunningError(Exception):
    """Another stack holds this data directory; `url` is where it answers, None while it is starting."""

    def __init__(self, url: str | None) -> None:
        super().__init__(f"already running at {url}" if url else "another one is just starting in this data directory")
        self.url = url


class Stack:
    """The stack of one data directory. `log_dir`: where children write; None: our standard error."""

    def __init__(self, settings: Settings, *, port: int | None = None, log_dir: Path | None = None) -> None:
        self.settings = settings
        self.host = settings.host
        self.port = settings.port if port is None else port
        self.data_dir = settings.data_dir.resolve()
        self.run_dir = self.data_dir / "run"
        self.log_dir = log_dir
        self.children: list[Child] = []
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self.fault: str | None = None
        self.exit_code = 0
        self._lock: int | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._ready = False
        self.socket: Path | None = None
        self.guest_of: str | None = None  # the address of another stack that is used instead

    @property
    def url(self) -> str:
        """Where the API answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    def request_stop(self, *, code: int = 0, fault: str | None = None) -> None:
        """Stops the stack; a second request hurries."""
        if self.stopping.is_set():
            self.hurry.set()
            return
        self.exit_code, self.fault = code, fault
        self.stopping.set()

    async def start(self) -> None:
        """Starts everything and returns when a job would run, or when stopping was asked for.

        Raises ConfigurationError or AlreadyRunningError; `stop` must be called in every case.
        """
        try:
            self._take_lock()
            stop_leftovers(self.run_dir)
            if self.log_dir is not None:
                self.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"the data directory {self.data_dir} cannot be used: {error}") from None
        if self.port == 0:
            self.port = free_port(self.host)
        require_port(self.host, self.port)
        environment = self._environment()
        if os.environ.get("REDIS_URL"):
            await wait_until_durable(self.settings.redis_url, allow_volatile=self.settings.allow_volatile)
        if not os.environ.get("REDIS_URL"):
            await self._start_redis(environment)
        if not os.environ.get("OPENAI_BASE_URL") and not os.environ.get("OPENAI_API_KEY"):
            await self._start_model(environment)
        python = sys.executable
        grace_s = self.settings.drain_seconds + 8
        for name, command in (
            ("api", [python, "-m", "api"]),
            ("worker", [python, "-m", "worker", "batch"]),
            ("interactive", [python, "-m", "worker", "interactive"]),
        ):
            await self._launch(Child(name, command, environment, self.run_dir, grace_s))
        await self._until(self._is_ready, "the API and the workers")
        if not self.stopping.is_set():
            self._ready = True
            (self.run_dir / "stack.json").write_text(json.dumps({"pid": os.getpid(), "url": self.url}))

    def _take_lock(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.run_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            try:
                url = json.loads((self.run_dir / "stack.json").read_text())["url"]
            except (OSError, ValueError, KeyError):
                url = None
            raise AlreadyRunningError(url) from None
        self._lock = lock
        (self.run_dir / "stack.json").unlink(missing_ok=True)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOST": self.host,
            "PORT": str(self.port),
            "ERRAND_DATA_DIR": str(self.data_dir),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost,::1"])),
        }

    async def _start_redis(self, environment: dict[str, str]) -> None:
        server = embedded_redis.find_server()
        directory = self.data_dir / "redis"
        directory.mkdir(parents=True, exist_ok=True)
        self.socket = embedded_redis.socket_path(directory)
        if embedded_redis.answers(self.socket):
            say("stopping a Redis that an earlier run left")
            embedded_redis.shut_down(self.socket)
        self.socket.unlink(missing_ok=True)
        command = embedded_redis.command(server, directory, self.socket)
        await self._launch(Child("redis", command, environment, self.run_dir, 20.0))
        path = self.socket
        await self._until(
            lambda: asyncio.to_thread(embedded_redis.answers, path), f"Redis (its log is {directory / 'redis.log'})"
        )
        environment["REDIS_URL"] = embedded_redis.url_of(self.socket)

    async def _start_model(self, environment: dict[str, str]) -> None:
        port = free_port("127.0.0.1")
        command = [sys.executable, "-m", "scripts.dev_model", "--port", str(port), *DEV_MODEL_PACE]
        await self._launch(Child("model", command, environment, self.run_dir, 5.0))
        environment["OPENAI_BASE_URL"] = f"http://127.0.0.1:{port}/v1"
        environment["OPENAI_API_KEY"] = DEV_KEY
        environment.setdefault("ERRAND_DEFAULT_MODEL", "errand-dev-extractive")
        environment.setdefault("ERRAND_EMBEDDING_MODEL", "errand-dev-embedding")
        await self._until(lambda: asyncio.to_thread(responds, f"http://127.0.0.1:{port}/healthz"), "the model")

    async def _launch(self, child: Child) -> None:
        if self.stopping.is_set():
            return
        self.children.append(child)
        with self._output(child.name) as output:
            await child.start(output)
        watcher = asyncio.create_task(self._watch(child), name=f"watch {child.name}")
        watcher.add_done_callback(self._watcher_ended)
        self._watchers.append(watcher)

    def _watcher_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.request_stop(code=1, fault=f"the supervisor failed: {error}")

    def _output(self, name: str) -> Any:
        if self.log_dir is None:
            return _Inherit()
        return (self.log_dir / f"{name}.log").open("ab")

    async def _watch(self, child: Child) -> None:
        """Restarts a child that dies, with backoff. One that ends for a bad setting before all is ready stops all."""
        deaths = 0
        while True:
            assert child.process is not None
            started = time.monotonic()
            code = await child.process.wait()
            if self.stopping.is_set():
                return
            if code == CONFIGURATION_EXIT and not self._ready:
                self.request_stop(code=CONFIGURATION_EXIT, fault=self._last_words(child))
                return
            if time.monotonic() - started > STEADY_S:
                deaths = 0
            wait_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
            deaths += 1
            say(f"{child.name} ended with {_how(code)}; starting it again in {wait_s:g} s")
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.stopping.wait()
                    return
            with self._output(child.name) as output:
                await child.start(output)
            if self.stopping.is_set():
                await child.stop(hurry=self.hurry)
                return

    def _last_words(self, child: Child) -> str | None:
        if self.log_dir is None:
            return None  # it has said it on our standard error
        lines = (self.log_dir / f"{child.name}.log").read_text(errors="replace").splitlines()
        return lines[-1].removeprefix("errand: ") if lines else f"{child.name} could not start"

    async def _is_ready(self) -> bool:
        return await asyncio.to_thread(all_lanes_alive, f"{self.url}/readyz")

    async def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + START_S
        while not self.stopping.is_set():
            if await condition():
                return
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{what} did not become ready within {START_S:g} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self.stopping.wait()

    async def stop(self) -> None:
        """Stops everything in order (API and workers, then model, then Redis) and leaves nothing behind."""
        self.stopping.set()
        by_name = {child.name: child for child in self.children}
        order: tuple[tuple[str, ...], ...] = (("api", "worker", "interactive"), ("model",), ("redis",))
        for names in order:
            await asyncio.gather(
                *(
                    by_name[name].stop(hurry=self.hurry if name != "redis" else asyncio.Event())
                    for name in names
                    if name in by_name
                )
            )
        if self._watchers:
            # They end by themselves now; one that was just restarting its child stops it first.
            await asyncio.wait(self._watchers, timeout=10)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
            if self.data_dir not in self.socket.parents:
                with suppress(OSError):
                    self.socket.parent.rmdir()
        if self._lock is not None:
            (self.run_dir / "stack.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


class _Inherit:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def install_signals(stack: Stack) -> None:
    """SIGINT, SIGTERM and a closed terminal stop the stack; a second one hurries."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stack.request_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


async def run(settings: Settings) -> int:
    """Runs the stack until a signal. Returns the exit code."""
    stack = Stack(settings)
    install_signals(stack)
    try:
        await stack.start()
        if not stack.stopping.is_set():
            with suppress(OSError):
                print(f"ready {stack.url}", flush=True)
            key = "ERRAND_ADMIN_KEY" if settings.admin_key else str(stack.data_dir / "admin.key")
            say(f"the admin key is in {key}; the contract is at {stack.url}/docs; Ctrl-C stops everything")
        await stack.stopping.wait()
    except AlreadyRunningError as error:
        say(str(error))
        return 2
    except ConfigurationError as error:
        stack.request_stop(code=2)
        say(str(error))
    finally:
        await stack.stop()
    if stack.fault:
        say(stack.fault)
    return stack.exit_code


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="./scripts/start",
        description="Start Redis (unless REDIS_URL is set), the development model (unless OPENAI_BASE_URL or "
        "OPENAI_API_KEY is set), the API and workers; keep them running until Ctrl-C.",
        epilog="Settings come from the environment: PORT, HOST, REDIS_URL, OPENAI_API_KEY, OPENAI_BASE_URL, and those "
        "in docs/reference/settings.md.",
    )
    parser.parse_args()
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        say(str(error))
        return 2
    return asyncio.run(run(settings))


if __name__ == "__main__":
    sys.exit(main())
