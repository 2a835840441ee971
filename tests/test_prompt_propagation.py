"""A label that is moved is seen by every process within a second, with its notice or without."""

from __future__ import annotations

import asyncio
import time

from api.pinning import Pinning
from shared.stores.prompts import PromptsStore
from tests.conftest import ADMIN_KEY, Stack, chat
from tests.prompting import make, move, version

WITHIN_S = 1.0


async def used(stack: Stack, base: str) -> int:
    """The version that a process gives a job now."""
    body = chat(prompt={"name": "greeting", "variables": {"name": "Ann"}}, delaySeconds=3_600)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with stack.session.post(f"{base}/api/jobs", json=body, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        return int((await answer.json())["prompt"]["version"])


async def slowest_s(stack: Stack, bases: list[str], to: int) -> float:
    """How long after the answer to a move the last process used the new version; each is asked without a pause."""
    assert (await move(stack, to)).status == 200
    moved_s = time.monotonic()

    async def until(base: str) -> float:
        while await used(stack, base) != to:
            assert time.monotonic() - moved_s < 10
        return time.monotonic() - moved_s

    return max(await asyncio.gather(*map(until, bases)))


async def processes(stack: Stack) -> list[str]:
    """Three processes of their own that all know the prompt, beside the one through which it is moved."""
    await make(stack, labels=["production"])
    await version(stack, "Second for {{name}}.")
    bases = [await stack.spawn_api() for _ in range(3)]
    for base in bases:
        assert await used(stack, base) == 1
    return bases


async def test_a_moved_label_is_seen_everywhere_at_once(edge: Stack) -> None:
    """Given three API processes that have just used a label, when it is moved through a fourth, then all use the new
    version within a second; by their notices much sooner."""
    bases = await processes(edge)
    times = [await slowest_s(edge, bases, to) for to in (2, 1, 2, 1, 2)]
    assert max(times) < WITHIN_S
    # A head is believed for 0.8 s without notice; the middle of five would be above half of that.
    assert sorted(times)[2] < 0.3


async def test_a_moved_label_is_seen_in_time_without_its_notice(edge: Stack) -> None:
    """Given the same, when the notices are lost, then all use the new version within a second."""
    bases = await processes(edge)

    deaf = True

    async def deafen() -> None:
        # Subscribers connect again by themselves; what was published meanwhile is lost to them.
        while deaf:
            await edge.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0)

    cutting = asyncio.create_task(deafen())
    await asyncio.sleep(0.05)
    times = [await slowest_s(edge, bases, to) for to in (2, 1, 2)]
    deaf = False
    await cutting
    assert max(times) < WITHIN_S
    # Some heads were read just before the move, others were about to be read anew: no notice would be so slow.
    assert max(times) > 0.3


async def test_no_head_is_believed_for_long(edge: Stack) -> None:
    """Given a process that hears no notice at all, then what it knows of a prompt is read anew within a second."""
    await make(edge, labels=["production"])
    await version(edge, "Second for {{name}}.")
    owner = (await edge.call("GET", "/api/admin/tenants")).json["data"][-1]["tenantId"]
    deaf = Pinning(PromptsStore(edge.client, edge.keys))
    assert (await deaf.resolve(owner, "greeting")).version == 1
    await move(edge, 2)
    assert (await deaf.resolve(owner, "greeting")).version == 1, "it did not keep what it knew"
    began_s = time.monotonic()
    while (await deaf.resolve(owner, "greeting")).version == 1:
        await asyncio.sleep(0.01)
    assert time.monotonic() - began_s < WITHIN_S
