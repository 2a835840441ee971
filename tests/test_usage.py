"""Usage: its rows are the sums of what the jobs used, to the last token and nano-dollar."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import msgspec
import pytest

from shared.errors import LeaseLostError
from shared.policy import encode_policy
from shared.prices import Price
from shared.stores.events import CallUsage, Reservation
from shared.stores.tenants import DEFAULT_TENANT
from shared.tenants import Limits
from tests.conftest import ADMIN_KEY, Stack, analysis, chat
from tests.test_cli import errand

PRICE = Price(input_pico=150_000, output_pico=600_000, version="test")
OWNER = DEFAULT_TENANT
FIGURES = ("inputTokens", "outputTokens", "embeddingTokens", "totalTokens", "reusedTokens", "wastedTokens")


class Working:
    """Jobs that are claimed and worked on by hand, so that each token is known."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.calls = 0

    async def claim(self, lane: str = "interactive", lease_ms: int = 60_000) -> Any:
        (job,), _ = await self.stack.jobs.claim(worker="w1", lanes=[(lane, 1)], count=1, lease_ms=lease_ms)
        return job

    async def begin(
        self, job: Any, *, model: str = "m1", tokens: int = 10, price: Price | None = PRICE, step: str = "chat:1"
    ) -> Any:
        self.calls += 1
        call = f"c{self.calls}"
        begun = await self.stack.events.begin_step(
            job, "w1", step=step, label="chat", call=call, reserve=Reservation(model, tokens, price=price)
        )
        return call, begun

    async def call(
        self,
        job: Any,
        usage: CallUsage,
        *,
        model: str = "m1",
        price: Price | None = PRICE,
        wasted: int = 0,
        step: str = "chat:1",
        result: bytes | None = b"{}",
    ) -> None:
        """One model call, begun and finished."""
        call, _ = await self.begin(job, model=model, tokens=usage.input_tokens, price=price, step=step)
        await self.finish(job, call, usage, model=model, price=price, wasted=wasted, step=step, result=result)

    async def finish(self, job: Any, call: str, usage: CallUsage, *, step: str = "chat:1", **more: Any) -> None:
        more = {"model": "m1", "price": PRICE, "result": b"{}", **more}
        await self.stack.events.finish_step(job, "w1", step=step, label="chat", call=call, usage=usage, **more)

    async def end(self, job: Any, outcome: str = "complete") -> None:
        ending = {"result": "{}"} if outcome == "complete" else {}
        if outcome == "failed":
            ending = {"error": '{"code":"internal","message":"x","retryable":false}'}
        await self.stack.jobs.settle_one(job, "w1", outcome=outcome, **ending)


async def rows(stack: Stack, query: str = "", **options: Any) -> list[dict[str, Any]]:
    answer = await stack.call("GET", f"/api/usage?{query}", **options)
    assert answer.status == 200, answer.text
    return list(answer.json["data"])


async def totals(stack: Stack, query: str = "", **options: Any) -> dict[str, Any]:
    (row,) = await rows(stack, f"groupBy=&{query}", **options)
    return row


async def job_sums(stack: Stack, key: str = ADMIN_KEY) -> dict[str, Any]:
    """The sums of all jobs' usages, as the API shows each."""
    views = (await stack.call("GET", "/api/jobs?limit=200", key=key)).json["data"]
    sums = {name: sum(view["usage"][name] for view in views) for name in FIGURES}
    costs = [view["usage"]["costUsd"] for view in views if view["usage"]["costUsd"] is not None]
    return {
        **sums,
        "jobs": len(views),
        "costUsd": pytest.approx(sum(costs)) if costs else None,
        "estimated": any(view["usage"]["estimated"] for view in views),
    }


