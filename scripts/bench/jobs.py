"""Whole jobs over HTTP: the stack of `scripts/start` before the upstream of the benchmarks, and what its jobs took."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from scripts.bench.common import durable_redis, running
from scripts.bench.models import Limits
from scripts.bench.stream import process
from scripts.probes import free_port
from shared.ids import new_api_key


class Stack:
    """A Redis with `appendfsync always`, an upstream, an API and a worker, each a process of its own."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base: str,
        upstream: str,
        folder: Path,
        environment: dict[str, str],
        lane: str = "batch",
    ) -> None:
        self._lane = lane
        self.session, self.base, self.upstream, self.folder = session, base, upstream, folder
        self.redis_url = environment["REDIS_URL"]
        self.api: subprocess.Popen[bytes]
        self.worker: subprocess.Popen[bytes]
        self._environment = environment

    def start_worker(self, processes: ExitStack) -> None:
        """A worker of the stack's lane; `worker` is the last that was started."""
        self.worker = processes.enter_context(running(["worker", self._lane], self._environment))

    async def limits(self, limits: Limits) -> None:
        """The upstream behaves like this from now on, and counts anew."""
        body = {"latencyS": limits.latency_s, "inFlight": limits.in_flight, "retryAfterS": limits.retry_after_s,
                "steps": limits.steps}  # fmt: skip
        async with self.session.post(f"{self.upstream}/bench", json=body) as answer:
            answer.raise_for_status()

    async def books(self, path: str = "/bench") -> Any:
        """What the upstream has counted."""
        async with self.session.get(self.upstream + path) as answer:
            return await answer.json()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the API, which must go well."""
        data = body if isinstance(body, aiohttp.FormData) else None
        async with self.session.request(
            method, self.base + path, data=data, json=body if data is None else None
        ) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def upload(self, file: Path, kind: str, *, index: bool) -> str:
        """Stores a document, and waits until it is read; its id."""
        form = aiohttp.FormData()
        with file.open("rb") as content:
            form.add_field("index", str(index).lower())
            form.add_field("file", content, filename=file.name, content_type=kind)
            answer = await self.call("POST", "/api/documents", form)
        await self.ended(answer["jobId"])
        return str(answer["documentId"])

    async def submit(self, job: dict[str, Any]) -> str:
        """A job; its id."""
        return str((await self.call("POST", "/api/jobs", job))["jobId"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        """The view of a job at its end, which must be good."""
        while True:
            view: dict[str, Any] = await self.call("GET", f"/api/jobs/{job_id}?wait=60")
            if view["finishedAt"]:
                assert view["status"] == "complete", json.dumps(view)[:2_000]
                return view

    async def events(self, job_id: str) -> list[dict[str, Any]]:
        """All events of a job."""
        found: list[dict[str, Any]] = []
        after = 0
        while True:
            page = await self.call("GET", f"/api/jobs/{job_id}/events?limit=1000&after={after}")
            found += page["data"]
            if not page["hasMore"]:
                return found
            after = page["next"]


def took_s(view: dict[str, Any]) -> float:
    """Seconds from `job.started` to `job.complete`."""
    return seconds(view["finishedAt"]) - seconds(view["startedAt"])


def seconds(moment: str) -> float:
    """A time of the API."""
    return datetime.fromisoformat(moment).timestamp()


@asynccontextmanager
async def whole_stack(*, lane: str = "batch", **settings: str) -> AsyncIterator[tuple[Stack, ExitStack]]:
    """The stack, ready, with a worker of this lane; what is started later is stopped with it."""
    _, key = new_api_key(1_700_000_000_000)
    with ExitStack() as processes:
        redis_url = processes.enter_context(durable_redis())
        folder = processes.enter_context(tempfile.TemporaryDirectory(prefix="errand-j-"))
        upstream_port, api_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        upstream, base = f"http://127.0.0.1:{upstream_port}", f"http://127.0.0.1:{api_port}"
        processes.enter_context(process([sys.executable, "-m", "scripts.bench.models", str(upstream_port)]))
        environment = {
            "REDIS_URL": redis_url, "ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": key, "PORT": str(api_port),
            "OPENAI_BASE_URL": f"{upstream}/v1", "OPENAI_API_KEY": "none", **settings,
        }  # fmt: skip
        headers = {"Authorization": f"Bearer {key}"}
        endless = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(headers=headers, timeout=endless) as session:
            stack = Stack(session, base, upstream, Path(folder), environment, lane)
            stack.api = processes.enter_context(running(["api"], environment))
            stack.start_worker(processes)
            for url in (f"{upstream}/bench", f"{base}/readyz"):
                await _ready(session, url)
            yield stack, processes


async def _ready(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        try:
            async with session.get(url) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.05)
