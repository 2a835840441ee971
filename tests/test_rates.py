"""Rates: what is granted in any span of time, all scopes or none, and when to come again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.ids import id_time_ms
from shared.stores.events import Begun, Blocked, CallUsage, Reservation
from tests.conftest import Stack, chat
from tests.test_spending import claim, step


def most_above(times_s: list[float], *, burst: float, per_s: float) -> float:
    """By how much the grants of the worst span are over burst + rate × span."""
    worst = 0.0
    for first in range(len(times_s)):
        for last in range(first, len(times_s)):
            worst = max(worst, (last - first + 1) - burst - per_s * (times_s[last] - times_s[first]))
    return worst


async def test_no_span_of_time_grants_more_than_burst_and_rate(edge: Stack) -> None:
    """Given 20 requests a second with a burst of 10, when two API processes are asked as fast as they can, then no span
    whatever has more than the burst and its share of the rate, and most of that was granted."""
    other = await edge.start_api()
    _, key = await edge.tenant(requestsPerMinute=1_200, requestsBurst=10)
    granted: list[str] = []
    refused = 0

    async def client(base: str) -> None:
        nonlocal refused
        headers = {"Authorization": f"Bearer {key}"}
        async with asyncio.timeout(4):
            while loop.time() < until:
                async with edge.session.post(f"{base}/api/jobs", json=chat(), headers=headers) as answer:
                    if answer.status == 202:
                        granted.append((await answer.json())["jobId"])
                    else:
                        assert answer.status == 429
                        refused += 1

    loop = asyncio.get_running_loop()
    until = loop.time() + 2
    await asyncio.gather(*(client(base) for base in (edge.base, other) for _ in range(5)))
    # The time in the id is Redis's, whole milliseconds.
    times_s = sorted(id_time_ms(job_id) / 1000 for job_id in granted)
    assert refused > 20
    assert most_above(times_s, burst=10, per_s=20) <= 0.02 + 1e-6
    assert len(granted) >= 10 + 20 * 2 - 3


async def test_a_refusal_in_one_scope_charges_none(edge: Stack) -> None:
    """Given a user at the limit, when the user is refused, then tenant and other users have what they had."""
    _, key = await edge.tenant(requestsPerMinute=10, perUser={"requestsPerMinute": 2})
    for _ in range(2):
        await edge.submit(chat(user="ann"), key=key)
    for _ in range(5):
        answer = await edge.call("POST", "/api/jobs", chat(user="ann"), key=key)
        assert answer.status == 429
        assert answer.json["scope"] == "user"
        assert answer.json["id"] == "ann"
    answer = await edge.call("POST", "/api/jobs", chat(user="bob"), key=key)
    assert answer.status == 202
    limits = (await edge.call("GET", "/api/limits", key=key)).json["data"]
    (tenant,) = [row for row in limits if row["scope"] == "tenant" and row["name"] == "requestsPerMinute"]
    assert (tenant["used"], tenant["remaining"]) == (3, 7)


async def test_retry_after_is_exact(edge: Stack) -> None:
    """Given a request that was refused, when it comes again 30 ms before `retry-after-ms`, then it is refused again;
    after that time it is taken."""
    _, key = await edge.tenant(requestsPerMinute=120, requestsBurst=1)
    await edge.submit(chat(), key=key)
    refused = await edge.call("POST", "/api/jobs", chat(), key=key)
    wait_s = int(refused.headers["retry-after-ms"]) / 1000
    assert 0.3 < wait_s <= 0.5
    assert refused.headers["Retry-After"] == "1"
    await asyncio.sleep(wait_s - 0.1)
    assert (await edge.call("POST", "/api/jobs", chat(), key=key)).status == 429
    await asyncio.sleep(0.1)
    assert (await edge.call("POST", "/api/jobs", chat(), key=key)).status == 202


async def test_a_replayed_request_is_not_charged(edge: Stack) -> None:
    """Given one request a minute, when it is repeated with its idempotency key, then it gets its answer again."""
    _, key = await edge.tenant(requestsPerMinute=1)
    headers = {"Idempotency-Key": "a"}
    first = await edge.call("POST", "/api/jobs", chat(), key=key, headers=headers)
    again = await edge.call("POST", "/api/jobs", chat(), key=key, headers=headers)
    assert (first.status, again.status, first.json["jobId"]) == (202, 202, again.json["jobId"])


async def test_tokens_are_charged_when_reserved_and_corrected_when_settled(edge: Stack) -> None:
    """Given 6,000 tokens a minute, when a call reserves 1,128 and uses 100, then 1,028 are there again; one that uses
    more than it reserved is a debt."""
    _tenant, key = await edge.tenant(tokensPerMinute=6_000)
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)

    async def left() -> int:
        rows = (await edge.call("GET", "/api/limits", key=key)).json["data"]
        (row,) = [row for row in rows if row["name"] == "tokensPerMinute"]
        return int(row["remaining"])

    assert await edge.events.begin_step(job, "w1", reserve=Reservation("m", 1_000), **step("a")) == Begun(None)
    assert abs(await left() - 4_872) <= 20
    await edge.events.finish_step(job, "w1", usage=CallUsage(60, 40), result=b"{}", model="m", **step("a"))
    assert abs(await left() - 5_900) <= 40
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 1_000), **step("b"))
    await edge.events.finish_step(job, "w1", usage=CallUsage(1_000, 6_000), result=b"{}", model="m", **step("b"))
    assert await left() == 0
    blocked = await edge.events.begin_step(job, "w1", reserve=Reservation("m", 1_000), **step("c"))
    assert isinstance(blocked, Blocked)
    assert blocked.kind == "rate"
    # 7,100 were used, 6,000 may be at once: there is room for 1,000 and an answer when 2,100 and that have come back.
    assert 20 < blocked.why.wait_s < 90


async def test_an_interactive_request_that_cannot_be_served_in_time_is_refused_at_once(edge: Stack) -> None:
    """Given a token rate in debt for longer than a chat waits, when a chat comes, then 429 says when there is room and
    nothing was queued; a job of the batch lane is taken and waits."""
    _, key = await edge.tenant(tokensPerMinute=60, tokensBurst=60)
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 10), **step("a"))
    await edge.events.finish_step(job, "w1", usage=CallUsage(50, 70), result=b"{}", model="m", **step("a"))
    body = {"messages": [{"role": "user", "content": "Hello."}]}
    refused = await edge.call("POST", "/api/chat", body, key=key)
    assert refused.status == 429, refused.text
    assert refused.json["unit"] == "tokens"
    assert int(refused.headers["retry-after-ms"]) > 10_000
    listed = (await edge.call("GET", "/api/jobs", key=key)).json["data"]
    assert len(listed) == 1
    assert (await edge.call("POST", "/api/jobs", chat(), key=key)).status == 202


async def test_work_put_off_by_its_users_rate_leaves_others_alone(edge: Stack) -> None:
    """Given one user over the token rate, when jobs of two users are claimed, then the other's start, and that user's
    wait for the rate and can be cancelled."""
    _, key = await edge.tenant(perUser={"tokensPerMinute": 60})
    await edge.submit(chat(user="ann"), key=key)
    (job,) = await claim(edge)
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 10), **step("a"))
    await edge.events.finish_step(job, "w1", usage=CallUsage(50, 70), result=b"{}", model="m", **step("a"))
    mine = [await edge.submit(chat(user="ann"), key=key) for _ in range(3)]
    others = [await edge.submit(chat(user="bob"), key=key) for _ in range(3)]
    assert {job.job_id for job in await claim(edge)} == set(others)
    for job_id in mine:
        view: Any = (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json
        assert (view["status"], view["queue"]["waitingOn"]) == ("queued", "rateLimit")
        assert view["queue"]["eta"]["p50Seconds"] > 10
    starts = [view_eta(await edge.call("GET", f"/api/jobs/{job_id}", key=key)) for job_id in mine]
    assert starts == sorted(starts)
    assert starts[0] < starts[-1], "they come back one after another"
    ended = await edge.call("DELETE", f"/api/jobs/{mine[0]}", key=key)
    assert (ended.status, ended.json["status"]) == (200, "cancelled")


def view_eta(answer: Any) -> float:
    return float(answer.json["queue"]["eta"]["p50Seconds"])


async def test_a_tenant_over_its_token_rate_waits_as_a_whole(edge: Stack) -> None:
    """Given a tenant over its token rate, when its jobs are claimed, then none starts, each says so, and a tenant
    beside it is served; when its limit is raised, then they start."""
    tenant, key = await edge.tenant(tokensPerMinute=60)
    _, other = await edge.tenant()
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 10), **step("a"))
    await edge.events.finish_step(job, "w1", usage=CallUsage(50, 70), result=b"{}", model="m", **step("a"))
    mine = [await edge.submit(chat(), key=key) for _ in range(3)]
    theirs = await edge.submit(chat(), key=other)
    assert [job.job_id for job in await claim(edge)] == [theirs]
    view = (await edge.call("GET", f"/api/jobs/{mine[1]}", key=key)).json
    assert view["queue"]["waitingOn"] == "rateLimit"
    changed = await edge.call("PATCH", f"/api/admin/tenants/{tenant}", {"limits": {"tokensPerMinute": 10**9}})
    assert changed.status == 200, changed.text
    assert {job.job_id for job in await claim(edge)} == set(mine)


def test_the_worst_span_is_found() -> None:
    """The measure itself: five at once are three over a burst of two."""
    assert most_above([0.0] * 5, burst=2, per_s=1) == 3
    assert most_above([0.0, 0.0, 1.0, 2.0], burst=2, per_s=1) == 0


async def test_a_raised_user_rate_wakes_what_was_put_off(edge: Stack) -> None:
    """Given a user's job that was put off for its rate, when that rate is raised, then it starts at once."""
    tenant, key = await edge.tenant(perUser={"tokensPerMinute": 60})
    await edge.submit(chat(user="ann"), key=key)
    (job,) = await claim(edge)
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 10), **step("a"))
    await edge.events.finish_step(job, "w1", usage=CallUsage(50, 70), result=b"{}", model="m", **step("a"))
    mine = await edge.submit(chat(user="ann"), key=key)
    assert await claim(edge) == []
    changed = await edge.call(
        "PATCH", f"/api/admin/tenants/{tenant}", {"limits": {"perUser": {"tokensPerMinute": 10**9}}}
    )
    assert changed.status == 200, changed.text
    assert [job.job_id for job in await claim(edge)] == [mine]
    assert await edge.client.exists(f"{edge.keys.prefix}slowed:{tenant}") == 0


