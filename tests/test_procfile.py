"""The Procfile under a real honcho: ports, several of a kind, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scripts.probes import free_port
from tests.conftest import ADMIN_KEY, DevModel, RedisServer, chat

ROOT = Path(__file__).parents[1]
KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}


def base_port() -> int:
    """A port from which on honcho's are free: it gives web PORT and PORT + 1, the next kinds PORT + 100, + 200."""
    while True:
        port = free_port("127.0.0.1")
        if port < 65_000 and all(not listens(port + offset) for offset in (0, 1, 100, 101, 200)):
            return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Honcho:
    """`honcho start` in a process of its own."""

    def __init__(self, environment: dict[str, str], output: Path, port: int, formation: str) -> None:
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "honcho", "start", "-p", str(port), "-c", formation],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def pids(self) -> dict[str, int]:
        """Process groups by name, as honcho reports them."""
        return {name: int(pid) for name, pid in re.findall(r"(\S+) started \(pid=(\d+)\)", self.said)}

    def left(self) -> list[str]:
        """The names of those whose process group still has a member that runs. (A zombie does not; who reaps those that
        lost their parent is the machine's business.)"""
        table = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in table.splitlines()]
        groups = {int(group) for group, state in rows if not state.startswith("Z")}
        return [name for name, pid in self.pids.items() if pid in groups]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


@pytest.fixture
def formation(own_redis: RedisServer, model: DevModel, tmp_path: Path) -> Iterator[tuple[Honcho, int]]:
    """Two API processes, two workers and an interactive one; the first port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERRAND_")}
    environment |= {
        "REDIS_URL": own_redis.url,
        "OPENAI_BASE_URL": f"{model.base}/v1",
        "OPENAI_API_KEY": "none",
        "ERRAND_DEFAULT_MODEL": "errand-dev-extractive",
        "ERRAND_ADMIN_KEY": ADMIN_KEY,
        "ERRAND_DATA_DIR": str(tmp_path),
        "ERRAND_DRAIN_SECONDS": "2",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("PORT", None)
    port = base_port()
    honcho = Honcho(environment, tmp_path / "honcho.log", port, "web=2,worker=2,interactive=1")
    yield honcho, port
    honcho.stop()


async def ready(session: aiohttp.ClientSession, honcho: Honcho, port: int) -> None:
    """Returns when both API processes are ready and see all workers."""
    async with asyncio.timeout(60):
        for url in (f"http://127.0.0.1:{port}/readyz", f"http://127.0.0.1:{port + 1}/readyz"):
            while True:
                assert honcho.process.poll() is None, honcho.said
                try:
                    async with session.get(url) as response:
                        checks = (await response.json())["checks"]
                        if response.status == 200 and checks["workers"] == {"interactive": 1, "batch": 2}:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)


async def test_the_procfile_runs_a_job_and_is_scraped(formation: tuple[Honcho, int]) -> None:
    """Given `web=2,worker=2,interactive=1`, then each API process listens on the port that honcho gave it, a job that
    one took is read from the other, every worker is found and scraped, no worker took the port that honcho gave it; on
    SIGTERM all drain in time, and nothing is left."""
    honcho, port = formation
    async with aiohttp.ClientSession() as session:
        await ready(session, honcho, port)
        one, other = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        async with session.post(f"{one}/api/jobs", json=chat(), headers=KEY) as response:
            job_id = (await response.json())["jobId"]
        async with session.get(f"{other}/api/jobs/{job_id}?wait=30", headers=KEY) as response:
            assert (await response.json())["status"] == "complete"
        async with session.get(f"{one}/metrics") as response:
            assert "errand_jobs_admitted_total" in await response.text()
        async with session.get(f"{other}/metrics/sd") as response:
            listed: list[dict[str, Any]] = await response.json()
        targets = [target for group in listed for target in group["targets"]]
        assert len(set(targets)) == 3
        for target in targets:
            async with session.get(f"http://{target}/metrics") as response:
                assert "errand_worker_slots" in await response.text()
    assert [offset for offset in (0, 1, 100, 101, 200) if listens(port + offset)] == [0, 1]
    assert set(honcho.pids) == {"web.1", "web.2", "worker.1", "worker.2", "interactive.1"}

    honcho.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(honcho.process.wait, 20) == 143
    assert honcho.said.count("worker.stopped") == 3
    assert honcho.said.count("api.stopped") == 2
    assert "SIGKILL" not in honcho.said
    assert honcho.left() == []


async def test_honcho_ends_all_when_one_ends(formation: tuple[Honcho, int]) -> None:
    """What docs/scaling.md warns of: one process dies, and honcho stops the others; production runs elsewhere."""
    honcho, port = formation
    async with aiohttp.ClientSession() as session:
        await ready(session, honcho, port)
    os.killpg(honcho.pids["worker.2"], signal.SIGKILL)
    began = time.monotonic()
    assert await asyncio.to_thread(honcho.process.wait, 20) != 0
    assert time.monotonic() - began < 10
    assert honcho.left() == []
