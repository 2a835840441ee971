"""Agents that wait for a person: asked, answered, and gone on with, each call made once."""

from __future__ import annotations

import asyncio

from scripts.havoc.history import FINAL, Seen
from scripts.havoc.loads.ground import Ground

FIRST = 70_000_000


class Approvals:
    """One tenant's careful agents."""

    AT_ONCE = 2

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._key = ""
        self._answered = self._ended = 0

    async def prepare(self) -> None:
        """The tenant."""
        _, self._key = await self._ground.make_tenant("careful", {})

    async def one(self, number: int) -> None:
        """One agent; its person says yes, now and then no."""
        ref = f"ref{FIRST + number}x"
        goal = f"{ref}: 1. Calculate {number % 90 + 2} * 7.5. 2. Calculate {number % 70 + 3} * 2.5."
        wanted = {"goal": goal, "tools": ["calculate"], "approve": ["calculate"]}
        body = {"type": "agent", "input": wanted, "metadata": {"ref": ref}, "maxAttempts": 20}
        seen = Seen(ref, ref, self._key, body, kind="approvals")
        await self._clients.submit(seen)
        asked: set[str] = set()
        while True:
            _, view = await self._clients.call("GET", f"/api/jobs/{seen.job_id}", self._key)
            if view["status"] in FINAL:
                break
            waiting = view.get("waiting") or {}
            if waiting.get("requestId") and waiting["requestId"] not in asked:
                asked.add(waiting["requestId"])
                given = {"requestId": waiting["requestId"], "value": self._ground.chance.random() < 0.8}
                status, answer = await self._clients.call(
                    "POST", f"/api/jobs/{seen.job_id}/input", self._key, json=given
                )
                assert status in (200, 409), answer  # 409: an answer that was lost on the way had been taken
                self._answered += 1
            await asyncio.sleep(0.2)
        seen.finals.append(view["status"])
        self._ended += 1
        if view["status"] == "complete" and not asked:
            self._ground.found.add("a call was made without its approval", seen.job_id)
        self._clients.look_later(seen)

    async def finish(self) -> None:
        """Nothing: its jobs are checked as all others are."""

    def row(self) -> str:
        """What is printed."""
        return f"{self._ended} agents, {self._answered} questions answered"
