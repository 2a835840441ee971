"""Budgets: tenants and their users that wish for more than they have, and get it later."""

from __future__ import annotations

import asyncio
from typing import Any

from scripts.havoc.history import FINAL, Seen
from scripts.havoc.loads.ground import Ground

FIRST = 60_000_000
HARD = 1_500  # tokens of the tenant
USER_HARD = 600  # of each of its users
AT_A_TIME = 4
# The contract: at most a chunk of each open stream. The development model sends a token in each; the API's answer to
# the last slice may be on its way while a few more come.
BOUND = AT_A_TIME * 16
JOBS = 14
LOOKS = 20


class Budgets:
    """A tenant at a time: to its hard limit, never beyond it, and on when it is raised."""

    AT_ONCE = 1

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._stopped = self._resumed = self._refused = 0
        self._most = 0

    async def prepare(self) -> None:
        """Nothing."""

    async def one(self, number: int) -> None:
        """The life of a tenant with a budget."""
        limits = {
            "maxConcurrentJobs": AT_A_TIME,
            "budgets": [{"period": "total", "softTokens": HARD // 2, "hardTokens": HARD}],
            "perUser": {"budgets": [{"period": "total", "hardTokens": USER_HARD}]},
            "onHardLimit": "pause",
        }
        tenant, api_key = await self._ground.make_tenant(f"thrifty{number}", limits)
        jobs = await self._submit(number, api_key)
        for _ in range(LOOKS):
            await self._check_use(api_key, tenant)
            views = [await self._view(seen) for seen in jobs]
            if all(view["status"] in FINAL or is_paused(view) for view in views):
                break
            await asyncio.sleep(0.5)
        paused = [seen for seen in jobs if (await self._view(seen))["status"] == "waiting"]
        self._stopped += len(paused)
        await self._check_use(api_key, tenant)
        more = {"limits": {"budgets": [{"period": "total", "hardTokens": 10**9}], "perUser": None}}
        status, answer = await self._clients.call(
            "PATCH", f"/api/admin/tenants/{tenant}", self._ground.admin_key, json=more
        )
        assert status == 200, answer
        for seen in jobs:
            await self._clients.until_final(seen)
            await self._clients.look(seen)
        self._resumed += len(paused)
        await self._ground.erase_tenant(tenant)

    async def _submit(self, number: int, api_key: str) -> list[Seen]:
        jobs = []
        for place in range(JOBS):
            ref = f"ref{FIRST + number * JOBS + place}x"
            content = f"{ref}: {self._clients.text(self._ground.chance.choice((40, 120)))}."
            body = {
                "type": "chat",
                "user": f"user{place % 4}",
                "input": {"messages": [{"role": "user", "content": content}]},
                "metadata": {"ref": ref},
                "maxAttempts": 20,
            }
            headers = {"Idempotency-Key": ref}
            status, made = await self._clients.call("POST", "/api/jobs", api_key, json=body, headers=headers)
            if status == 402:
                self._refused += 1
                continue
            assert status == 202, made
            seen = Seen(ref, ref, api_key, body, kind="budgets", job_id=made["jobId"])
            self._clients.jobs.append(seen)
            jobs.append(seen)
        return jobs

    async def _view(self, seen: Seen) -> dict[str, Any]:
        _, view = await self._clients.call("GET", f"/api/jobs/{seen.job_id}", seen.api_key)
        shown: dict[str, Any] = view
        return shown

    async def _check_use(self, api_key: str, tenant: str) -> None:
        for group, hard in (("", HARD), ("user", USER_HARD)):
            _, rows = await self._clients.call("GET", f"/api/usage?groupBy={group}", api_key)
            for row in rows["data"]:
                over = row["totalTokens"] - hard
                self._most = max(self._most, over)
                if over > BOUND:
                    what = f"{tenant} {row.get('user', '')}: {row['totalTokens']} of {hard}"
                    self._ground.found.add("a budget was overrun", what)

    async def finish(self) -> None:
        """Nothing: its jobs are checked as all others are."""

    def row(self) -> str:
        """What is printed."""
        over = f"{self._most} tokens over at most (bound {BOUND})" if self._most > 0 else "never over"
        return f"{self._stopped} jobs paused, {self._resumed} resumed, {self._refused} refused, {over}"


def is_paused(view: dict[str, Any]) -> bool:
    """Whether a job waits for its budget, and not for a retry."""
    return view["status"] == "waiting" and (view.get("queue") or {}).get("waitingOn") == "budget"
