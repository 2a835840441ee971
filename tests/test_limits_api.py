"""How the limits stand: every one that applies, read at one instant; and what an estimate says of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from shared.clock import parse_rfc3339
from shared.errors import LeaseLostError
from shared.policy import encode_policy
from shared.stores.events import CallUsage
from shared.tenants import KeyLimits, Limits
from tests.conftest import Stack, chat
from tests.test_usage import Working


async def limited(stack: Stack, limits: dict[str, Any], key_limits: dict[str, Any] | None = None) -> tuple[str, str]:
    """A tenant with these limits, and its key with its own."""
    tenant, key = await stack.tenant()
    await limit(stack, tenant, limits)
    if key_limits is not None:
        policy = encode_policy(msgspec.convert(key_limits, KeyLimits))
        await stack.client.hset(stack.keys.api_key(f"key_{key[3:29]}"), "policy", policy)
    return tenant, key


async def limit(stack: Stack, tenant: str, limits: dict[str, Any]) -> None:
    """Gives a tenant other limits, as the API does."""
    known = msgspec.convert(limits, Limits)
    fields: dict[str, Any] = {"policy": encode_policy(known) or ""}
    if known.max_concurrent_jobs is not None:
        fields["max_concurrent"] = known.max_concurrent_jobs
    if known.max_queued_jobs is not None:
        fields["max_queued"] = known.max_queued_jobs
    await stack.client.hset(stack.keys.tenant(tenant), mapping=fields)


async def standing(stack: Stack, key: str, query: str = "") -> dict[str, Any]:
    answer = await stack.call("GET", f"/api/limits{query}", key=key)
    assert answer.status == 200, answer.text
    return dict(answer.json)


def named(found: dict[str, Any], name: str, scope: str = "tenant", period: str | None = None) -> dict[str, Any]:
    (row,) = [
        row for row in found["data"] if (row["name"], row["scope"]) == (name, scope) and period in (None, row["period"])
    ]
    return dict(row)


@pytest.fixture
async def priced(make_stack: Any) -> Stack:
    """An API that knows what its model costs."""
    stack: Stack = await make_stack(prices='{"errand-dev-extractive": {"input": 1, "output": 1}}')
    return stack


async def test_every_limit_of_every_scope_has_a_row(priced: Stack) -> None:
    """Given limits of tenant, key, end users and prompts, then each is there once, with what is used of it."""
    budgets = [
        {"period": "day", "softTokens": 50, "hardTokens": 1_000},
        {"period": "month", "hardUsd": 2.5},
        {"period": "total", "softTokens": 9_000},
    ]
    tenant, key = await limited(
        priced,
        {
            "requestsPerMinute": 60,
            "tokensPerMinute": 6_000,
            "tokensBurst": 9_000,
            "maxConcurrentJobs": 3,
            "maxQueuedJobs": 5,
            "budgets": budgets,
            "perUser": {"budgets": [{"period": "day", "hardTokens": 500}]},
            "perPrompt": {
                "greet": {"requestsPerMinute": 10},
                "greet@2": {"budgets": [{"period": "day", "hardUsd": 1}]},
            },
        },
        {"budgets": [{"period": "day", "hardTokens": 800}]},
    )
    work = Working(priced)
    await priced.submit(chat(user="ann"), key=key)
    await priced.submit(chat(), key=key)
    job = await work.claim()
    await work.call(job, CallUsage(100, 20))
    await work.begin(job, tokens=40, step="chat:2")
    found = await standing(priced, key, "?user=ann&prompt=greet@2")
    names = [(row["scope"], row["name"], row["period"]) for row in found["data"]]
    assert names == [
        ("tenant", "maxConcurrentJobs", None),
        ("tenant", "maxQueuedJobs", None),
        ("tenant", "requestsPerMinute", "minute"),
        ("tenant", "tokensPerMinute", "minute"),
        ("tenant", "hardTokens", "day"),
        ("tenant", "hardUsd", "month"),
        ("tenant", "softTokens", "total"),
        ("key", "hardTokens", "day"),
        ("user", "hardTokens", "day"),
        ("prompt", "requestsPerMinute", "minute"),
        ("prompt", "hardUsd", "day"),
    ]
    running, waiting = named(found, "maxConcurrentJobs"), named(found, "maxQueuedJobs")
    assert (running["used"], running["remaining"], running["resetAt"]) == (1, 2, None)
    assert (waiting["used"], waiting["remaining"], waiting["unit"]) == (1, 4, "jobs")
    requests = named(found, "requestsPerMinute")
    assert (requests["limit"], requests["used"], requests["remaining"], requests["burst"]) == (60, 2, 58, 60)
    rate = named(found, "tokensPerMinute")
    held = 40 + 128  # input, and the output of a kind that is hardly known
    assert rate["limit"] == 6_000
    assert rate["burst"] == 9_000
    assert 9_000 - 120 - held <= rate["remaining"] <= 9_000 - 120 - held + 30  # it fills again: a hundred a second
    day = named(found, "hardTokens", period="day")
    assert (day["limit"], day["soft"], day["hard"]) == (1_000, 50, 1_000)
    assert (day["used"], day["reserved"], day["remaining"]) == (120, held, 1_000 - 120 - held)
    month = named(found, "hardUsd", period="month")
    assert month["used"] == pytest.approx((100 * 0.15 + 20 * 0.6) / 1e6)
    assert month["reserved"] == pytest.approx((40 * 0.15 + 128 * 0.6) / 1e6)
    assert month["remaining"] == pytest.approx(2.5 - month["used"] - month["reserved"])
    total = named(found, "softTokens")
    assert (total["limit"], total["soft"], total["hard"], total["resetAt"]) == (9_000, 9_000, None, None)
    user = named(found, "hardTokens", "user")
    assert (user["id"], user["used"], user["reserved"], user["remaining"]) == ("ann", 120, held, 380 - held)
    assert named(found, "hardUsd", "prompt")["id"] == "greet@2"
    assert named(found, "requestsPerMinute", "prompt")["id"] == "greet"
    assert named(found, "hardTokens", "key")["used"] == 120
    assert tenant == day["id"]


async def test_the_windows_turn_at_midnight_and_the_first(edge: Stack) -> None:
    budgets = [{"period": "day", "hardTokens": 10}, {"period": "month", "hardTokens": 10}]
    _, key = await limited(edge, {"budgets": budgets})
    found = await standing(edge, key)
    day, month = (named(found, "hardTokens", period=period)["resetAt"] for period in ("day", "month"))
    assert day.endswith("T00:00:00.000Z")
    assert month[8:] == "01T00:00:00.000Z"
    now_ms = (await edge.client.time())[0] * 1000
    assert 0 < parse_rfc3339(day) - now_ms <= 86_400_000 + 1_000
    assert 0 < parse_rfc3339(month) - now_ms <= 31 * 86_400_000 + 1_000


async def test_a_rate_says_when_it_is_full_again(edge: Stack) -> None:
    _, key = await limited(edge, {"requestsPerMinute": 60, "requestsBurst": 2})
    await edge.submit(chat(), key=key)
    row = named(await standing(edge, key), "requestsPerMinute")
    seconds, micros = await edge.client.time()
    assert row["remaining"] == 1
    assert 0 < parse_rfc3339(row["resetAt"]) - (seconds * 1000 + micros / 1000) <= 1_000
    await asyncio.sleep(1.1)
    assert named(await standing(edge, key), "requestsPerMinute")["remaining"] == 2


async def test_the_least_share_binds(edge: Stack) -> None:
    """Given several limits, then the one with the least share left is marked; a soft limit alone holds nothing up."""
    tenant, key = await limited(
        edge,
        {"budgets": [{"period": "day", "hardTokens": 1_000}, {"period": "month", "softTokens": 1}]},
        {"budgets": [{"period": "total", "hardTokens": 150}]},
    )
    work = Working(edge)
    await edge.submit(chat(), key=key)
    await work.call(await work.claim(), CallUsage(100, 20))
    found = await standing(edge, key)
    assert (found["binding"]["scope"], found["binding"]["remaining"]) == ("key", 30)
    assert [row["scope"] for row in found["data"] if row["binds"]] == ["key"]
    assert [(row["name"], row["period"]) for row in found["warnings"]] == [("softTokens", "month")]
    admin = (await edge.call("GET", f"/api/admin/tenants/{tenant}/limits")).json
    assert (admin["binding"]["name"], admin["binding"]["period"]) == ("hardTokens", "day")


async def test_a_spent_budget_binds_before_an_empty_rate(edge: Stack) -> None:
    _, key = await limited(edge, {"tokensPerMinute": 1, "budgets": [{"period": "total", "hardTokens": 0}]})
    found = await standing(edge, key)
    assert (found["binding"]["name"], found["binding"]["remaining"]) == ("hardTokens", 0)


async def test_without_limits_there_is_the_queues_bound(edge: Stack) -> None:
    _, key = await edge.tenant()
    found = await standing(edge, key)
    assert [(row["name"], row["limit"]) for row in found["data"]] == [("maxQueuedJobs", 100_000)]
    assert found["warnings"] == []


async def test_great_sums_are_exact(edge: Stack) -> None:
    """Given budgets whose figures Lua would write in exponent form, then they are whole."""
    budgets = [{"period": "total", "hardTokens": 10**15, "softTokens": 10**15 - 1, "hardUsd": 8_999_999.25}]
    _, key = await limited(edge, {"budgets": budgets})
    found = await standing(edge, key)
    tokens = named(found, "hardTokens")
    assert (tokens["limit"], tokens["soft"], tokens["remaining"]) == (10**15, 10**15 - 1, 10**15)
    assert named(found, "hardUsd")["limit"] == 8_999_999.25


async def test_great_sums_can_be_refused_and_warned_of(priced: Stack) -> None:
    """Given a budget of more nano-dollars than Lua writes out, when it is spent, then that is said, in both places."""
    tenant, key = await limited(priced, {"budgets": [{"period": "total", "softUsd": 200_000, "hardUsd": 300_000.5}]})
    await priced.client.hset(priced.keys.books(tenant), "tn", 300_001 * 10**9)
    refused = await priced.call("POST", "/api/jobs", chat(), key=key)
    assert (refused.status, refused.json["limit"], refused.json["used"]) == (402, 300_000.5, 300_001)
    warning = (await priced.call("GET", "/api/jobs", key=key)).headers["X-Usage-Warning"]
    assert warning == "tenant-total-usd; used=300001.000000; soft=200000.000000; hard=300000.500000"


async def test_a_refusal_says_whose_limit_it_is_and_when_it_frees(edge: Stack) -> None:
    tenant, key = await limited(edge, {"requestsPerMinute": 2, "requestsBurst": 1})
    await edge.submit(chat(), key=key)
    refused = await edge.call("POST", "/api/jobs", chat(), key=key)
    problem = refused.json
    assert (refused.status, problem["code"], problem["scope"], problem["id"]) == (429, "rate_limited", "tenant", tenant)
    assert (problem["unit"], problem["period"], problem["limit"], problem["remaining"]) == ("requests", "minute", 2, 0)
    seconds, micros = await edge.client.time()
    left_ms = parse_rfc3339(problem["freesAt"]) - (seconds * 1000 + micros / 1000)
    assert abs(left_ms - int(refused.headers["retry-after-ms"])) < 1_000
    await limit(edge, tenant, {"budgets": [{"period": "day", "hardTokens": 0}]})
    refused = await edge.call("POST", "/api/jobs", chat(), key=key)
    assert (refused.status, refused.json["code"]) == (402, "budget_exhausted")
    assert refused.headers["x-should-retry"] == "false"
    assert refused.json["freesAt"] is None, "of nothing no day has more"
    await limit(edge, tenant, {"budgets": [{"period": "day", "hardTokens": 5}]})
    window = (await edge.client.time())[0]
    day = datetime.fromtimestamp(window, UTC).strftime("%Y%m%d")
    await edge.client.hset(edge.keys.books(tenant), mapping={"d": day, "dt": 5})
    refused = await edge.call("POST", "/api/jobs", chat(), key=key)
    assert refused.json["freesAt"].endswith("T00:00:00.000Z")


async def test_a_soft_limit_that_a_late_call_crosses_is_no_event_of_an_ended_job(edge: Stack) -> None:
    """Given a job that was cancelled while its worker was away, when the true figures of its call come in and cross a
    soft limit, then the final event stays the last, and a reader's stream ends."""
    _, key = await limited(edge, {"budgets": [{"period": "total", "softTokens": 65}]})
    work = Working(edge)
    job_id = await edge.submit(chat(), key=key)
    job = await work.claim(lease_ms=1)
    call, _ = await work.begin(job, tokens=60)
    await asyncio.sleep(0.02)
    await edge.jobs.cancel(job.tenant, job_id)
    await edge.jobs.reap()
    with pytest.raises(LeaseLostError):
        await work.finish(job, call, CallUsage(62, 8))
    async with asyncio.timeout(5):
        text = (await edge.call("GET", f"/api/jobs/{job_id}/stream", key=key)).text
    assert "event: job.cancelled" in text
    assert "job.warning" not in text
    assert (await standing(edge, key))["warnings"][0]["used"] == 70