async def test_a_refund_wakes_what_was_put_off(edge: Stack) -> None:
    """Given a job that waits for a rate another call has reserved, when that call uses little, then it starts soon."""
    _, key = await edge.tenant(perUser={"tokensPerMinute": 600, "tokensBurst": 150})
    await edge.submit(chat(user="ann"), key=key)
    (job,) = await claim(edge)
    await edge.events.begin_step(job, "w1", reserve=Reservation("m", 20), **step("a"))
    mine = await edge.submit(chat(user="ann"), key=key)
    assert await claim(edge) == []
    await edge.events.finish_step(job, "w1", usage=CallUsage(10, 5), result=b"{}", model="m", **step("a"))
    assert [job.job_id for job in await claim(edge)] == [mine]


async def test_a_refusal_by_a_users_rate_shows_that_rate(edge: Stack) -> None:
    """Given a user's rate beside a tenant's that has room, when the user is refused, then the headers show it."""
    _, key = await edge.tenant(requestsPerMinute=1_000, perUser={"requestsPerMinute": 1})
    await edge.submit(chat(user="ann"), key=key)
    refused = await edge.call("POST", "/api/jobs", chat(user="ann"), key=key)
    assert refused.status == 429
    assert refused.headers["x-ratelimit-limit-requests"] == "1"
    assert refused.headers["RateLimit"].startswith('"requests";r=0;t=')


