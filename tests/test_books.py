"""The books: one ledger, and counters, reservations, usage rows and jobs that always agree with it."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from typing import Any

import pytest

from shared.errors import LeaseLostError
from shared.prices import Price
from shared.redis import redis_now_ms
from shared.stores.books import BooksStore
from shared.stores.events import CallUsage, Reservation
from shared.stores.tenants import DEFAULT_TENANT
from tests.conftest import Stack, analysis, chat
from tests.test_cli import errand
from tests.test_limits_api import limited
from tests.test_usage import PRICE, Working, job_sums, lived_in, totals

GREAT = {"budgets": [{"period": "day", "hardTokens": 10**9, "softTokens": 1}, {"period": "total", "hardUsd": 1_000}]}


PRICES = '{"errand-dev-extractive": {"input": 0.15, "output": 0.6}}'


@pytest.fixture
async def edge(make_stack: Any) -> Stack:
    """The API without workers; it knows what its model costs."""
    made: Stack = await make_stack(prices=PRICES)
    return made


@pytest.fixture
async def stack(make_stack: Any) -> Stack:
    """The same with a worker on each lane."""
    made: Stack = await make_stack(workers=("interactive", "batch"), prices=PRICES)
    return made


async def books(stack: Stack, action: str = "check", tenant: str | None = None) -> dict[str, Any]:
    body = {} if tenant is None else {"tenantId": tenant}
    answer = await stack.call("POST", f"/api/admin/books/{action}", body)
    assert answer.status == 200, answer.text
    return dict(answer.json)


async def differences(stack: Stack, tenant: str) -> list[tuple[str, str, str, int, int]]:
    found = await books(stack, tenant=tenant)
    (one,) = found["tenants"]
    assert found["ok"] is (one["differences"] == [])
    return [(row["what"], row["id"], row["member"], row["stored"], row["ledger"]) for row in one["differences"]]


async def test_what_was_lived_through_agrees(edge: Stack) -> None:
    """Given calls that ended well, failed, were cancelled, lost, corrected and reused, then nothing differs, and the
    ledger's sum is that of the jobs."""
    await lived_in(edge)
    found = await books(edge)
    assert found["ok"], found
    (one,) = found["tenants"]
    expected = await job_sums(edge)
    assert one["tenantId"] == DEFAULT_TENANT
    assert one["tokens"] == expected["totalTokens"]
    assert one["costUsd"] == expected["costUsd"]
    assert one["calls"] == 6


async def test_real_jobs_agree(stack: Stack) -> None:
    tenant, key = await limited(stack, GREAT, GREAT)
    for job in (chat("What is a lease?", user="ann"), analysis("The harbour is deep. " * 40)):
        await stack.finished(await stack.submit(job, key=key), key=key)
    found = await books(stack, tenant=tenant)
    assert found["ok"], found
    assert found["tenants"][0]["tokens"] == (await totals(stack, key=key))["totalTokens"] > 0


async def planted(stack: Stack) -> tuple[str, str, Any]:
    """A tenant with a settled call of 120 tokens, and one of 40 and more under way; the id of its key, and the job."""
    tenant, key = await limited(stack, {**GREAT, "perUser": GREAT})
    work = Working(stack)
    await stack.submit(chat(user="ann"), key=key)
    job = await work.claim()
    await work.call(job, CallUsage(100, 20))
    await work.begin(job, tokens=40, step="chat:2")
    assert await differences(stack, tenant) == []
    return tenant, f"key_{key[3:29]}", job