async def lived_in(stack: Stack) -> Working:
    """A tenant with a complete, a failed, a cancelled, a lost and a waiting job, of several models and users."""
    work = Working(stack)
    await stack.submit(chat(user="ann"))
    job = await work.claim()
    await work.call(job, CallUsage(100, 20))
    await work.call(job, CallUsage(50, 5), step="chat:2", model="m2", price=None)
    await work.end(job)

    await stack.submit(chat(user="bob"))
    job = await work.claim()
    await work.call(job, CallUsage(30, 7), wasted=37, result=None)
    await work.end(job, "failed")

    cancelled = await stack.submit(chat(user="ann"))
    job = await work.claim()
    call, _ = await work.begin(job, tokens=40)
    await stack.jobs.cancel(job.tenant, cancelled)
    await work.finish(job, call, CallUsage(40, 3, estimated=True), wasted=43, result=None)
    await work.end(job, "cancelled")

    await stack.submit(chat())
    job = await work.claim(lease_ms=1)
    call, _ = await work.begin(job, tokens=60)
    await asyncio.sleep(0.02)
    await stack.jobs.reap()  # its worker was lost: an estimate is booked
    with pytest.raises(LeaseLostError):  # and then corrected, for it was only frozen
        await work.finish(job, call, CallUsage(62, 8))
    again = await work.claim()
    await work.call(again, CallUsage(62, 9))
    await work.end(again, "failed")
    await stack.call("POST", f"/api/jobs/{again.job_id}/retry")
    again = await work.claim()
    _, known = await work.begin(again, tokens=62)
    assert known == b"{}"  # reused, not paid again
    await work.end(again)

    await stack.submit(chat())
    return work


async def test_the_rows_sum_to_the_jobs(edge: Stack) -> None:
    """Given jobs that completed, failed, were cancelled, lost and retried, then the total of the usage is that of the
    jobs, whatever it is grouped by."""
    await lived_in(edge)
    expected = await job_sums(edge)
    assert expected["reusedTokens"] == 71
    assert expected["wastedTokens"] == 37 + 43 + 70
    found = await totals(edge)
    assert {name: found[name] for name in expected} == expected
    assert found["unpricedTokens"] == 55
    for grouping in ("day", "model", "type", "prompt", "user", "key", "day,model,type,prompt,user,key"):
        parts = await rows(edge, f"groupBy={grouping}")
        for name in (*FIGURES, "jobs", "unpricedTokens"):
            assert sum(part[name] for part in parts) == found[name], (grouping, name)
        assert sum(part["costUsd"] or 0 for part in parts) == pytest.approx(found["costUsd"])


