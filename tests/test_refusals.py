"""Why was I refused: chats at a token rate, others' reservations, full queues, budgets of a job, missing prices."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import api.chat
from shared.limits import Why, detail_of, sentence_of, why_of
from shared.redis import redis_now_ms
from shared.stores.events import Blocked, Reservation
from shared.stores.jobs import Settlement
from tests.conftest import DevModel, Stack, chat
from tests.test_spending import claim, step
from worker.limits import over_limit

BODY = {"messages": [{"role": "user", "content": "Hello there."}]}
MEMBERS = {"scope", "id", "unit", "period", "limit", "used", "reserved", "remaining", "freesAt"}


async def owe(stack: Stack, tenant: str, seconds: float, rate: int) -> None:
    """The tenant's token rate is in debt for so long."""
    now_us = await redis_now_ms(stack.client) * 1000
    key = f"{stack.settings.redis_prefix}rate:{tenant}"
    await stack.client.hset(key, "t", f"{round(now_us + seconds * 1e6)} {rate}")  # type: ignore[misc]
    await stack.client.pexpire(key, 120_000)


async def requests_left(stack: Stack, key: str) -> int:
    rows = (await stack.call("GET", "/api/limits", key=key)).json["data"]
    return int(next(row["remaining"] for row in rows if row["name"] == "requestsPerMinute"))