async def test_each_wrong_figure_is_found_and_mended(edge: Stack) -> None:
    """Given wrong counters, reservations, usage rows and a wrong job, then the check names each with what is stored and
    what is right, a rebuild mends them, and says so."""
    tenant, key, job = await planted(edge)
    day = (await edge.client.hget(edge.keys.books(tenant), "d")).decode()
    field = f'["m1","chat","","ann","{key}"]'
    cost = 100 * 150 + 20 * 600
    reserved = int(await edge.client.hget(edge.keys.books(tenant), "hn"))
    await edge.client.hincrby(edge.keys.books(tenant), "tt", 5)
    await edge.client.hset(edge.keys.books(tenant), mapping={"dn": 7, "mt": 0, "ht": 0})
    await edge.client.hset(edge.keys.books(key), "tn", 1)
    await edge.client.delete(edge.keys.books(f"{tenant}:u:ann"))
    await edge.client.hset(edge.keys.usage(tenant, day), field, f"100 21 0 9 0 {cost} 0 0")
    await edge.client.hset(edge.keys.usage(tenant, day), '["m9","chat","","",""]', "1 0 0 0 0 0 1 0")
    await edge.client.hset(edge.keys.usage(tenant, "20200101"), '["m1","chat","","",""]', "0 3 0 0 0 0 0 0")
    await edge.client.zadd(edge.keys.usage_days(tenant), {"20200101": 20200101})
    await edge.client.hset(edge.keys.job(job.job_id), mapping={"tok_in": 1, "cost_nano": cost + 1})
    found = set(await differences(edge, tenant))
    user = f"{tenant}:u:ann"
    assert found == {
        ("counter", tenant, "totalTokens", 125, 120),
        ("counter", tenant, "dayNano", 7, cost),
        ("counter", tenant, "monthTokens", 0, 120),
        ("held", tenant, "tokens", 0, 168),
        ("counter", key, "totalNano", 1, cost),
        ("counter", user, "day", 0, int(day)),
        ("counter", user, "month", 0, int(day[:6])),
        ("counter", user, "dayTokens", 0, 120),
        ("counter", user, "dayNano", 0, cost),
        ("counter", user, "monthTokens", 0, 120),
        ("counter", user, "monthNano", 0, cost),
        ("counter", user, "totalTokens", 0, 120),
        ("counter", user, "totalNano", 0, cost),
        ("held", user, "tokens", 0, 168),
        ("held", user, "nano", 0, reserved),
        ("usage", f"{day} {field}", "outputTokens", 21, 20),
        ("usage", f'{day} ["m9","chat","","",""]', "inputTokens", 1, 0),
        ("usage", f'{day} ["m9","chat","","",""]', "unpricedTokens", 1, 0),
        ("usage", '20200101 ["m1","chat","","",""]', "outputTokens", 3, 0),
        ("job", job.job_id, "inputTokens", 1, 100),
        ("job", job.job_id, "costNano", cost + 1, cost),
    }
    rebuilt = await books(edge, "rebuild", tenant)
    assert rebuilt["ok"] is True
    assert rebuilt["tenants"][0]["found"] == len(found) == len(rebuilt["tenants"][0]["differences"])
    assert await differences(edge, tenant) == []
    # What the ledger does not know stays: reused tokens, admitted jobs, soft limits that were told.
    assert await edge.client.hget(edge.keys.usage(tenant, day), field) == f"100 20 0 9 0 {cost} 0 0".encode()
    assert await edge.client.hget(edge.keys.usage(tenant, day), f'#["errand-dev-extractive"{field[5:]}') == b"1"
    assert await edge.client.exists(edge.keys.usage(tenant, "20200101")) == 0
    assert (await edge.client.hget(edge.keys.books(tenant), "ws")).decode() == f"d{day}t"


async def test_the_books_go_on_after_a_rebuild(edge: Stack) -> None:
    """Given calls under way during a rebuild, when they end, then nothing is left reserved and nothing differs."""
    tenant, _, job = await planted(edge)
    await edge.client.delete(edge.keys.books(tenant))
    await books(edge, "rebuild", tenant)
    work = Working(edge)
    await work.finish(job, "c2", CallUsage(40, 9), step="chat:2")
    await work.end(job)
    assert await differences(edge, tenant) == []
    row = await edge.client.hmget(edge.keys.books(tenant), "tt", "ht", "hn")
    assert [int(figure) for figure in row] == [169, 0, 0]