async def test_real_jobs_are_in_it(stack: Stack) -> None:
    """Given jobs that real workers ran, one of them cancelled in mid-stream, then the rows are their sum."""
    await stack.finished(await stack.submit(chat("What is a lease?", user="ann")))
    await stack.finished(await stack.submit(analysis("The harbour is deep. " * 40)))
    expected = await job_sums(stack)
    found = await totals(stack)
    assert {name: found[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    assert found["totalTokens"] > 0
    by_type = {row["type"]: row["jobs"] for row in await rows(stack, "groupBy=type")}
    assert by_type == {"chat": 1, "document-analysis": 1}


async def test_only_the_members_that_were_asked_for_are_there(edge: Stack) -> None:
    await lived_in(edge)
    (row,) = await rows(edge)
    assert set(row) == {"day", "jobs", *FIGURES, "costUsd", "estimated", "unpricedTokens"}
    assert len(row["day"]) == len("2026-01-31")
    by_user = {row["user"]: row for row in await rows(edge, "groupBy=user")}
    assert set(by_user) == {"ann", "bob", None}
    assert by_user["ann"]["estimated"] is True
    assert by_user["bob"]["totalTokens"] == 37
    assert by_user["bob"]["costUsd"] == pytest.approx((30 * 0.15 + 7 * 0.6) / 1e6)
    (key,) = {row["key"] for row in await rows(edge, "groupBy=key")}
    assert key.startswith("key_")
    assert [row["prompt"] for row in await rows(edge, "groupBy=prompt")] == [None]


async def test_an_unknown_price_is_null_and_never_nought(edge: Stack) -> None:
    await lived_in(edge)
    by_model = {row["model"]: row for row in await rows(edge, "groupBy=model")}
    assert by_model["m2"]["costUsd"] is None
    assert by_model["m2"]["unpricedTokens"] == by_model["m2"]["totalTokens"] == 55
    assert by_model["m1"]["unpricedTokens"] == 0


async def test_a_price_of_nought_is_a_price(edge: Stack) -> None:
    work = Working(edge)
    await edge.submit(chat())
    await work.call(await work.claim(), CallUsage(10, 10), price=Price(0, 0, "free"))
    assert (await totals(edge))["costUsd"] == 0


async def test_a_correction_takes_the_estimate_back(edge: Stack) -> None:
    """Given a call that was taken for lost, when its true figures come, then no row is estimated any more."""
    work = Working(edge)
    await edge.submit(chat())
    job = await work.claim(lease_ms=1)
    call, _ = await work.begin(job, tokens=60)
    await asyncio.sleep(0.02)
    await edge.jobs.reap()
    found = await totals(edge)
    assert (found["totalTokens"], found["wastedTokens"], found["estimated"]) == (60, 60, True)
    with pytest.raises(LeaseLostError):
        await work.finish(job, call, CallUsage(50, 25))
    found = await totals(edge)
    assert (found["totalTokens"], found["wastedTokens"], found["estimated"]) == (75, 75, False)
    assert found["costUsd"] == pytest.approx((50 * 0.15 + 25 * 0.6) / 1e6)


async def test_the_filters_and_the_order(edge: Stack) -> None:
    await lived_in(edge)
    by_tokens = await rows(edge, "groupBy=user,model&order=tokens")
    tokens = [row["totalTokens"] for row in by_tokens]
    assert tokens == sorted(tokens, reverse=True)
    by_name = await rows(edge, "groupBy=user,model")
    names = [(row["user"] or "", row["model"]) for row in by_name]
    assert names == sorted(names)
    assert set(names) > {("", "m1"), ("ann", "m1"), ("ann", "m2"), ("bob", "m1")}
    assert sorted(map(str, by_tokens)) == sorted(map(str, by_name))
    assert (await totals(edge, "user=bob"))["totalTokens"] == 37
    assert (await totals(edge, "user="))["totalTokens"] == 70 + 71
    assert (await totals(edge, "model=m2"))["totalTokens"] == 55
    assert (await totals(edge, "type=agent"))["jobs"] == 0
    assert (await totals(edge, "key=key_01M81SGW152PHX78GHNCJWQHRT"))["totalTokens"] == 0
    assert (await totals(edge, f"key=key_{ADMIN_KEY[3:29]}"))["totalTokens"] == (await totals(edge))["totalTokens"]
    assert (await totals(edge, "prompt=x"))["totalTokens"] == 0


async def test_a_prompts_name_stands_for_its_versions(edge: Stack) -> None:
    for prompt, tokens in (("a/b@1", 1), ("a/b@2", 20), ("a/b", 300), ("a/bc@1", 4_000)):
        field = f'["m","chat","{prompt}","",""]'
        await edge.client.hset(edge.keys.usage(OWNER, "20260101"), field, f"{tokens} 0 0 0 0 0 {tokens} 0")
    await edge.client.zadd(edge.keys.usage_days(OWNER), {"20260101": 20260101})
    that_day = "from=2026-01-01&to=2026-01-01"
    assert (await totals(edge, f"{that_day}&prompt=a/b"))["totalTokens"] == 321
    assert (await totals(edge, f"{that_day}&prompt=a/b@2"))["totalTokens"] == 20


async def planted(stack: Stack, days: dict[str, int], owner: str = OWNER) -> None:
    """Usage of past days."""
    for day, tokens in days.items():
        await stack.client.hset(stack.keys.usage(owner, day), '["m","chat","","",""]', f"{tokens} 0 0 0 0 5 0 0")
        await stack.client.zadd(stack.keys.usage_days(owner), {day: int(day)})


async def test_whole_days_both_included(edge: Stack) -> None:
    await planted(edge, {"20260130": 1, "20260131": 10, "20260201": 100, "20260202": 1000})
    assert [row["day"] for row in await rows(edge, "from=2026-01-30&to=2026-02-01")] == [
        "2026-01-30", "2026-01-31", "2026-02-01",
    ]  # fmt: skip
    assert (await totals(edge, "from=2026-01-31&to=2026-01-31"))["totalTokens"] == 10
    assert (await totals(edge, "from=2026-01-31T23:59:59Z&to=2026-02-01T00:00:00Z"))["totalTokens"] == 110
    # A time with a zone is taken by its UTC day; the `+` need not be escaped.
    assert (await totals(edge, "from=2026-02-01T01:00:00+02:00&to=2026-01-31"))["totalTokens"] == 10
    assert (await totals(edge, "to=2026-02-01"))["totalTokens"] == 111
    assert await rows(edge) == []


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("from=yesterday", "?from"),
        ("to=2026-02-30", "?to"),
        ("to=20260201", "?to"),
        ("from=2026-W47-1", "?from"),
        ("to=2026-W47-1T00:00:00Z", "?to"),
        ("to=20260201T000000Z", "?to"),
        ("from=2026-326", "?from"),
        ("order=size", "?order"),
        ("from=2026-02-01T00:00:00", "?from"),
        ("from=9999-01-01", "?from"),
        ("from=2026-02-02&to=2026-02-01", "?from"),
        ("from=2025-01-01&to=2026-02-05", "?from"),
        ("groupBy=week", "?groupBy"),
        ("groupBy=day,,model", "?groupBy"),
        ("limit=0", "?limit"),
        ("limit=10001", "?limit"),
        ("after=x", "?after"),
        ("after=W10", "?after"),
        ("sort=day", "?sort"),
    ],
)
async def test_a_bad_parameter_is_named(edge: Stack, query: str, name: str) -> None:
    answer = await edge.call("GET", f"/api/usage?{query}")
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, name), answer.text


