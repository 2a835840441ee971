"""What goes wrong in a chaos run: faults by chance, each on a process that no other fault has in hand."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiohttp
import redis.asyncio

from scripts.havoc.cluster import LEASE_S, Cluster, Member

# The kinds of faults, and how often each comes beside the others.
KINDS: Final = {
    "kill_worker": 6, "freeze_worker": 2, "pause_worker": 1, "deploy_worker": 2, "kill_redis": 1, "freeze_redis": 1,
    "fill_redis": 1, "kill_api": 1, "upset_model": 5,
}  # fmt: skip


class Faults:
    """What goes wrong, and how often it did."""

    def __init__(self, cluster: Cluster, chance: random.Random, chosen: Sequence[str]) -> None:
        self.cluster = cluster
        self.chance = chance
        self.chosen = chosen
        self.done: Counter[str] = Counter()
        self._tasks: list[asyncio.Future[None]] = []

    async def run(self, enough: Callable[[], bool], pause_s: tuple[float, float]) -> None:
        """Faults at random until `enough`; several may be under way at once."""
        kinds = [(getattr(self, name), weight) for name, weight in KINDS.items() if name in self.chosen]
        # Each kind once, then by chance: also a short run has seen them all.
        first = [kind for kind, _ in kinds]
        self.chance.shuffle(first)
        while not enough():
            (fault,) = self.chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            if first:
                fault = first.pop()
            task = asyncio.ensure_future(fault())
            self._tasks.append(task)
            # One that failed ends the run: its fault did not happen, or was not taken back.
            self._tasks = [task for task in self._tasks if not task.done() or task.exception() is not None]
            await asyncio.sleep(self.chance.uniform(*pause_s))
        if self._tasks:
            await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Ends what is under way."""
        await end_all(self._tasks)

    @asynccontextmanager
    async def _in_hand(self, members: list[Member], what: str) -> AsyncIterator[Member | None]:
        """One of them that no other fault has in hand, until the block ends; None when there is none."""
        idle = [member for member in members if not member.busy.locked()]
        if not idle:
            yield None
            return
        member = self.chance.choice(idle)
        async with member.busy:
            self.done[what] += 1
            yield member

    async def kill_worker(self) -> None:
        """SIGKILL; another comes a moment later."""
        async with self._in_hand(self.cluster.mortal(self.cluster.workers), "worker SIGKILL") as member:
            if member is None:
                return
            await member.end()
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))
            await member.start()

    async def freeze_worker(self) -> None:
        """SIGSTOP past the lease, then SIGCONT: it wakes and finds its jobs gone."""
        async with self._in_hand(self.cluster.workers, "worker SIGSTOP past its lease") as member:
            if member is None:
                return
            member.send(signal.SIGSTOP)
            await asyncio.sleep(LEASE_S + self.chance.uniform(2.5, 4))
            member.send(signal.SIGCONT)
            await asyncio.sleep(0.5)

    async def pause_worker(self) -> None:
        """SIGSTOP for less than a lease, then SIGCONT: nothing may come of it."""
        async with self._in_hand(self.cluster.workers, "worker SIGSTOP within its lease") as member:
            if member is None:
                return
            member.send(signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(0.5, LEASE_S))
            member.send(signal.SIGCONT)

    async def freeze_redis(self) -> None:
        """SIGSTOP for longer than a lease and than every time-out, then SIGCONT: late commands run late."""
        async with self._in_hand([self.cluster.redis], "Redis SIGSTOP") as member:
            if member is None:
                return
            member.send(signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(1, 2 * LEASE_S))
            member.send(signal.SIGCONT)
            await asyncio.sleep(1.0)

    async def fill_redis(self) -> None:
        """Redis refuses writes for want of memory."""
        async with self._in_hand([self.cluster.redis], "Redis out of memory") as member:
            if member is None:
                return
            client: Any = redis.asyncio.from_url(self.cluster.redis_url)
            await client.config_set("maxmemory", "1mb")
            await asyncio.sleep(self.chance.uniform(0.5, 2 * LEASE_S))
            await client.config_set("maxmemory", "0")
            await client.aclose()

    async def deploy_worker(self) -> None:
        """SIGTERM: it drains, hands back, and a new one comes."""
        async with self._in_hand(self.cluster.mortal(self.cluster.workers), "worker SIGTERM") as member:
            if member is None:
                return
            await member.end(signal.SIGTERM)
            await member.start()

    async def kill_redis(self) -> None:
        """SIGKILL, and a restart from its append-only file."""
        async with self._in_hand([self.cluster.redis], "Redis SIGKILL") as member:
            if member is None:
                return
            await member.end()
            await asyncio.sleep(self.chance.uniform(0.1, 1.5))
            await member.start()
            await self.cluster.until_redis_answers()
            # A server counts the growth of its file from its start: one that is killed each minute never writes it
            # anew by itself, and reads it for longer each time.
            client: Any = redis.asyncio.from_url(self.cluster.redis_url)
            with suppress(redis.ResponseError):  # it is at it
                await client.bgrewriteaof()
            await client.aclose()
            await asyncio.sleep(1.0)

    async def kill_api(self) -> None:
        """SIGKILL."""
        async with self._in_hand(self.cluster.mortal(self.cluster.apis), "API SIGKILL") as member:
            if member is None:
                return
            await member.end()
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))
            await member.start()

    async def upset_model(self) -> None:
        """The next calls of the model go wrong."""
        kinds: list[dict[str, Any]] = [
            {"kind": "status", "status": 429, "retryAfter": 1}, {"kind": "status", "status": 500},
            {"kind": "cut", "after": 3}, {"kind": "truncate", "after": 3}, {"kind": "drop"}, {"kind": "no_usage"},
            {"kind": "slow", "tokensPerSecond": 10},
        ]  # fmt: skip
        faults = [dict(self.chance.choice(kinds)) for _ in range(self.chance.randint(1, 6))]
        self.done["model faults"] += len(faults)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.cluster.model_url}/dev/faults", json=faults),
        ):
            pass


async def end_all(tasks: Iterable[asyncio.Future[None]]) -> None:
    """Cancels tasks and waits for their ends."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=5)


async def set_faults(cluster: Cluster, faults: list[dict[str, Any]]) -> None:
    """What the model's next calls come to."""
    async with aiohttp.ClientSession() as session, session.post(f"{cluster.model_url}/dev/faults", json=faults):
        pass