async def test_names_of_all_kinds_are_summed(edge: Stack) -> None:
    """Given models and users with quotes, slashes, blanks, control characters and other scripts, then a rebuild writes
    the very fields that the next call adds to."""
    work = Working(edge)
    for user in ('a"b', "x/y\\z", "a b\tc\x7f\x01", "ünïcode 🦊", "with:u:colons", "@3"):
        await edge.submit(chat(user=user))
        job = await work.claim()
        await work.call(job, CallUsage(3, 4), model=f"m/{user}")
        await work.end(job)
    assert await differences(edge, DEFAULT_TENANT) == []
    before = await totals(edge)
    (day,) = await edge.client.zrange(edge.keys.usage_days(DEFAULT_TENANT), 0, -1)
    rows = await edge.client.hgetall(edge.keys.usage(DEFAULT_TENANT, day.decode()))
    for field in rows:
        if not field.startswith(b"#"):
            await edge.client.hset(edge.keys.usage(DEFAULT_TENANT, day.decode()), field, "9 9 9 0 9 9 9 9")
    assert (await books(edge, "rebuild"))["ok"]
    assert await edge.client.hgetall(edge.keys.usage(DEFAULT_TENANT, day.decode())) == rows
    assert await totals(edge) == before


async def test_prompts_have_counters_by_name_and_by_version(edge: Stack) -> None:
    tenant, key = await limited(edge, {"perPrompt": {"a/greet": GREAT, "a/greet@2": GREAT}})
    work = Working(edge)
    for version in (1, 2):
        job_id = await edge.submit(chat(), key=key)
        await edge.client.hset(edge.keys.job(job_id), "prompt", f"a/greet@{version}")
        await work.call(await work.claim(), CallUsage(10, version))
    assert await differences(edge, tenant) == []
    await edge.client.hset(edge.keys.books(f"{tenant}:p:a/greet"), "tt", 0)
    await edge.client.hset(edge.keys.books(f"{tenant}:p:a/greet@2"), "tt", 0)
    assert await differences(edge, tenant) == [
        ("counter", f"{tenant}:p:a/greet", "totalTokens", 0, 23),
        ("counter", f"{tenant}:p:a/greet@2", "totalTokens", 0, 12),
    ]


async def test_a_window_that_has_turned_is_no_difference(edge: Stack) -> None:
    """Given counters of yesterday that nothing was added to since, then they agree, and a rebuild opens today's."""
    tenant, _, _ = await planted(edge)
    ledger = edge.keys.ledger(tenant)
    ((_, entry),) = await edge.client.xrange(ledger)
    at_ms = int(entry[b"a"]) - 40 * 86_400_000
    await edge.client.delete(ledger)
    await edge.client.xadd(ledger, {**entry, b"a": at_ms})
    found = await differences(edge, tenant)
    assert {what for what, *_ in found} == {"counter", "usage"}
    assert {member for what, _, member, *_ in found if what == "counter"} == {
        "dayTokens", "dayNano", "monthTokens", "monthNano",
    }  # fmt: skip
    assert (await books(edge, "rebuild", tenant))["ok"]
    row = await edge.client.hmget(edge.keys.books(tenant), "dt", "mt", "tt", "ht")
    assert [int(figure) for figure in row] == [0, 0, 120, 168]


