"""What the processes of a run take while it lasts: memory, open files, threads, tasks; Redis's connections and keys."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import redis.asyncio

from scripts.havoc.cluster import Cluster, Member
from scripts.havoc.history import Violations
from scripts.havoc.leftovers import Leftovers

EVERY_S: Final = 3.0
KEYS_EVERY_S: Final = 20.0
PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")
_TASKS: Final = re.compile(r"^errand_asyncio_tasks (\S+)$", re.MULTILINE)
MEASURABLE: Final = sys.platform == "linux"  # elsewhere /proc is not there, and only tasks, Redis and keys are seen


class Sample(msgspec.Struct, frozen=True):
    """One process at one time. `tasks` of those that serve metrics; 0 where it was not measured."""

    at_s: float
    pid: int
    rss_mb: float
    files: int
    threads: int
    tasks: int


class RedisSample(msgspec.Struct, frozen=True):
    """Redis at one time."""

    at_s: float
    clients: int
    used_mb: float
    channels: int
    keys: int


def measure(pid: int) -> tuple[float, int, int]:
    """(memory in MB, open files, threads) of a process. Raises OSError when it has gone."""
    if not MEASURABLE:
        return 0.0, 0, 0
    folder = Path(f"/proc/{pid}")
    resident = int((folder / "statm").read_text().split()[1]) * PAGE_BYTES / 1e6
    threads = int((folder / "stat").read_text().rpartition(")")[2].split()[17])
    return resident, len(os.listdir(folder / "fd")), threads


class Watch:
    """Looks at all of them every few seconds, and reads their metrics as Prometheus would."""

    def __init__(self, cluster: Cluster, found: Violations) -> None:
        self._cluster = cluster
        self._found = found
        self.samples: dict[str, list[Sample]] = {member.name: [] for member in cluster.members}
        self.redis: list[RedisSample] = []
        self.keys: list[tuple[float, Counter[str]]] = []
        self.scraped = self.missed = 0
        self._started_s = time.monotonic()
        self._keys_at_s = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._started_s

    async def run(self) -> None:
        """For ever."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=4)) as session:
            while True:
                await self.look(session)
                await asyncio.sleep(EVERY_S)

    async def look(self, session: aiohttp.ClientSession) -> None:
        """One sample of everything that can be reached."""
        tasks = await self._tasks(session)
        for member in self._cluster.members:
            process = member.process
            if process is None or not member.alive:
                continue
            try:
                rss_mb, files, threads = measure(process.pid)
            except OSError:
                continue
            sample = Sample(self.now_s, process.pid, rss_mb, files, threads, tasks.get(process.pid, 0))
            self.samples[member.name].append(sample)
        await self._look_at_redis()

    async def _look_at_redis(self) -> None:
        client: Any = redis.asyncio.from_url(self._cluster.redis_url, socket_timeout=4)
        try:
            said = await client.info()
            channels = len(await client.pubsub_channels())
            used_mb = said["used_memory"] / 1e6
            keys = said.get("db0", {}).get("keys", 0)
            self.redis.append(RedisSample(self.now_s, said["connected_clients"] - 1, used_mb, channels, keys))
            if self.now_s - self._keys_at_s > KEYS_EVERY_S:
                self._keys_at_s = self.now_s
                self.keys.append((self.now_s, await asyncio.to_thread(self._counts)))
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError, OSError):
            pass  # a fault
        finally:
            await client.aclose()

    def _counts(self) -> Counter[str]:
        look = Leftovers(self._cluster.redis_url)
        try:
            return look.counts()
        finally:
            look.close()

    async def _tasks(self, session: aiohttp.ClientSession) -> dict[int, int]:
        """By pid: how many tasks its event loop has, as its metrics say."""
        found: dict[int, int] = {}
        for url, member in zip(self._cluster.urls, self._cluster.apis, strict=True):
            count = await self._scrape(session, url)
            if count is not None and member.process is not None:
                found[member.process.pid] = count
        for target, worker in await self._targets(session):
            count = await self._scrape(session, f"http://{target}")
            if count is not None:
                found[int(worker.split("-")[-2])] = count
        return found

    async def _targets(self, session: aiohttp.ClientSession) -> list[tuple[str, str]]:
        """(address, worker id) of each worker, from whichever API answers."""
        for url in self._cluster.urls:
            try:
                async with session.get(f"{url}/metrics/sd") as answer:
                    if answer.status == 200:
                        return [
                            (group["targets"][0], group["labels"]["__meta_errand_worker"])
                            for group in await answer.json()
                        ]
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                continue
        return []

    async def _scrape(self, session: aiohttp.ClientSession, url: str) -> int | None:
        try:
            async with session.get(f"{url}/metrics") as answer:
                text, status = await answer.text(), answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            self.missed += 1  # a process under a fault
            return None
        match = _TASKS.search(text)
        if status != 200 or match is None:
            self._found.add("metrics were not served", f"{url}: {status}")
            return None
        self.scraped += 1
        return int(float(match[1]))

    def latest(self, member: Member) -> Sample | None:
        """The newest sample of a process as it runs now."""
        pid = member.process.pid if member.process is not None else 0
        mine = self.samples[member.name]
        return mine[-1] if mine and mine[-1].pid == pid else None