async def test_four_hundred_days_are_the_most(edge: Stack) -> None:
    assert (await edge.call("GET", "/api/usage?from=2025-01-01&to=2026-02-04")).status == 200


async def test_pages_meet_without_gap_or_repeat(edge: Stack) -> None:
    for day in ("20260101", "20260102"):
        for number in range(25):
            field = f'["m{number:02d}","chat","","u","k"]'
            await edge.client.hset(edge.keys.usage(OWNER, day), field, f"{number // 5} 0 0 0 0 0 0 0")
        await edge.client.zadd(edge.keys.usage_days(OWNER), {day: int(day)})
    query = "from=2026-01-01&to=2026-01-02&groupBy=day,model"
    whole = await rows(edge, query)
    assert len(whole) == 50
    for order in ("name", "tokens"):
        seen: list[dict[str, Any]] = []
        path = f"/api/usage?{query}&order={order}&limit=7"
        while path:
            answer = await edge.call("GET", path)
            seen += answer.json["data"]
            assert answer.json["hasMore"] is (answer.json["next"] is not None)
            link = answer.headers.get("Link")
            path = link[1 : link.index(">")] if link else ""
        assert seen == (whole if order == "name" else await rows(edge, f"{query}&order=tokens"))
    cursor = (await edge.call("GET", f"/api/usage?{query}&order=tokens&limit=7")).json["next"]
    assert (await edge.call("GET", f"/api/usage?{query}&after={cursor}")).status == 422


async def test_pages_meet_while_calls_are_booked(edge: Stack) -> None:
    """Given usage by user, when calls are booked all the while that somebody reads it page by page, so that each row
    overtakes others, then no row comes twice, and none is missing of those that stood at the start."""
    work = Working(edge)
    users = [f"u{number:02d}" for number in range(20)]
    jobs = {}
    for user in users:
        await edge.submit(chat(user=user))
        jobs[user] = await work.claim()
        await work.call(jobs[user], CallUsage(int(user[1:]) % 7 + 1, 1))

    async def book(turn: int) -> None:
        """The rows that were least grow most; one comes in anew."""
        for place, user in enumerate(users):
            tokens = 1_000 * turn * ((place * 7 + turn) % len(users) + 1)
            await work.call(jobs[user], CallUsage(tokens, 1), step=f"chat:{turn + 1}")
        await edge.submit(chat(user=f"new{turn}"))

    seen: list[str] = []
    path, turn = "/api/usage?groupBy=day,user&limit=3", 0
    while path:
        turn += 1
        answer, _ = await asyncio.gather(edge.call("GET", path), book(turn))
        assert answer.status == 200, answer.text
        seen += [row["user"] for row in answer.json["data"]]
        link = answer.headers.get("Link")
        path = link[1 : link.index(">")] if link else ""
    assert turn >= 7
    assert len(seen) == len(set(seen))
    assert set(users) <= set(seen)


