"""The path of a job through the worker: claim, lease, fencing, cancel, retry, hand-back, loss."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.errors import LeaseLostError
from shared.events import NewEvent
from shared.stores.events import Begun, CallUsage, Reservation
from tests.conftest import DevModel, RedisServer, Stack, analysis, chat

LONG = " ".join(f"word{n}" for n in range(400))


async def claim(
    stack: Stack, worker: str = "w1", count: int = 1, lease_ms: int = 60_000, lane: str = "interactive"
) -> Any:
    jobs, _ = await stack.jobs.claim(worker=worker, lanes=[(lane, count)], count=count, lease_ms=lease_ms)
    return jobs


async def test_a_chat_job_streams_and_completes(stack: Stack, model: DevModel) -> None:
    job_id = await stack.submit(chat("What is a lease?"))
    view = await stack.finished(job_id)
    assert view["status"] == "complete"
    assert view["result"]["finishReason"] == "stop"
    assert "What is a lease?" in view["result"]["text"]
    stats = await model.stats()
    assert view["usage"]["inputTokens"] == stats["inputTokens"]
    assert view["usage"]["outputTokens"] == stats["outputTokens"]
    assert view["usage"]["estimated"] is False
    kinds = [event["type"] for event in await stack.log(job_id)]
    assert kinds[:2] == ["job.queued", "job.started"]
    assert kinds[-1] == "job.complete"
    assert kinds.index("delta") < kinds.index("job.usage")


async def test_a_claim_takes_each_job_once(edge: Stack) -> None:
    made = {await edge.submit(chat()) for _ in range(30)}
    batches = await asyncio.gather(*(claim(edge, f"w{n}", 7) for n in range(8)))
    taken = [job.job_id for batch in batches for job in batch]
    assert len(taken) == len(set(taken)) == 30
    assert set(taken) == made


async def test_priority_orders_a_tenants_jobs(edge: Stack) -> None:
    low = await edge.submit(chat(priority="low"))
    normal = await edge.submit(chat())
    high = await edge.submit(chat(priority="high"))
    assert [job.job_id for job in await claim(edge, count=3)] == [high, normal, low]


async def test_tenants_take_turns(edge: Stack) -> None:
    """Given 20 jobs of one tenant, when another submits one, then it is claimed after at most one of the first."""
    for _ in range(20):
        await edge.submit(chat())
    await claim(edge, count=2)
    _, key = await edge.tenant()
    theirs = await edge.submit(chat(), key=key)
    assert theirs in [job.job_id for job in await claim(edge, count=2)]


async def test_a_tenants_concurrency_is_bounded(edge: Stack) -> None:
    _, key = await edge.tenant(maxConcurrentJobs=2)
    made = [await edge.submit(chat(), key=key) for _ in range(5)]
    first = await claim(edge, count=10)
    assert len(first) == 2
    waiting = (await edge.call("GET", f"/api/jobs/{made[-1]}", key=key)).json
    assert waiting["queue"]["waitingOn"] == "tenantConcurrency"
    own = await edge.submit(chat())
    assert [job.job_id for job in await claim(edge, count=10)] == [own]
    await edge.jobs.settle_one(first[0], "w1", outcome="complete", result="{}")
    assert len(await claim(edge, count=10)) == 1


async def test_only_the_owner_of_the_lease_writes(edge: Stack) -> None:
    """Given a job that was reaped and claimed again, when the first owner writes, then everything is refused."""
    job_id = await edge.submit(chat())
    (old,) = await claim(edge, "w1", lease_ms=1)
    await asyncio.sleep(0.02)
    assert await edge.jobs.reap() == [(job_id, "queued", "lease")]
    (new,) = await claim(edge, "w2")
    assert (new.lease, new.attempt) == (2, 2)
    with pytest.raises(LeaseLostError):
        await edge.events.append_one(old, "w1", 1, [NewEvent("delta", {"text": "x"})])
    with pytest.raises(LeaseLostError):
        await edge.jobs.settle_one(old, "w1", outcome="complete", result='{"text":"old"}')
    with pytest.raises(LeaseLostError):
        await edge.events.begin_step(old, "w1", step="s", label="s", call="c", reserve=Reservation("m", 1))
    states = await edge.jobs.renew(worker="w1", lanes=[("interactive", 1)], lease_ms=1_000, jobs=[(job_id, old.lease)])
    assert states == [0]
    await edge.jobs.settle_one(new, "w2", outcome="complete", result='{"text":"new"}')
    view = (await edge.call("GET", f"/api/jobs/{job_id}")).json
    assert view["result"] == {"text": "new"}


async def test_a_settlement_that_is_repeated_is_written_once(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    (job,) = await claim(edge)
    assert await edge.jobs.settle_one(job, "w1", outcome="complete", result="{}") == "complete"
    assert await edge.jobs.settle_one(job, "w1", outcome="failed", error="{}") == "again"
    assert [event["type"] for event in await edge.log(job_id)].count("job.complete") == 1
    assert await edge.client.hgetall(edge.keys.running) == {}


async def test_an_event_batch_that_is_repeated_is_written_once(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    (job,) = await claim(edge)
    for _ in range(3):
        await edge.events.append_one(job, "w1", 1, [NewEvent("delta", {"text": "x"})])
    await edge.events.append_one(job, "w1", 2, [NewEvent("delta", {"text": "y"})])
    texts = [event["text"] for event in await edge.log(job_id) if event["type"] == "delta"]
    assert texts == ["x", "y"]


async def test_a_renewed_lease_is_not_reaped_and_a_lapsed_one_can_be_renewed(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    (job,) = await claim(edge, lease_ms=10)
    await asyncio.sleep(0.02)
    assert await edge.jobs.renew(
        worker="w1", lanes=[("interactive", 1)], lease_ms=60_000, jobs=[(job_id, job.lease)]
    ) == [1]
    assert await edge.jobs.reap() == []


async def test_a_job_that_kills_three_workers_is_poison(edge: Stack) -> None:
    job_id = await edge.submit(chat(maxAttempts=1))
    for number in range(3):
        (job,) = await claim(edge, f"w{number}", lease_ms=1)
        assert job.attempt == number + 1
        await asyncio.sleep(0.02)
        await edge.jobs.reap()
    view = (await edge.call("GET", f"/api/jobs/{job_id}")).json
    assert (view["status"], view["error"]["code"]) == ("failed", "worker_lost")


async def test_a_lost_worker_does_not_lose_its_job(make_stack: Any, model: DevModel) -> None:
    """Given a worker that dies in the middle of an answer, when its lease ends, then another answers, and clients
    are told which text is void."""
    stack: Stack = await make_stack(lease_seconds=1.0)
    await model.pace(tokensPerSecond=50)
    dying = await stack.spawn_worker()
    job_id = await stack.submit(chat(LONG))
    async with asyncio.timeout(10):
        while not any(event["type"] == "delta" for event in await stack.log(job_id)):
            await asyncio.sleep(0.02)
    dying.kill()
    await model.pace(tokensPerSecond=0)
    await stack.start_worker("interactive")
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 2)
    events = await stack.log(job_id)
    restarted = next(event for event in events if event["type"] == "attempt.restarted")
    kept = "".join(
        event["text"]
        for event in events
        if event["type"] == "delta" and not restarted["discardAfter"] < event["seq"] < restarted["seq"]
    )
    assert kept == view["result"]["text"]
    assert view["usage"]["wastedTokens"] > 0
    assert view["usage"]["estimated"] is True


async def test_cancelling_a_running_job_closes_the_models_connection(stack: Stack, model: DevModel) -> None:
    await model.pace(tokensPerSecond=20)
    job_id = await stack.submit(chat(LONG))
    await stack.until(job_id, "processing")
    async with asyncio.timeout(5):
        while (await model.stats())["outputTokens"] < 3:
            await asyncio.sleep(0.02)
    answer = await stack.call("DELETE", f"/api/jobs/{job_id}?wait=5")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    receipt = answer.json["cancellation"]
    assert receipt["upstreamClosedMs"] is not None
    assert receipt["upstreamClosedMs"] < 2_000
    assert receipt["usageFinal"] == answer.json["usage"]["totalTokens"] > 0
    assert answer.json["usage"]["wastedTokens"] == receipt["usageFinal"]
    async with asyncio.timeout(5):
        while (stats := await model.stats())["open"]:
            await asyncio.sleep(0.02)
    assert stats["ended"] == {"closed": 1}
    assert stats["outputTokens"] < 100
    assert abs(answer.json["usage"]["outputTokens"] - stats["outputTokens"]) <= 2


async def test_a_cancel_without_waiting_is_accepted(stack: Stack, model: DevModel) -> None:
    await model.pace(tokensPerSecond=20)
    job_id = await stack.submit(chat(LONG))
    await stack.until(job_id, "processing")
    answers = await asyncio.gather(*(stack.call("DELETE", f"/api/jobs/{job_id}") for _ in range(2)))
    assert {answer.status for answer in answers} <= {200, 202}
    assert (await stack.finished(job_id))["status"] == "cancelled"


async def test_a_cancel_whose_message_was_lost_is_found_by_the_heartbeat(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(workers=("interactive",), lease_seconds=1.0)
    await model.pace(tokensPerSecond=5)
    job_id = await stack.submit(chat(LONG))
    view = await stack.until(job_id, "processing")
    key = stack.keys.job(job_id)
    await stack.client.hset(key, mapping={"status": "cancelling", "cancel_ms": "1", "cancel_tokens": "0"})
    assert view["attempt"] == 1
    assert (await stack.finished(job_id))["status"] == "cancelled"


async def test_a_429_is_retried_after_the_models_wish(stack: Stack, model: DevModel) -> None:
    await model.faults({"kind": "status", "status": 429, "retryAfter": 1})
    job_id = await stack.submit(chat())
    waiting = await stack.until(job_id, "waiting")
    assert waiting["waiting"]["kind"] == "backoff"
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 2)
    events = await stack.log(job_id)
    wait = next(event for event in events if event["type"] == "job.waiting")
    assert wait["delaySeconds"] >= 1
    assert wait["error"]["code"] == "upstream_rate_limited"


@pytest.mark.parametrize(
    ("fault", "code", "attempts"),
    [
        ({"kind": "status", "status": 500, "times": 9}, "upstream_unavailable", 2),
        ({"kind": "status", "status": 429, "times": 9}, "upstream_rate_limited", 2),
        ({"kind": "status", "status": 404, "times": 9}, "upstream_refused", 1),
        ({"kind": "cut", "after": 2, "times": 9}, "upstream_unavailable", 2),
        ({"kind": "truncate", "after": 2, "times": 9}, "upstream_unavailable", 2),
        ({"kind": "drop", "times": 9}, "upstream_unavailable", 2),
        ({"kind": "refuse", "times": 9}, "upstream_refused", 1),
    ],
)
async def test_faults_of_the_model_have_their_code(
    stack: Stack, model: DevModel, fault: dict[str, Any], code: str, attempts: int
) -> None:
    await model.faults(fault)
    job_id = await stack.submit(chat(LONG, maxAttempts=2))
    view = await stack.finished(job_id)
    assert (view["status"], view["error"]["code"], view["attempt"]) == ("failed", code, attempts)
    assert view["error"]["step"] == "chat"
    assert "Traceback" not in view["error"]["message"]


async def test_a_cut_stream_is_paid_for_and_asked_again(stack: Stack, model: DevModel) -> None:
    await model.faults({"kind": "cut", "after": 3})
    job_id = await stack.submit(chat(LONG))
    view = await stack.finished(job_id)
    assert (view["status"], view["attempt"]) == ("complete", 2)
    stats = await model.stats()
    assert view["usage"]["outputTokens"] == stats["outputTokens"]
    assert view["usage"]["wastedTokens"] >= 3
    events = await stack.log(job_id)
    restarted = next(event for event in events if event["type"] == "attempt.restarted")
    text = "".join(event["text"] for event in events if event["type"] == "delta" and event["seq"] > restarted["seq"])
    assert text == view["result"]["text"]


async def test_missing_usage_is_counted_here(stack: Stack, model: DevModel) -> None:
    await model.faults({"kind": "no_usage"})
    view = await stack.finished(await stack.submit(chat("a b c")))
    stats = await model.stats()
    assert view["usage"]["estimated"] is True
    assert view["usage"]["outputTokens"] == stats["outputTokens"]
    assert view["usage"]["inputTokens"] > 0


async def test_a_silent_model_is_given_up(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(workers=("interactive",), model_first_token_seconds=0.3, model_connect_seconds=0.2)
    await model.faults({"kind": "stall", "seconds": 30})
    view = await stack.finished(await stack.submit(chat(maxAttempts=1)))
    assert (view["status"], view["error"]["code"]) == ("failed", "upstream_unavailable")


async def test_a_model_that_cannot_be_reached_fails_the_job(make_stack: Any) -> None:
    stack: Stack = await make_stack(workers=("interactive",), openai_base_url="http://127.0.0.1:9/v1")
    view = await stack.finished(await stack.submit(chat(maxAttempts=1)))
    assert (view["error"]["code"], view["usage"]["totalTokens"]) == ("upstream_unavailable", 0)


async def test_a_time_out_is_a_failure(stack: Stack, model: DevModel) -> None:
    await model.pace(tokensPerSecond=10)
    view = await stack.finished(await stack.submit(chat(LONG, timeoutSeconds=0.5)))
    assert (view["status"], view["error"]["code"], view["attempt"]) == ("failed", "timeout", 1)
    assert view["usage"]["totalTokens"] > 0
    async with asyncio.timeout(5):
        while (await model.stats())["open"]:
            await asyncio.sleep(0.02)


async def test_a_job_that_does_not_start_expires(edge: Stack) -> None:
    queued = await edge.submit(chat(expiresInSeconds=0.05))
    scheduled = await edge.submit(chat(delaySeconds=0.01, expiresInSeconds=0.01))
    await asyncio.sleep(0.1)
    assert set(await edge.jobs.reap()) == {(queued, "expired", "expiry"), (scheduled, "expired", "expiry")}
    for job_id in (queued, scheduled):
        assert (await edge.call("GET", f"/api/jobs/{job_id}")).json["status"] == "expired"
    assert await claim(edge) == []
    assert (await edge.call("POST", f"/api/jobs/{queued}/retry")).status == 202


async def test_a_stopping_worker_hands_its_job_back_without_an_attempt(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack()
    await model.pace(tokensPerSecond=20)
    first = await stack.start_worker("interactive")
    job_id = await stack.submit(chat(LONG))
    await stack.until(job_id, "processing")
    await stack.stop_worker(first)
    view = (await stack.call("GET", f"/api/jobs/{job_id}")).json
    assert (view["status"], view["attempt"]) == ("queued", 1)
    await model.pace(tokensPerSecond=0)
    await stack.start_worker("interactive")
    done = await stack.finished(job_id)
    assert (done["status"], done["attempt"]) == ("complete", 1)


async def test_a_stopping_worker_finishes_what_is_nearly_done(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(drain_seconds=5.0)
    await model.pace(firstTokenSeconds=0.4)
    engine = await stack.start_worker("interactive")
    job_id = await stack.submit(chat())
    await stack.until(job_id, "processing")
    await stack.stop_worker(engine)
    assert (await stack.call("GET", f"/api/jobs/{job_id}")).json["status"] == "complete"


async def test_a_journaled_step_is_not_asked_again(stack: Stack, model: DevModel) -> None:
    """Given an analysis whose combining call fails for good, when it is retried, then only that one is asked."""
    text = "\n\n".join(f"Part {n} says that item {n} costs {n} francs. " + f"Filler {n}. " * 130 for n in range(4))
    job = analysis(text, {"kind": "summary"})
    done = await stack.finished(await stack.submit(job))
    calls = (await model.stats())["calls"]
    assert (done["status"], calls >= 4) == ("complete", True)
    await model.reset()
    # The reading calls pass, the one after them is refused.
    await model.faults(
        *({"kind": "slow", "tokensPerSecond": 5_000} for _ in range(calls - 1)), {"kind": "status", "status": 400}
    )
    job_id = await stack.submit(job)
    failed = await stack.finished(job_id)
    assert (failed["status"], failed["error"]["step"]) == ("failed", "combine/1")
    await stack.call("POST", f"/api/jobs/{job_id}/retry")
    view = await stack.finished(job_id)
    assert view["status"] == "complete"
    assert view["result"] == done["result"]
    assert (await model.stats())["ended"] == {"done": calls, "fault": 1}
    assert view["usage"]["reusedTokens"] > 0
    assert view["usage"]["totalTokens"] == done["usage"]["totalTokens"]


async def test_usage_is_booked_once_and_also_after_the_lease_was_lost(edge: Stack) -> None:
    """Given a call in flight when its worker froze, when the next owner books an estimate and the first one wakes,
    then the true figure replaces the estimate."""
    job_id = await edge.submit(chat())
    (old,) = await claim(edge, "w1", lease_ms=1)
    step = {"step": "chat:1", "label": "chat"}
    assert isinstance(await edge.events.begin_step(old, "w1", call="c1", reserve=Reservation("m", 100), **step), Begun)
    await asyncio.sleep(0.02)
    await edge.jobs.reap()
    (new,) = await claim(edge, "w2")
    assert isinstance(await edge.events.begin_step(new, "w2", call="c2", reserve=Reservation("m", 100), **step), Begun)
    view = (await edge.call("GET", f"/api/jobs/{job_id}")).json
    assert (view["usage"]["inputTokens"], view["usage"]["wastedTokens"]) == (100, 100)
    with pytest.raises(LeaseLostError):
        await edge.events.finish_step(old, "w1", call="c1", usage=CallUsage(90, 10), result=b'{"old":1}', **step)
    for _ in range(2):
        await edge.events.finish_step(new, "w2", call="c2", usage=CallUsage(90, 20), result=b'{"new":1}', **step)
    usage = (await edge.call("GET", f"/api/jobs/{job_id}")).json["usage"]
    assert (usage["inputTokens"], usage["outputTokens"], usage["wastedTokens"]) == (180, 30, 100)
    assert await edge.events.begin_step(new, "w2", call="c3", reserve=Reservation("m", 100), **step) == b'{"new":1}'
    assert (await edge.call("GET", f"/api/jobs/{job_id}")).json["usage"]["reusedTokens"] == 110


async def test_the_token_budget_of_a_job_is_kept(stack: Stack, model: DevModel) -> None:
    view = await stack.finished(await stack.submit(chat(LONG, tokenBudget=50)))
    assert (view["status"], view["error"]["code"]) == ("failed", "budget_exhausted")
    assert (await model.stats())["calls"] == 0


async def test_removed_jobs_are_gone_and_then_unknown(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    assert await edge.jobs.sweep() == 0
    await edge.client.zadd(edge.keys.retention, {job_id: 1})
    assert await edge.jobs.sweep() == 1
    for suffix in ("", "/stream", "/events"):
        answer = await edge.call("GET", f"/api/jobs/{job_id}{suffix}")
        assert (answer.status, answer.json["code"]) == (410, "gone")
    assert (await edge.call("GET", "/api/jobs")).json["data"] == []
    _, key = await edge.tenant()
    assert (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).status == 404
    await edge.client.delete(edge.keys.gone(job_id))
    assert (await edge.call("GET", f"/api/jobs/{job_id}")).status == 404


async def test_redis_killed_in_the_middle_loses_nothing(
    make_stack: Any, own_redis: RedisServer, model: DevModel
) -> None:
    """Given jobs queued and running, when Redis is killed and restarted, then the API says 503 meanwhile, and each
    job completes with a gap-free log."""
    stack: Stack = await make_stack(workers=("interactive",), redis_url=own_redis.url)
    await model.pace(tokensPerSecond=300)
    made = [await stack.submit(chat(LONG)) for _ in range(5)]
    await stack.until(made[0], "processing")
    await asyncio.to_thread(own_redis.kill)
    refused = await stack.call("POST", "/api/jobs", chat())
    assert (refused.status, refused.json["code"]) == (503, "unavailable")
    assert int(refused.headers["Retry-After"]) >= 1
    await asyncio.to_thread(own_redis.start)
    for job_id in made:
        view = await stack.finished(job_id)
        assert (view["status"], view["attempt"]) == ("complete", 1)
        events = await stack.log(job_id)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert "".join(event["text"] for event in events if event["type"] == "delta") == view["result"]["text"]


async def test_a_sleeping_worker_is_woken_at_once(stack: Stack) -> None:
    """Given an idle worker, when a job comes, then it starts far sooner than the slow poll would look."""
    await asyncio.sleep(0.3)
    view = await stack.finished(await stack.submit(chat()))
    events = await stack.log(view["jobId"])
    at = {event["type"]: event["at"] for event in events}
    assert at["job.queued"][:17] == at["job.started"][:17]
    waited_s = float(at["job.started"][17:-1]) - float(at["job.queued"][17:-1])
    assert waited_s < 1.0
