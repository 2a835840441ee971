"""WebSocket clients: several jobs on one socket, cut and connected again, each event once and in order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from scripts.havoc.history import FINAL, Seen
from scripts.havoc.loads.ground import Ground

FIRST = 80_000_000
JOBS = 3
QUIET_S = 20.0  # a frozen Redis and a busy machine; pings do not count


class Sockets:
    """One tenant's sockets."""

    AT_ONCE = 2

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._key = ""
        self._cuts = self._events = self._sockets = 0

    async def prepare(self) -> None:
        """The tenant."""
        _, self._key = await self._ground.make_tenant("sockets", {})

    async def one(self, number: int) -> None:
        """Three jobs of one client, from their submission to their ends, over as many sockets as it takes."""
        jobs = [self._job(number * JOBS + place) for place in range(JOBS)]
        self._clients.jobs += jobs
        open_jobs = {seen.ref: seen for seen in jobs}
        while open_jobs:
            try:
                await self._converse(open_jobs)
            except (aiohttp.ClientError, TimeoutError, OSError, ConnectionError):
                self._cuts += 1
            await asyncio.sleep(self._ground.chance.uniform(0.05, 0.5))
        for seen in jobs:
            self._clients.look_later(seen)

    def _job(self, number: int) -> Seen:
        ref = f"ref{FIRST + number}x"
        words = self._ground.chance.choice((10, 80, 300))
        messages = [{"role": "user", "content": f"{ref}: {self._clients.text(words)}."}]
        body = {"type": "chat", "input": {"messages": messages}, "metadata": {"ref": ref}, "maxAttempts": 20}
        return Seen(ref, ref, self._key, body, kind="sockets")

    async def _converse(self, open_jobs: dict[str, Seen]) -> None:
        """One socket: until all jobs have ended, or it is cut, by us or by a fault."""
        url = f"{self._ground.chance.choice(self._clients.urls)}/api/ws"
        cut_after = self._ground.chance.randint(5, 300)
        headers = {"Authorization": f"Bearer {self._key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(url, timeout=aiohttp.ClientWSTimeout(ws_close=1.0)) as socket,
        ):
            self._sockets += 1
            by_id = {seen.job_id: seen for seen in open_jobs.values() if seen.job_id}
            for seen in list(open_jobs.values()):
                if seen.job_id:
                    await self._subscribe(socket, seen)
                else:
                    asked = {"op": "submit", "ref": seen.ref, "job": seen.body, "idempotencyKey": seen.key}
                    await socket.send_json(asked)
            while open_jobs and cut_after > 0:
                async with asyncio.timeout(QUIET_S):
                    message = await socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise ConnectionError
                cut_after -= 1
                await self._take(socket, json.loads(message.data), open_jobs, by_id)
            self._cuts += bool(open_jobs)

    async def _subscribe(self, socket: aiohttp.ClientWebSocketResponse, seen: Seen) -> None:
        after = seen.streamed[-1] if seen.streamed else 0
        await socket.send_json({"op": "subscribe", "ref": "s", "jobId": seen.job_id, "after": after})

    async def _take(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        frame: dict[str, Any],
        open_jobs: dict[str, Seen],
        by_id: dict[str, Seen],
    ) -> None:
        if "problem" in frame:
            raise ConnectionError  # Redis is away: on another socket, with the same key
        if "ok" in frame:
            seen = open_jobs.get(str(frame["ref"]))
            if seen is not None:
                seen.job_id = frame["ok"]["jobId"]
                by_id[seen.job_id] = seen
                await self._subscribe(socket, seen)
            return
        seen = by_id.get(frame.get("jobId", ""))
        if seen is None:
            return
        if frame["type"] == "gap":
            raise ConnectionError  # too slow: subscribed again after the last event
        if "seq" in frame:
            self._events += 1
            seen.streamed.append(frame["seq"])
        kind, _, status = frame["type"].partition(".")
        if kind == "job" and status in FINAL:
            seen.finals.append(status)
            open_jobs.pop(seen.ref, None)

    async def finish(self) -> None:
        """Nothing: its jobs are checked as all others are."""

    def row(self) -> str:
        """What is printed."""
        return f"{self._sockets} sockets, {self._cuts} cuts, {self._events} events"
