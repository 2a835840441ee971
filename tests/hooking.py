"""What tests of webhooks share: what the API says of deliveries, and time that passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from shared.errors import UpstreamUnavailable
from tests.conftest import Stack


async def secret(stack: Stack, **options: Any) -> str:
    return str((await stack.call("GET", "/api/webhooks/secret", **options)).json["secret"])


async def deliveries(stack: Stack, query: str = "", **options: Any) -> list[dict[str, Any]]:
    answer = await stack.call("GET", f"/api/webhooks/deliveries?{query}", **options)
    assert answer.status == 200, answer.text
    return list(answer.json["data"])


async def delivery(stack: Stack, job_id: str, status: str, *, attempts: int = 0, seconds: float = 15.0) -> Any:
    """The one delivery of a job, once it has this status and so many attempts."""
    async with asyncio.timeout(seconds):
        while True:
            answer = await stack.call("GET", f"/api/webhooks/deliveries?jobId={job_id}")
            assert answer.status in (200, 503), answer.text  # 503 while Redis is away
            found = answer.json.get("data")
            if found and found[0]["status"] == status and found[0]["attempts"] >= attempts:
                assert len(found) == 1
                return (await stack.call("GET", f"/api/webhooks/deliveries/{found[0]['deliveryId']}")).json
            await asyncio.sleep(0.02)


async def time_passes(stack: Stack) -> None:
    """All that waits for its next request is due now, leases have run out and pauses are over."""
    client, prefix = stack.client, stack.settings.redis_prefix
    async for name in client.scan_iter(f"{prefix}hook:*"):
        await client.hset(name, mapping={"until_ms": "0", "rest_ms": "0"})
    async for name in client.scan_iter(f"{prefix}hookbusy:*"):
        await client.delete(name)
    async for name in client.scan_iter(f"{prefix}hookq:*"):
        for member in await client.zrange(name, 0, -1):
            await client.zadd(name, {member: 1})
    for member in await client.zrange(stack.keys.hooks, 0, -1):
        await client.zadd(stack.keys.hooks, {member: 1})
    await client.publish(stack.keys.hooks_channel, "due")


async def until(check: Callable[[], Any], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.02)


class Said(msgspec.Struct):
    """A job's result."""

    text: str


def task(text: str = "done", *, warns: bool = False, fails: int = 0, gate: asyncio.Event | None = None) -> Any:
    """A job's task that returns this text, after so many failures that may pass; with `gate`, once that is open."""
    left = [fails]

    async def run(_: Any, context: Any) -> Said:
        if gate is not None:
            await gate.wait()
        if warns:
            context.report.event("job.warning", code="odd", message="Something is odd.")
        if left[0]:
            left[0] -= 1
            raise UpstreamUnavailable("The model is away.")
        return Said(text)

    return run