async def traffic(stack: Stack, keys: list[str], numbers: Any, stop: asyncio.Event) -> None:
    """Jobs of several users that begin, end, fail, are lost and corrected, without a pause."""
    chance = random.Random(next(numbers))
    worker = f"t{next(numbers)}"
    while not stop.is_set():
        await stack.submit(chat(user=chance.choice(["ann", "bob"])), key=chance.choice(keys))
        lost = chance.random() < 0.2
        jobs, _ = await stack.jobs.claim(
            worker=worker, lanes=[("interactive", 1)], count=1, lease_ms=1 if lost else 60_000
        )
        for job in jobs:
            call, model = f"c{next(numbers)}", chance.choice(["m1", "m2"])
            price: Price | None = PRICE if model == "m1" else None
            usage = CallUsage(chance.randrange(1, 50), chance.randrange(0, 90), estimated=chance.random() < 0.3)
            step = {"step": f"chat:{call}", "label": "chat", "call": call}
            try:
                reserve = Reservation(model, usage.input_tokens, price=price)
                await stack.events.begin_step(job, worker, reserve=reserve, **step)
                if lost:
                    await stack.jobs.reap()
                await stack.events.finish_step(
                    job, worker, usage=usage, result=b"{}", model=model, price=price, wasted=usage.output_tokens, **step
                )
                await stack.jobs.settle_one(job, worker, outcome="complete", result="{}")
            except LeaseLostError:
                continue


@pytest.mark.parametrize("action", ["check", "rebuild"])
async def test_the_check_is_exact_while_calls_are_booked(edge: Stack, action: str) -> None:
    """Given writers that never pause, then no check finds a difference; a wrong figure that is planted among them is
    found with the very difference that was planted; and a rebuild under traffic mends it."""
    tenant, key = await limited(edge, {**GREAT, "perUser": GREAT}, GREAT)
    made = await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {})
    keys = [key, made.json["key"]]
    stop, numbers = asyncio.Event(), itertools.count()
    writers = [asyncio.create_task(traffic(edge, keys, numbers, stop)) for _ in range(4)]
    store = BooksStore(edge.client, edge.keys)
    try:
        while int(await edge.client.xlen(edge.keys.ledger(tenant))) < 60:
            await asyncio.sleep(0.01)
        before = int(await edge.client.xlen(edge.keys.ledger(tenant)))
        for _ in range(15):
            report = await store.check([tenant])
            assert report.ok, report.tenants[0].differences
        assert int(await edge.client.xlen(edge.keys.ledger(tenant))) > before
        for scope, member, by in ((tenant, "tt", 5), (f"{tenant}:u:ann", "mn", -3), (tenant, "ht", 11)):
            await edge.client.hincrby(edge.keys.books(scope), member, by)
        report = await getattr(store, action)([tenant])
        planted = {(one.what, one.id, one.member): one.stored - one.ledger for one in report.tenants[0].differences}
        assert planted == {
            ("counter", tenant, "totalTokens"): 5,
            ("counter", f"{tenant}:u:ann", "monthNano"): -3,
            ("held", tenant, "tokens"): 11,
        }
        assert report.ok is (action == "rebuild")
        for _ in range(5):
            assert (await store.check([tenant])).ok is (action == "rebuild")
    finally:
        stop.set()
        await asyncio.gather(*writers)
    assert (await store.rebuild([tenant])).ok
    assert (await store.check([tenant])).ok
    owed = await edge.client.hmget(edge.keys.books(tenant), "ht", "hn")
    assert [int(figure or 0) for figure in owed] == [0, 0]


