"""Tenants that come and go: their keys rotated and revoked, everything of them erased while they work."""

from __future__ import annotations

import asyncio
from typing import Any

from scripts.havoc.loads.ground import Ground

FIRST = 50_000_000
KNOWN_S = 15.0  # a process that had lost Redis hears of a key's end when it has it again


class Tenants:
    """One tenant at a time, from its creation to its erasure."""

    AT_ONCE = 1

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._erased = self._ended = 0

    async def prepare(self) -> None:
        """Nothing."""

    async def one(self, number: int) -> None:
        """The life of a tenant."""
        name = f"guest{number}"
        tenant, api_key = await self._ground.make_tenant(name, {"maxConcurrentJobs": 3, "weight": 2})
        second, second_id = await self._ground.make_key(tenant)
        await self._work(number, api_key)
        path = f"/api/admin/tenants/{tenant}/keys/{second_id}"
        status, made = await self._clients.call(
            "POST", f"{path}/rotate", self._ground.admin_key, json={"overlapSeconds": 0}
        )
        assert status in (200, 201), made
        await self._ends(second, "rotated")
        status, answer = await self._clients.call("DELETE", path, self._ground.admin_key)
        assert status in (200, 204, 404), answer
        await self._ends(made["key"], "revoked")
        await self._work(number, api_key, "more")
        receipt = await self._ground.erase_tenant(tenant)
        self._erased += receipt["remaining"] == 0
        await self._ends(api_key, "erased")

    async def _work(self, number: int, api_key: str, mark: str = "") -> None:
        """Jobs of several kinds, which go on when the tenant ends; a prompt; a search."""
        ref = f"ref{FIRST + number}x"
        messages = [{"role": "user", "content": f"{ref}: {self._clients.text(120)}."}]
        common: dict[str, Any] = {"user": f"guest-{number}", "metadata": {"ref": ref}, "maxAttempts": 20}
        bodies: list[dict[str, Any]] = [
            {"type": "chat", "input": {"messages": messages}, **common},
            {"type": "chat", "input": {"messages": messages}, "delaySeconds": 30, **common},
            {"type": "batch-embedding", "input": {"texts": [f"{ref}: {n}" for n in range(50)], "dimensions": 64},
             **common},
        ]  # fmt: skip
        for place, body in enumerate(bodies):
            headers = {"Idempotency-Key": f"{mark}{place}"}
            status, answer = await self._clients.call("POST", "/api/jobs", api_key, json=body, headers=headers)
            assert status == 202, answer
        text = {"text": f"{ref}: {self._clients.text(30)}.", "collection": "guests"}
        headers = {"Idempotency-Key": f"{mark}text"}
        status, made = await self._clients.call("POST", "/api/documents", api_key, json=text, headers=headers)
        assert status == 202, made
        await self._clients.call("GET", f"/api/jobs/{made['jobId']}?wait=3", api_key)
        search = {"q": f"{ref} harbour", "answer": False, "user": f"guest-{number}"}
        status, answer = await self._clients.call("POST", "/api/search", api_key, json=search)
        assert status in (200, 409, 410), answer
        prompt = {"name": f"guest{mark}", "messages": [{"role": "system", "content": ref}], "labels": ["production"]}
        status, answer = await self._clients.call("POST", "/api/prompts", api_key, json=prompt)
        assert status in (201, 409), answer

    async def _ends(self, api_key: str, how: str) -> None:
        """Every API refuses the key, at once or when it has Redis again."""
        deadline = asyncio.get_running_loop().time() + KNOWN_S
        good = 0
        while good < 4:
            status, _ = await self._clients.call("GET", "/api/jobs?limit=1", api_key)
            good = good + 1 if status == 401 else 0
            if status != 401:
                if asyncio.get_running_loop().time() > deadline:
                    self._ground.found.add("a key that had ended was taken", f"{api_key[:30]}… was {how}: {status}")
                    return
                await asyncio.sleep(0.1)
        self._ended += 1

    async def finish(self) -> None:
        """What is left of erased tenants is looked for in Redis and among the blobs by the run itself."""

    def row(self) -> str:
        """What is printed."""
        return f"{self._erased} erased while they worked, {self._ended} keys ended"