async def test_usage_as_csv(edge: Stack) -> None:
    """Given names that parsers stumble over, then they come back as they were."""
    odd = '1+1,"x"\r\nüñ'
    work = Working(edge)
    await edge.submit(chat(user=odd))
    job = await work.claim()
    await work.call(job, CallUsage(100, 20))
    await work.call(job, CallUsage(1, 1), model="m2", price=None, step="chat:2")
    answer = await edge.call("GET", "/api/usage?groupBy=day,user,model,prompt", headers={"Accept": "text/csv"})
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="usage-')
    table = list(csv.reader(io.StringIO(answer.text, newline="")))
    found = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
    chosen = {row["model"]: row for row in found}
    assert chosen["m1"]["user"] == odd
    assert chosen["m1"]["prompt"] == ""
    assert (chosen["m1"]["totalTokens"], chosen["m1"]["costUsd"]) == ("120", "0.000027000")
    assert (chosen["m2"]["costUsd"], chosen["m2"]["unpricedTokens"]) == ("", "2")
    assert answer.text.endswith("\r\n")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
async def test_no_name_is_a_formula_in_a_spreadsheet(edge: Stack, start: str) -> None:
    """Given a user, a model and a type of job whose names begin like a formula, then `'` is before them in CSV, and
    nowhere else; in JSON they are as they were."""
    name = f'{start}HYPERLINK("http://x")'
    field = json.dumps([name, name, name, name, "key_x"])
    await edge.client.hset(edge.keys.usage(OWNER, "20260101"), field, "5 -1 0 0 0 0 5 0")
    await edge.client.zadd(edge.keys.usage_days(OWNER), {"20260101": 20260101})
    query = "from=2026-01-01&to=2026-01-01&groupBy=day,model,type,prompt,user,key"
    answer = await edge.call("GET", f"/api/usage?{query}", headers={"Accept": "text/csv"})
    (head, line) = csv.reader(io.StringIO(answer.text, newline=""))
    row = dict(zip(head, line, strict=True))
    assert [row[member] for member in ("model", "type", "prompt", "user")] == ["'" + name] * 4
    assert (row["day"], row["key"], row["outputTokens"]) == ("2026-01-01", "key_x", "-1")  # a correction is a number
    (plain,) = await rows(edge, query)
    assert plain["user"] == name


async def test_csv_has_all_rows(edge: Stack) -> None:
    await planted(edge, {f"202601{day:02d}": day for day in range(1, 32)})
    answer = await edge.call("GET", "/api/usage?from=2026-01-01&to=2026-01-31&limit=5", headers={"Accept": "text/csv"})
    assert len(answer.text.splitlines()) == 32


async def test_nobody_sees_anothers_usage(edge: Stack) -> None:
    """Given two tenants, then each sees its own, and only a key with the scope `admin` the other's."""
    await lived_in(edge)
    tenant, key = await edge.tenant()
    assert (await totals(edge, key=key))["totalTokens"] == 0
    work = Working(edge)
    await edge.submit(chat(), key=key)
    await edge.call(
        "DELETE", "/api/jobs/" + (await edge.call("GET", "/api/jobs?status=queued")).json["data"][0]["jobId"]
    )
    await work.call(await work.claim(), CallUsage(5, 5))
    assert (await totals(edge, key=key))["totalTokens"] == 10
    for other in (OWNER, "*"):
        refused = await edge.call("GET", f"/api/usage?tenant={other}", key=key)
        assert (refused.status, refused.json["code"]) == (403, "scope_missing")
    assert (await totals(edge, f"tenant={tenant}"))["totalTokens"] == 10
    assert (await edge.call("GET", "/api/usage?tenant=ten_01M81SGW152PHX78GHNCJWQHRS")).status == 404
    both = {row["tenant"]: row["totalTokens"] for row in await rows(edge, "tenant=*&groupBy=tenant")}
    assert set(both) == {tenant, OWNER}
    assert (await totals(edge, "tenant=*"))["totalTokens"] == sum(both.values())
    assert both[tenant] == 10