async def test_what_is_booked_in_the_midst_of_a_rebuild_is_kept(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given calls that are booked after the ledger was summed up and before the sums are written, one of them a row of
    its own and one a correction, then they are in what is written."""
    tenant, _, job = await planted(edge)
    await edge.client.delete(edge.keys.books(tenant))
    work = Working(edge)
    work.calls = 10

    async def late(client: Any) -> int:
        if work.calls == 10:
            await work.finish(job, "c2", CallUsage(40, 9), step="chat:2")
            await work.call(job, CallUsage(1, 2), step="chat:3", model="m2", price=None)
            call, _ = await work.begin(job, tokens=60, step="chat:4")
            await edge.client.zadd(edge.keys.leases, {job.job_id: 1})
            await edge.jobs.reap()
            with pytest.raises(LeaseLostError):
                await work.finish(job, call, CallUsage(50, 5), step="chat:4")
        return await redis_now_ms(client)

    monkeypatch.setattr("shared.stores.books.redis_now_ms", late)
    assert (await books(edge, "rebuild", tenant))["ok"]
    assert work.calls > 10
    assert await differences(edge, tenant) == []
    assert (await edge.client.hget(edge.keys.books(tenant), "tt")) == str(120 + 49 + 3 + 55).encode()


async def test_a_window_that_turns_in_the_midst_of_a_rebuild_is_waited_out(
    edge: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, _, _ = await planted(edge)
    asked = 0

    async def yesterday(client: Any) -> int:
        nonlocal asked
        asked += 1
        return await redis_now_ms(client) - (86_400_000 if asked == 1 else 0)

    monkeypatch.setattr("shared.stores.books.redis_now_ms", yesterday)
    await edge.client.hset(edge.keys.books(tenant), "dt", 1)
    assert (await books(edge, "rebuild", tenant))["ok"]
    assert asked == 2


async def test_long_books_are_read_in_pieces(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stores.books.PAGE", 3)
    monkeypatch.setattr("shared.stores.books.SCOPES", 2)
    monkeypatch.setattr("shared.stores.books.JOBS", 2)
    monkeypatch.setattr("shared.stores.books.WRITTEN", 2)
    await lived_in(edge)
    assert await differences(edge, DEFAULT_TENANT) == []
    for key in [key async for key in edge.client.scan_iter(f"{edge.keys.prefix}books:*")]:
        await edge.client.delete(key)
    found = await books(edge, "rebuild")
    assert found["ok"]
    assert found["tenants"][0]["found"] > 20


async def test_a_job_that_was_removed_is_no_difference(edge: Stack) -> None:
    """Given jobs whose retention is over, then their calls stay in the ledger, and the books agree."""
    work = Working(edge)
    await edge.submit(chat())
    job = await work.claim()
    await work.call(job, CallUsage(3, 4))
    await work.end(job)
    await edge.client.zadd(edge.keys.retention, {job.job_id: 0})
    assert await edge.jobs.sweep() == 1
    assert await differences(edge, DEFAULT_TENANT) == []
    assert (await totals(edge))["totalTokens"] == 7


async def test_only_an_administrator_may(edge: Stack) -> None:
    tenant, key = await edge.tenant()
    for action in ("check", "rebuild"):
        path = f"/api/admin/books/{action}"
        assert (await edge.call("POST", path, {}, key=key)).status == 403
        assert (await edge.call("POST", path, {"tenantId": "ten_01M81SGW152PHX78GHNCJWQHRS"})).status == 404
        assert (await edge.call("POST", path, {"tenant": tenant})).status == 422
        answer = await edge.call("POST", path)  # no body: all tenants
        assert {one["tenantId"] for one in answer.json["tenants"]} == {DEFAULT_TENANT, tenant}


async def test_the_books_on_the_command_line(edge: Stack) -> None:
    """Tenant by tenant; 1 and a table when something differs; after a rebuild 0."""
    tenant, key, _ = await planted(edge)
    assert (await errand(edge, "books", "check")).code == 0
    await edge.client.hset(edge.keys.books(key), "tt", 7)
    ran = await errand(edge, "books", "check")
    assert ran.code == 1
    assert f"{DEFAULT_TENANT}  no calls: ok" in ran.out
    assert f"{tenant}  1 calls, 120 tokens, 0.000027 USD: 1 DIFFERENT" in ran.out
    assert re.search(rf"counter +{key} +totalTokens +7 +120$", ran.out, re.MULTILINE)
    assert (await errand(edge, "books", "check", "--tenant", DEFAULT_TENANT)).code == 0
    mended = await errand(edge, "books", "rebuild", "--tenant", tenant)
    assert (mended.code, "1 mended" in mended.out) == (0, True)
    assert (await errand(edge, "books", "check", "--json")).json["ok"] is True