async def test_a_chat_whose_rate_has_room_in_time_waits_for_it(stack: Stack) -> None:
    """Given a chat of which a worker finds that its call must wait 6 s, when that is within what a chat waits, then it
    gives its slot back, begins again, and answers."""
    tenant, key = await stack.tenant(tokensPerMinute=600, tokensBurst=100)
    await owe(stack, tenant, 6, 600)
    started = time.monotonic()
    answer = await stack.call("POST", "/api/chat", BODY, key=key)
    assert answer.status == 200, answer.text
    assert 5.5 < time.monotonic() - started < 9
    events = (await stack.call("GET", f"/api/jobs/{answer.json['jobId']}/events", key=key)).json["data"]
    assert [event.get("reason") for event in events if event["type"] == "job.queued"] == [None, "rateLimit"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/chat/stream"])
async def test_a_chat_whose_rate_has_no_room_in_time_is_429_at_once(stack: Stack, path: str) -> None:
    """Given a chat of which a worker finds that its call must wait 12 s, when that is longer than a chat waits, then
    429 comes at once with the limit and when to come again, the request is given back, and the same request with its
    Idempotency-Key is a new one."""
    tenant, key = await stack.tenant(tokensPerMinute=300, tokensBurst=100, requestsPerMinute=6)
    await owe(stack, tenant, 12, 300)
    headers = {"Idempotency-Key": "once"}
    started = time.monotonic()
    answer = await stack.call("POST", path, BODY, key=key, headers=headers)
    assert time.monotonic() - started < 2
    assert answer.status == 429, answer.text
    assert answer.json["code"] == "rate_limited"
    assert answer.json.keys() >= MEMBERS
    assert (answer.json["scope"], answer.json["unit"], answer.json["limit"]) == ("tenant", "tokens", 300)
    assert 11_000 < int(answer.headers["retry-after-ms"]) <= 12_000
    assert answer.headers["Retry-After"] == "12"
    assert await requests_left(stack, key) == 6
    first = answer.headers["X-Job-Id"]
    await owe(stack, tenant, 0, 300)
    again = await stack.call("POST", path, BODY, key=key, headers=headers)
    assert again.status == 200
    assert again.headers["X-Job-Id"] != first


async def test_a_chat_that_nobody_began_for_its_rate_is_429(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a chat that waits before its start, when its time is over, then it is 429 while its token rate has no room,
    503 when it has; either way its request is given back."""
    monkeypatch.setattr(api.chat, "START_S", 0.2)
    tenant, key = await edge.tenant(tokensPerMinute=600, tokensBurst=100, requestsPerMinute=6)
    await owe(edge, tenant, 15, 600)
    answer = await edge.call("POST", "/api/chat", BODY, key=key)
    assert answer.status == 429, answer.text
    assert answer.json.keys() >= MEMBERS
    assert int(answer.headers["retry-after-ms"]) > 4_000
    await owe(edge, tenant, 0, 600)
    answer = await edge.call("POST", "/api/chat", BODY, key=key)
    assert answer.status == 503, answer.text
    assert await requests_left(edge, key) == 6


async def test_a_chat_that_was_put_off_is_not_waited_for_longer(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a chat that a worker began and put off for its rate, when no worker begins it again in time, then it is
    refused at the bound that counts from its request."""
    monkeypatch.setattr(api.chat, "START_S", 1.0)
    tenant, key = await edge.tenant(tokensPerMinute=600, tokensBurst=100)
    for path in ("/api/chat", "/api/chat/stream"):
        waiting = asyncio.create_task(edge.call("POST", path, BODY, key=key))
        jobs: list[Any] = []
        while not jobs:
            await asyncio.sleep(0.01)
            jobs = await claim(edge)
        await owe(edge, tenant, 15, 600)
        told = Settlement(jobs[0].job_id, jobs[0].lease, "delay", error="{}", delay_ms=200)
        assert await edge.jobs.settle("w1", [told]) == ["queued"]
        async with asyncio.timeout(4):
            answer = await waiting
        assert answer.status == 429, answer.text
        await owe(edge, tenant, 0, 600)


async def test_a_chat_that_is_handed_back_late_waits_for_another_worker(
    edge: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a chat without text yet after the time in which it must begin, when its worker hands it back, then it is
    not given up: what was begun was paid for, and another worker goes on."""
    monkeypatch.setattr(api.chat, "START_S", 0.4)
    for path in ("/api/chat", "/api/chat/stream"):
        waiting = asyncio.create_task(edge.call("POST", path, BODY))
        jobs: list[Any] = []
        while not jobs:
            await asyncio.sleep(0.01)
            jobs = await claim(edge)
        await asyncio.sleep(0.6)
        assert await edge.jobs.settle("w1", [Settlement(jobs[0].job_id, jobs[0].lease, "handback")]) == ["queued"]
        await asyncio.sleep(0.4)
        assert (await edge.call("GET", f"/api/jobs/{jobs[0].job_id}")).json["status"] == "queued"
        await edge.call("DELETE", f"/api/jobs/{jobs[0].job_id}")
        await waiting


async def settled_as_chat(edge: Stack, kind: str, **more: Any) -> Any:
    """A chat's job that a worker gave up as `kind`: what its client is told."""
    _, key = await edge.tenant(**more)
    headers = {"Idempotency-Key": "once"}
    waiting = asyncio.create_task(edge.call("POST", "/api/chat", BODY, key=key, headers=headers))
    jobs: list[Any] = []
    while not jobs:
        jobs = await claim(edge)
        await asyncio.sleep(0.01)
    if kind == "held":
        await edge.events.begin_step(jobs[0], "w1", reserve=Reservation("m", 50), **step("other"))
    blocked = await edge.events.begin_step(jobs[0], "w1", reserve=Reservation("m", 50), **step("x"))
    assert isinstance(blocked, Blocked)
    assert blocked.kind == kind
    from worker.outcome import WaitForLimit, judge

    outcome = judge("done", over_limit(blocked), attempt=1, max_attempts=3, settings=edge.settings, chance=0)
    assert isinstance(outcome, WaitForLimit)
    import msgspec

    told = Settlement(
        jobs[0].job_id,
        jobs[0].lease,
        "budget",
        error=msgspec.json.encode(outcome.error).decode(),
        waiting=msgspec.json.encode(outcome.waiting).decode(),
        held=outcome.is_held,
    )
    assert await edge.jobs.settle("w1", [told]) == ["failed"]
    answer = await waiting
    assert await edge.client.hget(edge.keys.job(answer.headers["X-Job-Id"]), "not_begun") == (  # type: ignore[misc]
        b"1" if kind == "held" else None
    ), "what cost nothing may be sent again with its key"
    return answer


async def test_what_is_only_reserved_for_others_may_be_tried_again(edge: Stack) -> None:
    """Given a budget of which others have reserved the rest, when a chat cannot wait for that, then it is 429 with what
    is reserved, and SDKs may repeat it; at the hard limit it is 402 and they may not."""
    budgets = [{"period": "day", "hardTokens": 220}]
    held = await settled_as_chat(edge, "held", budgets=budgets)
    assert (held.status, held.json["code"]) == (429, "rate_limited")
    assert held.json["reserved"] > 0
    assert "x-should-retry" not in held.headers
    assert held.headers["Retry-After"] == "5"
    assert "it is free when they end" in held.json["detail"]
    spent = await settled_as_chat(edge, "spent", budgets=[{"period": "day", "hardTokens": 50}])
    assert (spent.status, spent.json["code"]) == (402, "budget_exhausted")
    assert spent.headers["x-should-retry"] == "false"
    assert spent.json["freesAt"] is None, "51 tokens never fit"


async def test_a_job_is_held_up_not_failed_by_what_others_reserved(edge: Stack) -> None:
    """Given `onHardLimit: fail`, when a job meets others' reservations, then it waits; at the limit it fails."""
    _, key = await edge.tenant(budgets=[{"period": "day", "hardTokens": 220}], onHardLimit="fail")
    for held, state in ((True, "waiting"), (False, "failed")):
        await edge.submit(chat(), key=key)
        (job,) = await claim(edge)
        error = '{"code":"budget_exhausted","message":"x","retryable":false}'
        told = Settlement(job.job_id, job.lease, "budget", error=error, waiting='{"kind":"budget"}', held=held)
        assert await edge.jobs.settle("w1", [told]) == [state]


async def test_limits_that_moved_before_a_job_was_put_off_wake_it(edge: Stack) -> None:
    """Given a job over its token rate, when the rate is raised before the job is put off, then it is due at once."""
    tenant, key = await edge.tenant(tokensPerMinute=60, tokensBurst=60)
    job_id = await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    await owe(edge, tenant, 40, 60)
    blocked = await edge.events.begin_step(job, "w1", reserve=Reservation("m", 10), **step("x"))
    assert isinstance(blocked, Blocked)
    why = over_limit(blocked)
    changed = await edge.call("PATCH", f"/api/admin/tenants/{tenant}", {"limits": {"tokensPerMinute": 10**6}})
    assert changed.status == 200
    told = Settlement(
        job_id, job.lease, "delay", error="{}", delay_ms=round((why.delay_s or 0) * 1000), revision=why.revision
    )
    assert await edge.jobs.settle("w1", [told]) == ["queued"]
    assert [one.job_id for one in await claim(edge)] == [job_id]


async def test_a_full_queue_says_how_full(edge: Stack) -> None:
    tenant, key = await edge.tenant(maxQueuedJobs=2)
    for _ in range(2):
        await edge.submit(chat(), key=key)
    answer = await edge.call("POST", "/api/jobs", chat(), key=key)
    assert (answer.status, answer.json["code"]) == (429, "queue_full")
    assert {name: answer.json[name] for name in MEMBERS} == {
        "scope": "tenant", "id": tenant, "unit": "jobs", "period": None, "limit": 2, "used": 2, "reserved": 0,
        "remaining": 0, "freesAt": None,
    }  # fmt: skip


async def test_a_jobs_own_budget_says_what_was_needed(stack: Stack, model: DevModel) -> None:
    """Given a tokenBudget that the first call would not fit, then the job's error says used, reserved, needed."""
    view = await stack.finished(await stack.submit(chat("The harbour opens at nine. " * 40, tokenBudget=20)))
    assert (view["status"], view["error"]["code"]) == ("failed", "budget_exhausted")
    limit = view["error"]["limit"]
    assert (limit["scope"], limit["id"], limit["unit"], limit["limit"]) == ("job", view["jobId"], "tokens", 20)
    assert (limit["used"], limit["remaining"], limit["freesAt"]) == (0, 20, None)
    assert "0 are used" in view["error"]["message"]
    assert "the next call reads 2" in view["error"]["message"]
    assert all(isinstance(limit[name], int) for name in ("limit", "used", "reserved", "remaining"))


async def test_a_limit_in_money_that_comes_later_pauses_what_has_no_price(edge: Stack) -> None:
    """Given a running job of a model without a price, when its tenant gets a hard limit in USD, then it waits for a
    change of the limits, and says why."""
    tenant, key = await edge.tenant()
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    changed = await edge.call(
        "PATCH", f"/api/admin/tenants/{tenant}", {"limits": {"budgets": [{"period": "day", "hardUsd": 1}]}}
    )
    assert changed.status == 200
    blocked = await edge.events.begin_step(job, "w1", reserve=Reservation("unheard-of", 10), **step("x"))
    assert isinstance(blocked, Blocked)
    ended = over_limit(blocked)
    assert (ended.kind, ended.due_ms, ended.delay_s) == ("budget", None, None)
    assert "No price of the model is known" in ended.sentence
    assert "ERRAND_PRICES" in ended.sentence
    assert ended.detail.unit == "usd"


def test_a_limit_that_frees_in_ages_can_be_told() -> None:
    """A rate of one a minute, and a call of a billion tokens: a time beyond what a date can say is told as null."""
    far = why_of(
        b'{"scope":"tenant","id":"ten_a","unit":"tokens","limit":1,"burst":1,"used":0,"reserved":0,"remaining":1,'
        b'"waitUs":6e+16,"requested":1e+9,"freesAt":1.6e+14}'
    )
    assert detail_of(far).frees_at == "7040-03-13T20:26:40.000Z"
    assert detail_of(Why("tenant", "ten_a", "tokens", 1, 0, 0, 1, frees_at=1e18)).frees_at is None
    assert "There is room in" in sentence_of(far)
    assert detail_of(far).limit == 1
    assert isinstance(detail_of(far).used, int)


async def test_a_chat_that_a_rate_kept_from_beginning_is_no_failure_of_its_prompt(stack: Stack) -> None:
    tenant, key = await stack.tenant(tokensPerMinute=300, tokensBurst=100)
    prompt = {"name": "brief", "labels": ["production"], "messages": [{"role": "system", "content": "Be brief."}]}
    assert (await stack.call("POST", "/api/prompts", prompt, key=key)).status == 201
    body = {**BODY, "prompt": {"name": "brief"}}
    await owe(stack, tenant, 12, 300)
    assert (await stack.call("POST", "/api/chat", body, key=key)).status == 429
    assert (await stack.call("GET", "/api/prompts/brief/stats", key=key)).json["data"] == []
    await owe(stack, tenant, 0, 300)
    assert (await stack.call("POST", "/api/chat", body, key=key)).status == 200
    (row,) = (await stack.call("GET", "/api/prompts/brief/stats", key=key)).json["data"]
    assert row["version"] == 1


async def test_a_member_name_that_is_none_is_refused_where_it_stands(edge: Stack) -> None:
    """Given limits of a prompt whose name can be none, then the error names the object that it stands in."""
    body = {"name": "x", "limits": {"perPrompt": {"no name!": {"tokensPerMinute": 5}}}}
    answer = await edge.call("POST", "/api/admin/tenants", body)
    assert (answer.status, [one["path"] for one in answer.json["errors"]]) == (422, ["$.limits.perPrompt"])
