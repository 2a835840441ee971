"""Budgets and rates while work is done: reserved, extended, settled once; refused and resumed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from shared.errors import LeaseLostError
from shared.limits import detail_of
from shared.metrics import SOFT_LIMITS
from shared.prices import Price
from shared.stores.events import Begun, Blocked, CallUsage, Reservation
from shared.stores.jobs import Claimed
from tests.conftest import DevModel, Stack, chat

PRICE = Price(1_000_000, 2_000_000, "test")  # a dollar a million in, two out


async def claim(stack: Stack, worker: str = "w1", lane: str = "interactive", count: int = 50) -> list[Claimed]:
    jobs, _ = await stack.jobs.claim(worker=worker, lanes=[(lane, count)], count=count, lease_ms=15_000)
    return jobs


async def book_of(stack: Stack, scope: str) -> dict[str, str]:
    raw = await stack.client.hgetall(f"{stack.settings.redis_prefix}books:{scope}")
    return {name.decode(): value.decode() for name, value in raw.items()}


async def ledger_of(stack: Stack, tenant: str) -> list[dict[str, str]]:
    entries = await stack.client.xrange(f"{stack.settings.redis_prefix}ledger:{tenant}")
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


def step(name: str) -> dict[str, str]:
    return {"step": name, "label": name, "call": f"c-{name}"}


async def test_a_call_is_reserved_and_settled_everywhere(edge: Stack) -> None:
    """Given a tenant with a budget, when a call is begun, then input and first output are reserved; when it ends, then
    counters of tenant, key and user, the ledger and the job say what it used, and nothing is reserved."""
    tenant, key = await edge.tenant(budgets=[{"period": "day", "hardTokens": 1_000}])
    job_id = await edge.submit(chat(user="ann"), key=key)
    (job,) = await claim(edge)
    begun = await edge.events.begin_step(job, "w1", reserve=Reservation("m", 40, price=PRICE), **step("a"))
    assert begun == Begun(bound=128)
    book = await book_of(edge, tenant)
    assert (book["ht"], book["hn"]) == ("168", str(40 * 1000 + 128 * 2000))
    await edge.events.finish_step(job, "w1", usage=CallUsage(42, 10), result=b"{}", model="m", price=PRICE, **step("a"))
    for scope in (tenant, job.key, f"{tenant}:u:ann"):
        book = await book_of(edge, scope)
        assert [book[name] for name in ("dt", "mt", "tt", "dn", "mn", "tn")] == ["52"] * 3 + ["62000"] * 3
        assert book.get("ht", "0") == "0"
        assert book.get("hn", "0") == "0"
    (line,) = await ledger_of(edge, tenant)
    assert {name: line[name] for name in "cjkumioewnvxz"} == {
        "c": "c-a", "j": job_id, "k": job.key, "u": "ann", "m": "m", "i": "42", "o": "10", "e": "0", "w": "0",
        "n": "62000", "v": "test", "x": "0", "z": "0",
    }  # fmt: skip
    view = (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json
    assert view["usage"]["totalTokens"] == 52
    assert view["usage"]["costUsd"] == 0.000062


async def test_what_a_lost_worker_had_under_way_is_booked_once(edge: Stack) -> None:
    """Given a worker that is lost in a call of which 30 tokens were seen, when it is reaped, then input and 30 are
    booked as estimated and nothing is reserved; when the call ends after all, then its true figure stands, once."""
    tenant, key = await edge.tenant(budgets=[{"period": "total", "hardTokens": 10_000}])
    job_id = await edge.submit(chat(), key=key)
    (job,) = (await edge.jobs.claim(worker="w1", lanes=[("interactive", 1)], count=1, lease_ms=1))[0]
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 40, price=PRICE), **step("a"))
    assert await edge.events.extend(job, "w1", call="c-a", seen=30, bound=128) == 192
    await asyncio.sleep(0.01)
    await edge.jobs.reap()
    book = await book_of(edge, tenant)
    assert (book["tt"], book["ht"], book["hn"]) == ("70", "0", "0")
    for _ in range(2):
        with suppress(LeaseLostError):  # the second time it is known already
            await edge.events.finish_step(
                job, "w1", usage=CallUsage(44, 50), result=b"{}", model="m", price=PRICE, **step("a")
            )
    book = await book_of(edge, tenant)
    assert (book["tt"], book["tn"], book["ht"]) == ("94", str(44_000 + 100_000), "0")
    lines = await ledger_of(edge, tenant)
    assert [(line["i"], line["o"], line["z"], line["x"]) for line in lines] == [
        ("40", "30", "0", "1"),
        ("4", "20", "1", "0"),
    ]
    usage = (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json["usage"]
    assert (usage["totalTokens"], usage["wastedTokens"], usage["estimated"]) == (94, 94, False)


async def test_a_hard_limit_is_never_crossed_by_what_is_reserved(edge: Stack) -> None:
    """Given a budget of 1,000 tokens and known answers of 100, when calls of 10 are begun, then no more are let in than
    fit with an eighth to spare; the rest hears that they are held up by others, and at the limit that it is spent."""
    tenant, key = await edge.tenant(budgets=[{"period": "day", "hardTokens": 1_000}])
    for _ in range(12):
        await edge.submit(chat(), key=key)
    jobs = await claim(edge)
    await edge.client.hset(edge.keys.outs(tenant), "chat|m", "100 60")
    first = jobs.pop()
    await edge.events.begin_step(first, "w1", reserve=Reservation("m", 10), **step("x"))
    await edge.events.finish_step(first, "w1", usage=CallUsage(10, 100), result=b"{}", model="m", **step("x"))
    begun = [
        await edge.events.begin_step(job, "w1", reserve=Reservation("m", 10), **step(f"s{number}"))
        for number, job in enumerate(jobs)
    ]
    granted = [one for one in begun if isinstance(one, Begun)]
    refused = [one for one in begun if isinstance(one, Blocked)]
    assert all(one == Begun(bound=100) for one in granted)
    assert len(granted) == 7
    assert {one.kind for one in refused} == {"held"}
    detail = detail_of(refused[-1].why)
    assert (detail.scope, detail.period, detail.limit, detail.used, detail.reserved) == (
        "tenant",
        "day",
        1_000,
        110,
        770,
    )
    for number, job in enumerate(jobs[:7]):
        await edge.events.finish_step(
            job, "w1", usage=CallUsage(10, 120), result=b"{}", model="m", **step(f"s{number}")
        )
    last = await edge.events.begin_step(jobs[8], "w1", reserve=Reservation("m", 10), **step("last"))
    assert isinstance(last, Blocked)
    assert last.kind == "spent"
    answer = await edge.call("POST", "/api/jobs", chat(), key=key)
    assert answer.status == 402


async def test_new_work_at_the_hard_limit_is_402(stack: Stack, model: DevModel) -> None:
    """Given a tenant whose budget is spent, when it submits, then 402 says scope, used, limit and when it frees, and
    SDKs are told not to repeat."""
    _, key = await stack.tenant(budgets=[{"period": "month", "hardTokens": 5}], onHardLimit="fail")
    job_id = await stack.submit(chat("Tell me."), key=key)
    view = await stack.finished(job_id, key=key)
    assert (view["status"], view["error"]["code"]) == ("failed", "budget_exhausted"), view
    assert view["error"]["limit"]["limit"] == 5
    _tenant, key = await stack.tenant(budgets=[{"period": "month", "hardTokens": 40}])
    await stack.submit(chat("The harbour opens at nine. The ferry leaves at ten."), key=key)
    for _ in range(100):
        answer = await stack.call("POST", "/api/jobs", chat(), key=key)
        if answer.status == 402:
            break
        await asyncio.sleep(0.05)
    assert answer.status == 402, answer.text
    problem = answer.json
    assert problem["code"] == "budget_exhausted"
    assert problem["scope"] == "tenant"
    assert problem["limit"] == 40
    assert problem["used"] >= 40
    assert problem["freesAt"].endswith("-01T00:00:00.000Z")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_paused_job_goes_on_when_the_budget_is_raised(stack: Stack, model: DevModel) -> None:
    """Given a job that waits for its budget, when the budget is raised, then it goes on by itself and is complete."""
    _tenant, key = await stack.tenant(budgets=[{"period": "total", "hardTokens": 12}])
    job_id = await stack.submit(chat("The harbour opens at nine. The ferry leaves at ten. " * 3), key=key)
    for _ in range(200):
        view = (await stack.call("GET", f"/api/jobs/{job_id}", key=key)).json
        if view["status"] == "waiting":
            break
        await asyncio.sleep(0.02)
    assert view["status"] == "waiting", view
    assert view["waiting"]["kind"] == "budget"
    assert view["waiting"]["limit"]["limit"] == 12
    assert view["queue"]["waitingOn"] == "budget"


async def test_requests_over_the_rate_spend_nothing(edge: Stack) -> None:
    """Given five requests a minute, when six come, then the sixth is 429 with exact times, and says what refused it."""
    _, key = await edge.tenant(requestsPerMinute=5)
    answers = [await edge.call("POST", "/api/jobs", chat(), key=key) for _ in range(6)]
    assert [answer.status for answer in answers] == [202] * 5 + [429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:5]] == ["4", "3", "2", "1", "0"]
    refused = answers[-1]
    assert refused.json["code"] == "rate_limited"
    assert refused.json["scope"] == "tenant"
    assert 11_000 < int(refused.headers["retry-after-ms"]) <= 12_000
    assert refused.headers["Retry-After"] == "12"
    assert refused.headers["RateLimit-Policy"] == '"requests";q=5;w=60'
    assert refused.headers["RateLimit"].startswith('"requests";r=0;t=')


async def test_queued_work_over_its_token_rate_waits(stack: Stack, model: DevModel) -> None:
    """Given a tenant with a small token rate, when jobs are queued, then the first runs and the next waits for it."""
    _, key = await stack.tenant(tokensPerMinute=60, tokensBurst=60)
    first = await stack.submit(chat("The harbour opens at nine."), key=key)
    assert (await stack.finished(first, key=key))["status"] == "complete"
    rows = [await stack.submit(chat("The harbour opens at nine. " * 12), key=key) for _ in range(4)]
    seen: set[Any] = set()
    for _ in range(100):
        for job_id in rows:
            view = (await stack.call("GET", f"/api/jobs/{job_id}", key=key)).json
            if view["queue"]:
                seen.add(view["queue"]["waitingOn"])
        if "rateLimit" in seen:
            break
        await asyncio.sleep(0.02)
    assert "rateLimit" in seen


async def test_a_soft_limit_warns_once(stack: Stack, model: DevModel) -> None:
    """Given a soft limit, when calls cross it, then exactly one job is warned, and every answer carries the header."""
    _, key = await stack.tenant(budgets=[{"period": "day", "softTokens": 10, "hardTokens": 1_000_000}])
    ids = [await stack.submit(chat("The harbour opens at nine."), key=key) for _ in range(3)]
    warned = 0
    for job_id in ids:
        assert (await stack.finished(job_id, key=key))["status"] == "complete"
        events = (await stack.call("GET", f"/api/jobs/{job_id}/events?limit=1000", key=key)).json["data"]
        warned += sum(event["type"] == "job.warning" and event["code"] == "budget_soft_limit" for event in events)
    assert warned == 1
    await asyncio.sleep(1.05)
    answer = await stack.call("GET", f"/api/jobs/{ids[0]}", key=key)
    assert answer.headers["X-Usage-Warning"].startswith("tenant-day-tokens; used=")
    assert "; soft=10; hard=1000000" in answer.headers["X-Usage-Warning"]


async def test_a_model_without_a_price_is_refused_where_money_is_limited(make_stack: Any, model: DevModel) -> None:
    """Given a hard limit in USD, when a job names a model whose price is unknown, then it is refused and the model is
    named; with a price it runs, its cost is shown, and the limit in USD ends it."""
    stack: Stack = await make_stack(
        workers=("interactive",), prices='{"errand-dev-extractive": {"input": 1000, "output": 1000}}'
    )
    _, key = await stack.tenant(budgets=[{"period": "day", "hardUsd": 0.05}], onHardLimit="fail")
    refused = await stack.call("POST", "/api/jobs", chat(model="nobody-knows-it"), key=key)
    assert (refused.status, refused.json["errors"][0]["path"]) == (422, "$.model")
    view = await stack.finished(await stack.submit(chat("The harbour opens at nine."), key=key), key=key)
    assert view["status"] == "complete"
    assert view["usage"]["costUsd"] == pytest.approx(view["usage"]["totalTokens"] / 1000, rel=1e-6)
    view = await stack.finished(await stack.submit(chat("The harbour opens at nine. " * 20), key=key), key=key)
    assert (view["status"], view["error"]["limit"]["unit"]) == ("failed", "usd"), view


async def test_a_budget_that_is_raised_while_a_stream_is_closed_wakes_its_job(edge: Stack) -> None:
    """Given a stream whose extension was refused, when the budget is raised before the job is settled as waiting, then
    the job is looked at again at once."""
    tenant, key = await edge.tenant(budgets=[{"period": "total", "hardTokens": 150}])
    job_id = await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    assert await edge.events.begin_step(job, "w1", reserve=Reservation("m", 20), **step("a")) == Begun(128)
    extended = await edge.events.extend(job, "w1", call="c-a", seen=128, bound=128)
    assert extended == 130
    blocked = await edge.events.extend(job, "w1", call="c-a", seen=130, bound=130)
    assert isinstance(blocked, Blocked)
    assert (blocked.kind, blocked.why.revision) != ("spent", None)
    body = {"limits": {"budgets": [{"period": "total", "hardTokens": 10**6}]}}
    assert (await edge.call("PATCH", f"/api/admin/tenants/{tenant}", body)).status == 200
    waiting = '{"kind":"budget"}'
    await edge.jobs.settle_one(job, "w1", outcome="budget", waiting=waiting, error="{}", revision=blocked.why.revision)
    await edge.jobs.reap()
    view = (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json
    assert view["status"] == "queued", view


async def test_on_hard_limit_holds_for_the_budget_of_a_key(edge: Stack) -> None:
    """Given a tenant that would rather fail and has no limit, when its key's budget ends a job, then it fails."""
    tenant, _ = await edge.tenant(onHardLimit="fail")
    made = await edge.call(
        "POST", f"/api/admin/tenants/{tenant}/keys", {"limits": {"budgets": [{"period": "day", "hardTokens": 50}]}}
    )
    key = made.json["key"]
    job_id = await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    blocked = await edge.events.begin_step(job, "w1", reserve=Reservation("m", 60), **step("a"))
    assert isinstance(blocked, Blocked)
    error = '{"code":"budget_exhausted","message":"x","retryable":false}'
    await edge.jobs.settle_one(job, "w1", outcome="budget", waiting='{"kind":"budget"}', error=error)
    assert (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json["status"] == "failed"


async def test_a_budget_is_there_again_when_its_window_has_turned(edge: Stack) -> None:
    """Given a day's budget that is spent, when the day turns, then new work is taken and its calls are let in; what was
    used in all goes on counting."""
    tenant, key = await edge.tenant(budgets=[{"period": "day", "hardTokens": 100}])
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 50), **step("a"))
    await edge.events.finish_step(job, "w1", usage=CallUsage(50, 60), result=b"{}", model="m", **step("a"))
    assert (await edge.call("POST", "/api/jobs", chat(), key=key)).status == 402
    await edge.client.hset(edge.keys.books(tenant), "d", "20200101")
    await edge.submit(chat(), key=key)
    assert isinstance(await edge.events.begin_step(job, "w1", reserve=Reservation("m", 50), **step("b")), Begun)
    await edge.events.finish_step(job, "w1", usage=CallUsage(1, 2), result=b"{}", model="m", **step("b"))
    book = await book_of(edge, tenant)
    assert (book["dt"], book["tt"]) == ("3", "113")


async def test_a_soft_limit_that_the_reaper_crosses_is_counted(edge: Stack) -> None:
    """Given a soft limit that what a lost worker left crosses, when it is reaped, then the metric counts it."""
    counter = SOFT_LIMITS.labels("tenant", "day", "tokens")
    before = counter._value.get()
    _, key = await edge.tenant(budgets=[{"period": "day", "softTokens": 10}])
    await edge.submit(chat(), key=key)
    (job,) = (await edge.jobs.claim(worker="w1", lanes=[("interactive", 1)], count=1, lease_ms=1))[0]
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 40), **step("a"))
    await asyncio.sleep(0.01)
    await edge.jobs.reap()
    assert counter._value.get() == before + 1