async def test_sizes_of_tokens_are_learned_for_so_many_models(edge: Stack) -> None:
    """Given as many models as are remembered, when a call states the usage of another, then that is not learned, and
    what is known goes on being learned: names of models are the clients'."""
    await edge.client.hset(edge.keys.ratios, mapping={f"m{number}": "4.0000" for number in range(1_999)})
    await edge.submit(chat())
    work = Working(edge)
    job = await work.claim()
    for turn, (model, known) in enumerate([("last", 2_000), ("more", 2_000), ("m7", 2_000)]):
        call, _ = await work.begin(job, model=model, step=f"chat:{turn}")
        await work.finish(job, call, CallUsage(10, 1), model=model, step=f"chat:{turn}", input_bytes=20)
        assert await edge.client.hlen(edge.keys.ratios) == known
    assert await edge.client.hmget(edge.keys.ratios, ["last", "more", "m7", "m8"]) == [
        b"2.0000", None, b"3.8000", b"4.0000",
    ]  # fmt: skip


async def test_usage_needs_its_scope(edge: Stack) -> None:
    tenant, _ = await edge.tenant()
    made = await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {"scopes": ["jobs"]})
    refused = await edge.call("GET", "/api/usage", key=made.json["key"])
    assert (refused.status, refused.json["code"]) == (403, "scope_missing")


async def test_usage_on_the_command_line(edge: Stack) -> None:
    """A table for people; JSON and CSV for programs; a bad parameter is refused with 1."""
    await lived_in(edge)
    ran = await errand(edge, "usage", "--group-by", "model,user")
    head, *lines = ran.out.splitlines()
    assert (ran.code, head.split()[:3]) == (0, ["MODEL", "USER", "JOBS"])
    by_model = {line.split()[0]: line for line in lines if " ann " in line}
    assert by_model["m2"].endswith("unknown")
    assert "~" in by_model["m1"]
    expected = await totals(edge)
    assert (await errand(edge, "usage", "--group-by", "", "--json")).json["data"] == [expected]
    text = (await errand(edge, "usage", "--csv", "--group-by", "user")).out
    assert len(list(csv.reader(io.StringIO(text)))) == 4
    assert (await errand(edge, "usage", "--to", "2020-01-01")).out == "nothing was used\n"
    refused = await errand(edge, "usage", "--from", "yesterday")
    assert (refused.code, refused.err.count("?from")) == (1, 1)  # said once


async def test_limits_on_the_command_line(edge: Stack) -> None:
    tenant, _ = await edge.tenant(maxConcurrentJobs=3)
    policy = encode_policy(msgspec.convert({"budgets": [{"period": "day", "softTokens": 0, "hardUsd": 2}]}, Limits))
    await edge.client.hset(edge.keys.tenant(tenant), "policy", policy)
    ran = await errand(edge, "limits", "--tenant", tenant)
    assert ran.code == 0
    rows = {line.lstrip("* ").split()[0]: line for line in ran.out.splitlines()[1:]}
    assert set(rows) == {"maxConcurrentJobs", "maxQueuedJobs", "softTokens", "hardUsd"}
    assert "2.000000" in rows["hardUsd"]
    assert sum(line.startswith("*") for line in ran.out.splitlines()) == 1
    assert "soft limit of 0 tokens (day) of the tenant is crossed" in ran.err
    assert (await errand(edge, "limits", "--user", "ann", "--json")).json["binding"]["name"] == "maxQueuedJobs"