async def test_an_administrator_reads_any_tenants(edge: Stack) -> None:
    tenant, key = await limited(edge, {"perUser": {"tokensPerMinute": 7}}, {"requestsPerMinute": 9})
    path = f"/api/admin/tenants/{tenant}/limits"
    found = (await edge.call("GET", f"{path}?user=bob&key=key_{key[3:29]}")).json
    assert named(found, "tokensPerMinute", "user")["limit"] == 7
    assert named(found, "requestsPerMinute", "key")["limit"] == 9
    assert (await edge.call("GET", path, key=key)).status == 403
    assert (await edge.call("GET", "/api/admin/tenants/ten_01M81SGW152PHX78GHNCJWQHRS/limits")).status == 404
    assert (await edge.call("GET", f"{path}?key=key_01M81SGW152PHX78GHNCJWQHRS")).status == 404
    assert (await edge.call("GET", "/api/limits?model=x", key=key)).status == 422


@pytest.mark.parametrize(("on_hard_limit", "effect"), [("pause", "pauses"), ("fail", "fails")])
async def test_an_estimate_names_rates_and_budgets(edge: Stack, on_hard_limit: str, effect: str) -> None:
    """Given a rate and a budget that are too small, and a budget that is spent, then each effect is told."""
    tenant, key = await limited(
        edge,
        {
            "requestsPerMinute": 1,
            "tokensPerMinute": 60_000,
            "tokensBurst": 20,
            "budgets": [{"period": "day", "hardTokens": 100}, {"period": "month", "hardTokens": 1_000_000}],
            "perUser": {"budgets": [{"period": "total", "hardTokens": 30}]},
            "onHardLimit": on_hard_limit,
        },
    )
    body = chat("Say something. " * 20, user="ann")
    found = (await edge.call("POST", "/api/jobs/estimate", body, key=key)).json
    effects = {(hit["scope"], hit["limit"], hit.get("period")): hit["effect"] for hit in found["limits"]}
    assert effects == {
        ("tenant", "tokensPerMinute", "minute"): "waits",
        ("tenant", "hardTokens", "day"): effect,
        ("user", "hardTokens", "total"): effect,
    }
    work = Working(edge)
    await edge.submit(body, key=key)
    await asyncio.sleep(0)
    await limit(edge, tenant, {})
    job = await work.claim()
    await work.call(job, CallUsage(100, 20))
    await limit(
        edge,
        tenant,
        {"requestsPerMinute": 1, "budgets": [{"period": "day", "hardTokens": 100}], "onHardLimit": on_hard_limit},
    )
    found = (await edge.call("POST", "/api/jobs/estimate", body, key=key)).json
    assert {hit["limit"]: hit["effect"] for hit in found["limits"]} == {
        "requestsPerMinute": "refused",
        "hardTokens": "refused",
    }


