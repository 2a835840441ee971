"""Faults of the queue that reviews found: refusals, lost answers, freezes, crowds."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from scripts.havoc.plants import PLANTS
from scripts.mutants import MUTANTS, ROOT
from shared.errors import ConfigurationError
from shared.redis import OUTAGE
from shared.stores.jobs import Settlement
from tests.conftest import DevModel, RedisServer, Stack, analysis, chat
from tests.test_queue import LONG, Done, claim, takes


def test_every_planted_bug_fits_the_source() -> None:
    edits = [(bug.file, bug.old) for bug in MUTANTS]
    edits += [(file, old) for plant in PLANTS.values() for file, old, _ in plant.edits]
    assert [f"{file}: {old[:60]}" for file, old in edits if old not in (ROOT / file).read_text()] == []


async def test_a_redis_without_memory_loses_no_outcome(make_stack: Any, own_redis: RedisServer) -> None:
    """Given running jobs, when they end while Redis refuses writes, then each is complete when it takes them again."""
    stack: Stack = await make_stack(redis_url=own_redis.url, lease_seconds=1.0)
    await stack.start_worker("interactive", handlers={"chat": takes(0.5)})
    made = [await stack.submit(chat()) for _ in range(5)]
    for job_id in made:
        await stack.until(job_id, "processing")
    await stack.client.config_set("maxmemory", "1mb")
    try:
        await asyncio.sleep(2.5)
        refused = await stack.call("POST", "/api/jobs", chat())
        assert (refused.status, refused.json["code"]) == (503, "unavailable")
    finally:
        await stack.client.config_set("maxmemory", "0")
    for job_id in made:
        view = await stack.finished(job_id)
        assert (view["status"], view["attempt"]) == ("complete", 1)
    assert await stack.client.hgetall(stack.keys.running) == {}


async def test_a_reap_that_redis_refuses_leaves_the_leases(
    edge: Stack, own_redis: RedisServer, make_stack: Any
) -> None:
    stack: Stack = await make_stack(redis_url=own_redis.url, api=False)
    client = await make_stack(redis_url=own_redis.url)
    job_id = await client.submit(chat())
    stack = client
    jobs, _ = await stack.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=1)
    assert [job.job_id for job in jobs] == [job_id]
    await stack.client.config_set("maxmemory", "1mb")
    with pytest.raises(OUTAGE):
        await stack.jobs.reap()
    await stack.client.config_set("maxmemory", "0")
    assert await stack.client.zcard(stack.keys.leases) == 1
    assert await stack.jobs.reap() == [(job_id, "queued", "lease")]


async def test_jobs_of_a_claim_that_was_not_answered_are_handed_back(make_stack: Any, own_redis: RedisServer) -> None:
    """Given a claim that Redis executed and whose answer was lost, then its jobs are handed back and run, and none has
    lost a worker or used up an attempt."""
    stack: Stack = await make_stack(redis_url=own_redis.url, lease_seconds=60.0)
    engine = await stack.start_worker("interactive", handlers={"chat": takes(0)})
    made = [await stack.submit(chat(delaySeconds=3)) for _ in range(3)]
    # As if a claim of ours had been executed, and its answer lost with the connection.
    await stack.client.zadd(stack.keys.delayed("interactive"), dict.fromkeys(made, 1))
    lost, _ = await stack.jobs.claim(worker=engine.worker_id, lanes=[("interactive", 3)], count=3, lease_ms=60_000)
    assert len(lost) == 3
    await asyncio.to_thread(own_redis.kill)
    await asyncio.sleep(0.3)
    engine._wake.set()
    await asyncio.sleep(0.3)
    await asyncio.to_thread(own_redis.start)
    async with asyncio.timeout(10):
        while (await stack.call("GET", "/api/jobs")).status == 503:
            await asyncio.sleep(0.1)
    for job_id in made:
        view = await stack.finished(job_id)
        assert (view["status"], view["attempt"]) == ("complete", 1)
        assert await stack.client.hget(stack.keys.job(job_id), "lost") is None


async def test_many_expired_jobs_are_cleared_in_pieces(edge: Stack) -> None:
    for _ in range(20):
        await asyncio.gather(*(edge.submit(chat(priority="high")) for _ in range(50)))
    good = await edge.submit(chat(priority="low"))
    expired = await edge.client.zrange(edge.keys.expiring, 0, -1)
    pipe = edge.client.pipeline()
    for job_id in expired:
        if job_id.decode() != good:
            pipe.hset(edge.keys.job(job_id.decode()), "expires_ms", 1)
    await pipe.execute()
    taken: list[str] = []
    calls, due = 0, 0
    while due == 0:
        calls += 1
        jobs, due = await edge.jobs.claim(worker="w", lanes=[("interactive", 10)], count=10, lease_ms=60_000)
        taken += [job.job_id for job in jobs]
    assert taken == [good]
    assert calls >= 5
    assert await edge.client.zcard(edge.keys.retention) == 1_000


async def test_a_worker_with_many_jobs_keeps_its_leases(edge: Stack) -> None:
    prefix, count = edge.settings.redis_prefix, 6_000
    pipe = edge.client.pipeline()
    for number in range(count):
        pipe.hset(f"{prefix}job:j{number}", mapping={"owner": "w", "lease": 1, "status": "processing"})
    await pipe.execute()
    jobs = [(f"j{number}", 1) for number in range(count)]
    states = await edge.jobs.renew(worker="w", lanes=[("batch", "9")], lease_ms=1_000, jobs=jobs)
    assert states == [1] * count
    assert await edge.client.zcard(edge.keys.leases) == count


async def test_an_older_attempt_on_the_same_worker_is_stopped(make_stack: Any) -> None:
    """Given a lease that was taken back and came to the same worker again, then the older attempt, which writes nothing
    by which it could notice, is stopped."""
    stack: Stack = await make_stack(lease_seconds=60.0)
    began, stopped = [], []

    async def silent(_: Any, context: Any) -> Done:
        began.append(context.job.lease)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append(context.job.lease)
            raise
        return Done()

    await stack.start_worker("interactive", handlers={"chat": silent})
    job_id = await stack.submit(chat())
    await stack.until(job_id, "processing")
    await stack.client.zadd(stack.keys.leases, {job_id: 1})
    await stack.jobs.reap()
    async with asyncio.timeout(5):
        while len(began) < 2 or not stopped:
            await asyncio.sleep(0.02)
    assert (began, stopped) == ([1, 2], [1])
    answer = await stack.call("DELETE", f"/api/jobs/{job_id}?wait=5")
    assert answer.json["status"] == "cancelled"
    assert stopped == [1, 2]


async def test_nothing_is_taken_back_when_redis_was_away(make_stack: Any, own_redis: RedisServer) -> None:
    """Given running jobs, when Redis stands still for longer than their leases and all time-outs, then none is run
    again."""
    stack: Stack = await make_stack(redis_url=own_redis.url, lease_seconds=2.0)
    await stack.start_worker("interactive", handlers={"chat": takes(9)})
    made = [await stack.submit(chat()) for _ in range(5)]
    for job_id in made:
        await stack.until(job_id, "processing")
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    await asyncio.sleep(5.5)
    os.kill(own_redis.process.pid, signal.SIGCONT)
    for job_id in made:
        view = await stack.finished(job_id)
        assert (view["status"], view["attempt"]) == ("complete", 1)


async def test_slots_that_become_free_at_once_are_all_used_at_once(make_stack: Any) -> None:
    """Given a tenant at its limit and three workers, when all its slots are freed in one step, then all are used again
    at once, not one worker after the other."""
    stack: Stack = await make_stack(lease_seconds=60.0)
    tenant, key = await stack.tenant(maxConcurrentJobs=6)
    assert tenant
    made = [await stack.submit(chat(), key=key) for _ in range(12)]
    held = await claim(stack, 6)
    for _ in range(3):
        await stack.start_worker("interactive", worker_slots=2, handlers={"chat": takes(30)})
    await asyncio.sleep(0.3)
    await stack.jobs.settle("w1", [Settlement(job.job_id, job.lease, "complete", result="{}") for job in held])
    started = time.monotonic()
    waiting = [job_id for job_id in made if job_id not in [job.job_id for job in held]]
    for job_id in waiting:
        while (await stack.call("GET", f"/api/jobs/{job_id}", key=key)).json["status"] != "processing":
            assert time.monotonic() - started < 0.4
            await asyncio.sleep(0.01)


async def test_batch_jobs_are_slowed_down_by_interactive_ones_but_never_starved(make_stack: Any) -> None:
    """Given a worker for both lanes with one slot and chats that always wait, then a batch job runs all the same."""
    stack: Stack = await make_stack(aging_seconds=0.5)
    made = [await stack.submit(chat()) for _ in range(40)]
    slow = await stack.submit(analysis("A text."))
    handlers = {"chat": takes(0.1), "document-analysis": takes(0)}
    await stack.start_worker("both", worker_slots=1, handlers=handlers)
    view = await stack.finished(slow)
    assert view["status"] == "complete"
    last = (await stack.call("GET", f"/api/jobs/{made[-1]}")).json
    assert last["status"] == "queued"


async def test_slots_that_are_all_reserved_are_refused(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    with pytest.raises(ConfigurationError, match="leaves none of ERRAND_WORKER_SLOTS=3"):
        await stack.start_worker("both", worker_slots=3, reserved_interactive_slots=3)


async def test_no_eta_when_the_workers_are_gone(make_stack: Any) -> None:
    """Given a worker that died without a goodbye, when its last heartbeat is old, then its slots are not counted."""
    stack: Stack = await make_stack(lease_seconds=1.0)
    await stack.jobs.renew(worker="ghost", lanes=[("interactive", "5")], lease_ms=400, jobs=[])
    alive = (await stack.call("POST", "/api/jobs", chat())).json
    assert alive["queue"]["eta"] == {"p50Seconds": 0.0, "p90Seconds": 0.0}
    await asyncio.sleep(1.5)
    gone = (await stack.call("POST", "/api/jobs", chat(priority="high"))).json
    assert (gone["queue"]["eta"], gone["queue"]["waitingOn"]) == (None, "worker")


async def test_a_cancel_while_the_subscriber_is_away_is_heard_at_once(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(lease_seconds=30.0)
    await model.pace(tokensPerSecond=5)
    await stack.start_worker("interactive")
    job_id = await stack.submit(chat(LONG))
    await stack.until(job_id, "processing")
    await stack.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.sleep(0.01)
    started = time.monotonic()
    answer = await stack.call("DELETE", f"/api/jobs/{job_id}?wait=5")
    assert answer.json["status"] == "cancelled"
    assert time.monotonic() - started < 2.0
