"""What every kind of load stands on: the clients, the operator's calls, and where violations go."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from scripts.havoc.history import FINAL, Seen, Violations
from scripts.havoc.inspector import Calls
from scripts.havoc.load import Clients


class Load(Protocol):
    """One kind of work. Its marks are `ref<FIRST + n>x`, so that the model's record tells kinds apart."""

    AT_ONCE: int  # clients at a time

    async def prepare(self) -> None:
        """What it needs before the first client comes."""

    async def one(self, number: int) -> None:
        """The life of one client."""

    async def finish(self) -> None:
        """Its checks when the faults are over and its clients have gone."""

    def row(self) -> str:
        """What is printed of it."""


class Ground:
    """Shared by all kinds of load."""

    def __init__(self, clients: Clients, calls: Calls, admin_key: str, chance: random.Random, folder: Path) -> None:
        self.clients = clients
        self.calls = calls
        self.admin_key = admin_key
        self.chance = chance
        self.folder = folder
        self.tenants: dict[str, str] = {}  # those that are there at the end, with a key of theirs
        self.erased: list[str] = []  # those that must not be

    @property
    def found(self) -> Violations:
        """Where violations go."""
        return self.clients.found

    async def make_tenant(self, name: str, limits: dict[str, Any]) -> tuple[str, str]:
        """A tenant and a key of it, each made once whatever becomes of the answers: a replayed answer has no secret, so
        that key is given up for another."""
        headers = {"Idempotency-Key": f"tenant-{name}"}
        body = {"name": name, "limits": limits}
        status, made = await self.clients.call("POST", "/api/admin/tenants", self.admin_key, json=body, headers=headers)
        assert status == 201, made
        tenant: str = made["tenantId"]
        api_key, _ = await self.make_key(tenant)
        self.tenants[tenant] = api_key
        return tenant, api_key

    async def make_key(self, tenant: str, **body: Any) -> tuple[str, str]:
        """A key of a tenant, and its id."""
        path = f"/api/admin/tenants/{tenant}/keys"
        status, made = await self.clients.call("POST", path, self.admin_key, json=body)
        assert status == 201, made
        return made["key"], made["keyId"]

    async def erase_tenant(self, tenant: str) -> dict[str, Any]:
        """Erases a tenant; the receipt. What is left of it is looked for at the end of the run."""
        self.tenants.pop(tenant, None)
        status, begun = await self.clients.call("DELETE", f"/api/admin/tenants/{tenant}", self.admin_key)
        if status == 404:  # an answer that was lost had begun it, and it is over
            self.erased.append(tenant)
            return {"remaining": 0}
        assert status == 202, begun
        view: dict[str, Any] = begun
        while view["status"] not in FINAL:
            _, view = await self.clients.call("GET", f"/api/jobs/{begun['jobId']}?wait=10", self.admin_key)
        if view["status"] == "failed" and view["error"]["code"] == "worker_lost":
            return await self.erase_tenant(tenant)  # lost three workers: asked again, it goes on
        self.erased.append(tenant)
        if view["status"] != "complete" or view["result"]["remaining"] != 0:
            self.found.add("a tenant was not erased", f"{tenant}: {view['status']} {view.get('error')}")
            return {"remaining": None}
        receipt: dict[str, Any] = view["result"]
        return receipt

    async def job_of(self, kind: str, ref: str, api_key: str, job_id: str, job_type: str, **more: Any) -> Seen:
        """Takes a job that another call made into the history, waits for its end, has it checked in a while."""
        seen = Seen(ref, ref, api_key, {"type": job_type, "input": ""}, kind=kind, job_id=job_id, **more)
        self.clients.jobs.append(seen)
        seen.view = await self.clients.until_final(seen)
        self.clients.look_later(seen)
        return seen

    async def run_job(self, kind: str, ref: str, api_key: str, body: dict[str, Any], **more: Any) -> Seen:
        """Submits a job and waits for its end; it is checked in a while."""
        body = {"maxAttempts": 20, **body, "metadata": {"ref": ref}}
        seen = Seen(ref, ref, api_key, body, kind=kind, **more)
        await self.clients.submit(seen)
        seen.view = await self.clients.until_final(seen)
        self.clients.look_later(seen)
        return seen

    async def frames(self, path: str, api_key: str, body: dict[str, Any]) -> list[tuple[str, Any]] | None:
        """(event, data) of each frame of an answer that is streamed; None when it was cut, or not begun."""
        headers = {"Authorization": f"Bearer {api_key}", "Accept": "text/event-stream"}
        timeout = aiohttp.ClientTimeout(total=60, sock_read=20, sock_connect=5)
        shown: list[tuple[str, Any]] = []
        event = ""
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self.chance.choice(self.clients.urls) + path, json=body, headers=headers) as answer,
            ):
                if answer.status != 200:
                    return None
                async for line in answer.content:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "event":
                        event = value
                    elif name == "data" and value == "[DONE]":
                        return shown
                    elif name == "data":
                        shown.append((event, json.loads(value)))
                        event = ""
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            pass
        return None