async def test_an_estimate_says_what_it_would_cost(make_stack: Any) -> None:
    """Given a price, then low, expected and high in US dollars, of input and output each at its own; else null."""
    prices = '{"dear": {"input": 1, "output": 1000}, "flat": {"input": 1, "output": 1}}'
    stack: Stack = await make_stack(prices=prices)
    body = {"type": "chat", "input": {"messages": [{"role": "user", "content": "x" * 4_000}], "maxTokens": 100}}
    dear, flat = [
        (await stack.call("POST", "/api/jobs/estimate", {**body, "model": model})).json for model in ("dear", "flat")
    ]
    assert dear["costUsd"]["low"] < dear["costUsd"]["expected"] <= dear["costUsd"]["high"]
    tokens = flat["tokens"]
    for end in ("low", "expected", "high"):
        assert flat["costUsd"][end] == pytest.approx(tokens[end] / 1e6)
    assert dear["costUsd"]["high"] == pytest.approx((tokens["high"] - 100 + 100 * 1000) / 1e6)
    unknown = (await stack.call("POST", "/api/jobs/estimate", {**body, "model": "of-our-own"})).json
    assert unknown["costUsd"] is None
    capped = (await stack.call("POST", "/api/jobs/estimate", {**body, "model": "flat", "tokenBudget": 10})).json
    assert capped["costUsd"]["high"] == pytest.approx(10 / 1e6)


async def test_an_estimate_sees_a_budget_of_money(make_stack: Any) -> None:
    stack: Stack = await make_stack(prices='{"dear": {"input": 1000, "output": 1000}}')
    _, key = await limited(stack, {"budgets": [{"period": "day", "hardUsd": 0.01}]})
    found = (await stack.call("POST", "/api/jobs/estimate", chat("x" * 4_000, model="dear"), key=key)).json
    (hit,) = found["limits"]
    assert (hit["limit"], hit["unit"], hit["value"], hit["effect"]) == ("hardUsd", "usd", 0.01, "pauses")
