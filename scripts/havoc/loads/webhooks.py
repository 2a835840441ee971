"""Webhooks: jobs whose ends are told to a receiver of ours, which fails, hangs and cuts; each end is told, signed, and
under one id."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from aiohttp import web

from scripts.havoc.history import Seen
from scripts.havoc.loads.ground import Ground
from shared.webhook_signing import BadSignatureError, verify

FIRST = 90_000_000
EVENTS = ["job.started", "job.complete", "job.failed", "job.cancelled", "job.expired"]
ENDS = frozenset(EVENTS[1:])
TOLD_S = 45.0  # when the faults are over: a second request follows the first after 5 s, or a lease
HANGS_S = 3.0


class Told:
    """What was received of one job."""

    def __init__(self) -> None:
        self.taken: dict[str, str] = {}  # delivery → event, of those that were answered with 200
        self.bodies: dict[str, bytes] = {}  # delivery → its body


class Webhooks:
    """One tenant, and its receiver."""

    AT_ONCE = 3

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._key = self._secret = self._url = ""
        self._jobs: dict[str, tuple[Seen, str]] = {}  # job → its history, how it ended
        self._told: dict[str, Told] = {}
        self._requests: Counter[str] = Counter()  # by what became of them
        self._runner: web.AppRunner | None = None
        self._replayed = 0
        self._is_calm = False

    async def prepare(self) -> None:
        """The tenant, its secret, the receiver."""
        _, self._key = await self._ground.make_tenant("hooked", {})
        status, answer = await self._clients.call("GET", "/api/webhooks/secret", self._key)
        assert status == 200, answer
        self._secret = answer["secret"]
        app = web.Application()
        app.router.add_post("/hook", self._receive)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            delivery = verify(self._secret, headers, body, time.time())
        except BadSignatureError as error:
            self._ground.found.add("a webhook with a bad signature", str(error))
            return web.Response(status=400)
        event = json.loads(body)
        told = self._told.setdefault(event["data"]["jobId"], Told())
        if told.bodies.setdefault(delivery, body) != body:
            self._ground.found.add("a delivery changed its body", delivery)
        # Only the first request for a delivery goes wrong: a third would come five minutes later.
        is_first = told.bodies[delivery] is body and not self._is_calm
        dice = self._ground.chance.random() if is_first else 1.0
        if dice < 0.04:
            self._requests["cut"] += 1
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if dice < 0.08:
            self._requests["refused"] += 1
            return web.Response(status=503)
        if dice < 0.12:
            await asyncio.sleep(HANGS_S)  # its worker may be killed meanwhile
        self._requests["again" if delivery in told.taken else "taken"] += 1
        told.taken[delivery] = event["type"]
        return web.Response()

    async def one(self, number: int) -> None:
        """One job; some are cancelled."""
        ref = f"ref{FIRST + number}x"
        chance = self._ground.chance
        content = f"{ref}: {self._clients.text(chance.choice((5, 30)))}."
        body = {
            "type": "chat",
            "input": {"messages": [{"role": "user", "content": content}]},
            "metadata": {"ref": ref},
            "maxAttempts": 20,
            "webhook": {"url": self._url, "events": EVENTS},
        }
        seen = Seen(ref, ref, self._key, body, kind="webhooks")
        await self._clients.submit(seen)
        if chance.random() < 0.15:
            status, answer = await self._clients.call("DELETE", f"/api/jobs/{seen.job_id}", self._key)
            assert status in (200, 202), answer
        view = await self._clients.until_final(seen)
        self._jobs[seen.job_id] = seen, view["status"]
        self._clients.look_later(seen)

    async def finish(self) -> None:
        """Every end was told; what still waits for its next request is told when it is asked for."""
        self._is_calm = True
        await self._until(self._missing)
        waiting = await self._pending()
        for delivery in waiting:
            path = f"/api/webhooks/deliveries/{delivery}/replay"
            status, said = await self._clients.call("POST", path, self._key)
            assert status in (200, 202, 409), said
        self._replayed = len(waiting)
        for job_id in await self._until(self._missing):
            self._ground.found.add("an end was not told", f"{job_id}: {self._jobs[job_id][1]}")
        for delivery in await self._until(self._pending):
            self._ground.found.add("a delivery came to no end", delivery)
        for job_id, (_, end) in self._jobs.items():
            ends = self._ends(job_id)
            if len(ends) > 1 or (ends and ends != [f"job.{end}"]):
                self._ground.found.add("an end was told wrongly", f"{job_id}: {end}, told {ends}")
        if self._runner is not None:
            await self._runner.cleanup()

    async def _until(self, wanting: Callable[[], Awaitable[list[str]]]) -> list[str]:
        """What is still wanting when there was time enough."""
        deadline_s = time.monotonic() + TOLD_S
        while (left := await wanting()) and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        return left

    def _ends(self, job_id: str) -> list[str]:
        """Under each delivery that was taken and tells an end: which."""
        return [event for event in self._told[job_id].taken.values() if event in ENDS] if job_id in self._told else []

    async def _missing(self) -> list[str]:
        """Jobs whose end was not told."""
        return [job_id for job_id in self._jobs if not self._ends(job_id)]

    async def _pending(self) -> list[str]:
        """Deliveries that wait: for a third request, where a worker was killed at the second. At most 100."""
        status, answer = await self._clients.call("GET", "/api/webhooks/deliveries?status=pending&limit=100", self._key)
        assert status == 200, answer
        return [row["deliveryId"] for row in answer["data"]]

    def row(self) -> str:
        """What is printed."""
        told = ", ".join(f"{count} {what}" for what, count in sorted(self._requests.items()))
        return f"{len(self._jobs)} jobs told of, requests: {told or 'none'}; {self._replayed} replayed"