@pytest.mark.parametrize(
    ("burst", "policy", "first"), [(None, "q=60;w=60", 59), (10, "q=60;w=60", 9), (90, "q=90;w=90", 89)]
)
async def test_what_is_left_is_never_more_than_the_quota(
    edge: Stack, burst: int | None, policy: str, first: int
) -> None:
    """Given a rate, with a burst below or above what a minute allows, then the headers name a quota of which what is
    left is a part, and a window in which it comes again at that rate."""
    _, key = await edge.tenant(requestsPerMinute=60, **({"requestsBurst": burst} if burst else {}))
    answer = await edge.call("POST", "/api/jobs", chat(), key=key)
    assert answer.headers["RateLimit-Policy"] == f'"requests";{policy}'
    assert answer.headers["RateLimit"] == f'"requests";r={first};t=1'
    told = [int(answer.headers[f"x-ratelimit-{name}-requests"]) for name in ("limit", "remaining")]
    assert told == [int(policy[2:4]), first]


async def test_what_has_flowed_in_is_not_given_back(edge: Stack) -> None:
    """Given a call that reserved a whole burst and ends early with little used, when others have begun meanwhile on
    what flowed in, then no more is given back than is still owed: a span has no more than burst and rate."""
    _, key = await edge.tenant(tokensPerMinute=60_000, tokensBurst=1_000)
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)

    async def begin(name: str, tokens: int) -> Begun | Blocked:
        found = await edge.events.begin_step(job, "w1", reserve=Reservation("e", tokens, embeds=True), **step(name))
        assert isinstance(found, Begun | Blocked)
        return found

    assert isinstance(await begin("a", 1_000), Begun)
    await asyncio.sleep(0.9)
    assert isinstance(await begin("b", 850), Begun)
    await edge.events.finish_step(job, "w1", usage=CallUsage(0, 0, 10), result=b"{}", model="e", **step("a"))
    third = await begin("c", 990)
    assert isinstance(third, Blocked), "850 and 990 in one moment, where 1,000 may be at once"
    assert third.why.wait_s < 1
