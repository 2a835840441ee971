"""Exact books over the real components: what the model sent is what is booked, whatever happens in between."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.conftest import DevModel, Stack, chat
from tests.test_spending import book_of, ledger_of

TEXT = "The harbour opens at nine. The ferry leaves at ten. The lighthouse is closed on Mondays. " * 6


def sent_by(stats: dict[str, Any]) -> Counter[str]:
    """What the development model counted: tokens of calls that ended, and of those that were cut."""
    found = Counter[str]()
    for call in stats["list"]:
        kind = "done" if call["ended"] == "done" else "cut"
        found[kind] += call["inputTokens"] + call["outputTokens"]
        found[f"{kind} output"] += call["outputTokens"]
    return found


def excesses(calls: list[tuple[float, int]], per_second: float) -> Iterator[float]:
    """Of each span from one call to another: the tokens of both and of those between, above what flows in meanwhile.
    Calls are (time in seconds, tokens)."""
    calls = sorted(calls)
    for place, (first_s, _) in enumerate(calls):
        sum_so_far = 0
        for last_s, tokens in calls[place:]:
            sum_so_far += tokens
            yield sum_so_far - per_second * (last_s - first_s)


async def settled(stack: Stack, tenant: str) -> dict[str, str]:
    """The tenant's counters when nothing is reserved any more."""
    async with asyncio.timeout(15):
        while True:
            book = await book_of(stack, tenant)
            running = await stack.client.hget(f"{stack.keys.prefix}running", tenant)  # type: ignore[misc]
            if running is None and book.get("ht", "0") == "0":
                return book
            await asyncio.sleep(0.02)


async def checked(stack: Stack, tenant: str) -> None:
    """The books agree with themselves."""
    answer = await stack.call("POST", "/api/admin/books/check", {"tenantId": tenant})
    assert answer.json["ok"], answer.text


@pytest.mark.parametrize(("name", "tolerance"), [("gpt-4o-mini", 0.0), ("errand-dev-extractive", 0.15)])
@pytest.mark.parametrize("kind", ["no_usage", "zero_usage", "twice_usage"])
async def test_a_provider_that_states_no_true_usage(
    stack: Stack, model: DevModel, kind: str, name: str, tolerance: float
) -> None:
    """Given a provider without usage, with zeros, or with usage twice, when a call ends, then it is booked once: by our
    count and flagged where nothing was stated, by what is stated where something was. Our count is exact where the
    vocabulary is known; else the input is its bytes by four, and the output its chunks."""
    tenant, key = await stack.tenant(budgets=[{"period": "day", "hardTokens": 10**6}])
    await model.faults({"kind": kind})
    view = await stack.finished(await stack.submit(chat(TEXT, model=name), key=key), key=key)
    assert view["status"] == "complete"
    sent = sent_by(await model.stats(calls=True))
    book = await settled(stack, tenant)
    usage = view["usage"]
    (line,) = await ledger_of(stack, tenant)
    assert usage["totalTokens"] == int(book["tt"]) == int(line["i"]) + int(line["o"])
    if kind == "twice_usage":
        assert (usage["totalTokens"], usage["estimated"]) == (2 * sent["done"], False)
    else:
        assert usage["estimated"]
        assert usage["outputTokens"] == sent["done output"]
        assert abs(usage["totalTokens"] - sent["done"]) <= tolerance * sent["done"]
    await checked(stack, tenant)


# Servers that send each token, by a name whose vocabulary nobody knows; and such that join eight, by a known one.
SENDERS = pytest.mark.parametrize(("name", "per_chunk"), [("errand-dev-extractive", 1), ("gpt-4o-mini", 8)])


CHUNKS_PER_SECOND = 10
# Of a call that is cut: one that was sent and not yet read, one that is sent before the model sees that nobody reads.
ON_THEIR_WAY = 2


async def by_job(stack: Stack, model: DevModel, tenant: str, ids: list[str]) -> list[tuple[dict[str, Any], Any]]:
    """Each call of the model with its line in the ledger, when nobody sends any more. The jobs' texts begin with their
    numbers; each made one call at most."""
    async with asyncio.timeout(15):
        while (await model.stats())["open"]:
            await asyncio.sleep(0.02)
    calls = (await model.stats(calls=True))["list"]
    lines = {line["j"]: line for line in await ledger_of(stack, tenant)}
    assert len(lines) == len(calls)
    return [(call, lines[ids[int(call["body"]["messages"][-1]["content"].partition(".")[0])]]) for call in calls]


def check_calls(pairs: list[tuple[dict[str, Any], Any]], per_chunk: int, *, is_known: bool) -> None:
    """What is booked of each call is what the model sent: of one that was cut, but for chunks on their way."""
    for call, line in pairs:
        missed = call["outputTokens"] - int(line["o"])
        assert 0 <= missed <= (call["ended"] != "done") * ON_THEIR_WAY * per_chunk, (call, line)
        assert missed % per_chunk == 0
        assert int(line["i"]) == call["inputTokens"] or not (is_known or call["ended"] == "done")


@SENDERS
async def test_aborts_at_a_random_token_charge_what_was_sent(
    stack: Stack, model: DevModel, name: str, per_chunk: int
) -> None:
    """Given slow answers, when each is cancelled at a random moment, then its output is booked within the chunks that
    were on their way, its input whole, and the books agree."""
    chance = random.Random(5)
    tenant, key = await stack.tenant(budgets=[{"period": "day", "hardTokens": 10**6}])
    await model.pace(tokensPerSecond=CHUNKS_PER_SECOND * per_chunk, tokensPerChunk=per_chunk)
    ids = [await stack.submit(chat(f"{number}. {TEXT}", model=name), key=key) for number in range(20)]

    async def abort(job_id: str) -> None:
        await asyncio.sleep(chance.uniform(0.05, 1.5))
        await stack.call("DELETE", f"/api/jobs/{job_id}?wait=10", key=key)

    await asyncio.gather(*map(abort, ids))
    book = await settled(stack, tenant)
    pairs = await by_job(stack, model, tenant, ids)
    assert sum(call["ended"] == "closed" for call, _ in pairs) > 10
    check_calls(pairs, per_chunk, is_known=per_chunk > 1)
    assert int(book["tt"]) == sum(int(line["i"]) + int(line["o"]) for _, line in pairs) > 0
    await checked(stack, tenant)


@SENDERS
async def test_streams_that_become_longer_than_any_before_overrun_by_a_chunk_each(
    stack: Stack, model: DevModel, name: str, per_chunk: int
) -> None:
    """Given answers that were short so far, so that many streams are let in, when together they become longer than the
    budget, then it is overrun by at most the chunk that each of them was in, and what is booked is what was sent."""
    budget, streams = 4_000, 20
    tenant, key = await stack.tenant(budgets=[{"period": "total", "hardTokens": budget}], onHardLimit="fail")
    await stack.client.hset(stack.keys.outs(tenant), f"chat|{name}", "10 60")  # type: ignore[misc]
    await model.pace(tokensPerSecond=CHUNKS_PER_SECOND * per_chunk, tokensPerChunk=per_chunk)
    ids = [await stack.submit(chat(f"{number}. {TEXT}", model=name), key=key) for number in range(streams)]
    for job_id in ids:
        view = await stack.finished(job_id, key=key)
        assert view["status"] == "complete" or view["error"]["code"] == "budget_exhausted", view
    book = await settled(stack, tenant)
    pairs = await by_job(stack, model, tenant, ids)
    cut = sum(call["ended"] == "closed" for call, _ in pairs)
    most_open = (await model.stats())["mostOpen"]
    assert cut >= streams / 4
    # What was reserved for some when others were cut is free again when these end before it.
    assert 0.9 * budget <= int(book["tt"]) <= budget + per_chunk * most_open
    check_calls(pairs, per_chunk, is_known=per_chunk > 1)
    await checked(stack, tenant)


@SENDERS
async def test_a_budget_under_many_streams_of_two_processes(
    make_stack: Any, model: DevModel, name: str, per_chunk: int
) -> None:
    """Given two API processes and two workers, when 60 streams want three times the budget, then it is overrun by at
    most a chunk for each that was open, at least three quarters end in whole answers, and what is booked is what the
    model sent."""
    stack: Stack = await make_stack(workers=("interactive", "interactive"), worker_slots=40)
    other = await stack.start_api()
    budget, streams = 4_000, 60
    tenant, key = await stack.tenant(budgets=[{"period": "total", "hardTokens": budget}])
    await model.pace(tokensPerSecond=400, tokensPerChunk=per_chunk)
    ended = Counter[str]()

    async def one(base: str, number: int) -> None:
        body = {"messages": [{"role": "user", "content": f"{number}. {TEXT}"}], "model": name}
        async with stack.session.post(
            f"{base}/api/chat/stream", json=body, headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            text = await answer.text()
            ended["whole" if answer.status == 200 and "event: error" not in text else "refused"] += 1
            assert answer.status in (200, 402, 429), text
            assert "event: error" not in text or "budget_exhausted" in text or "rate_limited" in text, text

    await asyncio.gather(*(one(base, number) for number, base in enumerate([stack.base, other] * (streams // 2))))
    book = await settled(stack, tenant)
    stats = await model.stats(calls=True)
    sent, cut = sent_by(stats), sum(call["ended"] != "done" for call in stats["list"])
    booked_output = sum(int(line["o"]) for line in await ledger_of(stack, tenant))
    assert ended["refused"] > 0, "the demand was not above the budget"
    assert int(book["tt"]) <= budget + per_chunk * stats["mostOpen"]
    assert 0 <= sent["done output"] + sent["cut output"] - booked_output <= 5 * per_chunk * cut
    assert sent["done"] >= 0.75 * budget, (sent, ended)
    await checked(stack, tenant)


async def reserved(stack: Stack, tenant: str) -> int:
    """Tokens that the tenant's calls under way have reserved."""
    return int((await book_of(stack, tenant)).get("ht", "0"))


async def reaped(stack: Stack, ids: list[str]) -> None:
    """Until the leases of these jobs have run out and the reaper has been there."""
    async with asyncio.timeout(15):
        while any([await stack.client.hget(stack.keys.job(job_id), "lost") != b"1" for job_id in ids]):  # type: ignore[misc]
            await asyncio.sleep(0.02)


async def under_way(model: DevModel, calls: int, tokens: int) -> None:
    """Until so many calls have sent so many tokens each."""
    async with asyncio.timeout(15):
        while True:
            listed = (await model.stats(calls=True))["list"]
            if sum(call["outputTokens"] >= tokens for call in listed) >= calls:
                return
            await asyncio.sleep(0.02)


async def test_a_killed_workers_calls_are_settled_by_the_reaper(make_stack: Any, model: DevModel) -> None:
    """Given a worker process that dies by SIGKILL in the middle of answers, when the reaper has been there, then what
    was reserved is free and what was seen is booked, once; when another has finished them, then the ledger is the
    model's own count within what was on its way."""
    stack: Stack = await make_stack(lease_seconds=1.0)
    doomed = await stack.spawn_worker()
    tenant, key = await stack.tenant(budgets=[{"period": "day", "hardTokens": 10**6}])
    await model.pace(tokensPerSecond=50)
    ids = [await stack.submit(chat(f"{number}. {TEXT}"), key=key) for number in range(5)]
    await under_way(model, 5, 40)
    doomed.kill()
    assert await reserved(stack, tenant) > 0
    assert await ledger_of(stack, tenant) == []
    await reaped(stack, ids)
    assert await reserved(stack, tenant) == 0
    lost = await ledger_of(stack, tenant)
    assert [line["x"] for line in lost] == ["1"] * 5
    stats = await model.stats(calls=True)
    assert [call["ended"] for call in stats["list"]] == ["closed"] * 5
    # What is seen is written with the text: a coalescing window, and what was on its way, died with the worker.
    since = 50 * 0.25
    cut_output = sent_by(stats)["cut output"]
    assert 0 <= cut_output - sum(int(line["o"]) for line in lost) <= 5 * since
    await model.pace(tokensPerSecond=0)
    await stack.start_worker("interactive")
    for job_id in ids:
        assert (await stack.finished(job_id, key=key))["status"] == "complete"
    book = await settled(stack, tenant)
    lines = await ledger_of(stack, tenant)
    assert lines[:5] == lost
    exact = sum(int(line["i"]) + int(line["o"]) for line in lines[5:])
    assert {line["x"] for line in lines[5:]} == {"0"}
    assert exact == sent_by(await model.stats(calls=True))["done"]
    assert int(book["tt"]) == exact + sum(int(line["i"]) + int(line["o"]) for line in lost)
    await checked(stack, tenant)


async def test_a_worker_that_was_only_frozen_settles_its_own_use_once(make_stack: Any, model: DevModel) -> None:
    """Given a worker process that is frozen in the middle of answers, when the reaper has taken its jobs and booked
    what was seen, and it wakes to the rest of its answers, then it corrects each of them to what the model sent, once,
    while they are made again."""
    stack: Stack = await make_stack(lease_seconds=1.0)
    frozen = await stack.spawn_worker()
    tenant, key = await stack.tenant(budgets=[{"period": "day", "hardTokens": 10**6}])
    await model.pace(tokensPerSecond=50)
    ids = [await stack.submit(chat(f"{number}. {TEXT}"), key=key) for number in range(5)]
    await under_way(model, 5, 20)
    frozen.freeze()
    assert await reserved(stack, tenant) > 0
    await reaped(stack, ids)
    assert await reserved(stack, tenant) == 0
    lost = await ledger_of(stack, tenant)
    assert [(line["x"], line["z"]) for line in lost] == [("1", "0")] * 5
    # The rest waits in the connections of the frozen one.
    async with asyncio.timeout(15):
        while (await model.stats())["open"]:
            await asyncio.sleep(0.02)
    sent = sent_by(await model.stats(calls=True))
    assert sent["done"] > sum(int(line["i"]) + int(line["o"]) for line in lost)
    frozen.thaw()
    await model.pace(tokensPerSecond=0)
    await stack.start_worker("interactive")
    for job_id in ids:
        assert (await stack.finished(job_id, key=key))["status"] == "complete"
    async with asyncio.timeout(15):
        while len(await ledger_of(stack, tenant)) < 15:
            await asyncio.sleep(0.02)
    lines = await ledger_of(stack, tenant)
    booked = Counter[str]()
    for line in lines:
        booked[line["c"]] += int(line["i"]) + int(line["o"])
    calls = [call["inputTokens"] + call["outputTokens"] for call in (await model.stats(calls=True))["list"]]
    assert sorted(booked.values()) == sorted(calls)
    assert Counter((line["c"], line["z"]) for line in lines).most_common(1)[0][1] == 1, "booked twice"
    assert int((await settled(stack, tenant))["tt"]) == sum(calls)
    await checked(stack, tenant)


async def test_no_process_outlives_its_test(make_stack: Any) -> None:
    """Given a worker and an API in processes of their own, one of them frozen, when their stack is stopped, as it is
    after each test, then they are gone."""
    stack: Stack = await make_stack()
    frozen = await stack.spawn_worker()
    await stack.spawn_api()
    frozen.freeze()
    await stack.stop()
    assert [member.process.returncode for member in stack._members] == [-signal.SIGKILL] * 2


async def test_no_span_has_more_tokens_than_burst_and_rate(make_stack: Any, model: DevModel) -> None:
    """Given a rate of tokens, when two API processes and two workers have many times its burst to do, then in no span
    of time the calls that the model got have more tokens, in and out, than the burst and what flows in; and what flows
    in is used. The answers are as long as `maxTokens` allows: what a call makes beyond its estimate is paid for
    afterwards."""
    stack: Stack = await make_stack(worker_slots=40)
    bases = [await stack.spawn_api() for _ in range(2)]
    for _ in range(2):
        await stack.spawn_worker()
    per_minute, burst, most, calls = 90_000, 1_500, 30, 30
    _, key = await stack.tenant(tokensPerMinute=per_minute, tokensBurst=burst)
    await model.pace(tokensPerSecond=300)
    chance = random.Random(7)

    async def one(number: int) -> float:
        text = f"{number}. " + TEXT * chance.randint(1, 4)
        job = chat(text, model="gpt-4o-mini")
        job["input"]["maxTokens"] = most
        async with stack.session.post(
            f"{bases[number % 2]}/api/jobs", json=job, headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            assert answer.status == 202, await answer.text()
            job_id = (await answer.json())["jobId"]
        assert (await stack.finished(job_id, key=key))["status"] == "complete"
        events = (await stack.call("GET", f"/api/jobs/{job_id}/events?limit=1000", key=key)).json["data"]
        return datetime.fromisoformat(next(event["at"] for event in events if event["type"] == "job.step")).timestamp()

    begun = await asyncio.gather(*(one(number) for number in range(calls)))
    made = (await model.stats(calls=True))["list"]
    assert len(made) == calls
    assert {call["outputTokens"] for call in made} == {most}
    arrived, reserved_at = [], []
    for call in made:
        tokens = call["inputTokens"] + call["outputTokens"]
        arrived.append((call["atSeconds"], tokens))
        reserved_at.append((begun[int(call["body"]["messages"][-1]["content"].partition(".")[0])], tokens))
    per_second = per_minute / 60
    assert max(excesses(reserved_at, per_second)) <= burst + 0.002 * per_second, "times of events are in ms"
    # At the model the calls come closer together by the time that some of them took from their reservation.
    slowest = max(there[0] - here[0] for there, here in zip(arrived, reserved_at, strict=True))
    assert max(excesses(arrived, per_second)) <= burst + (slowest + 0.002) * per_second
    span = max(arrived)[0] - min(arrived)[0]
    assert sum(tokens for _, tokens in arrived) - burst > 0.8 * per_second * span, "what flowed in was not used"


async def test_a_stream_is_closed_at_the_chunk_where_its_budget_ends(stack: Stack, model: DevModel) -> None:
    """Given a budget that ends in the middle of an answer, when it is streamed, then what came is kept and billed, the
    stream ends with the problem, and the model's connection is closed."""
    tenant, key = await stack.tenant(budgets=[{"period": "day", "hardTokens": 170}])
    await model.pace(tokensPerSecond=300)
    body = {"messages": [{"role": "user", "content": TEXT}]}
    async with stack.session.post(
        f"{stack.base}/api/chat/stream", json=body, headers={"Authorization": f"Bearer {key}"}
    ) as answer:
        assert answer.status == 200
        text = await answer.text()
    assert '{"text": ' in text
    assert "event: error" in text
    assert "budget_exhausted" in text
    assert '"scope":"tenant"' in text
    assert '"freesAt"' in text
    book = await settled(stack, tenant)
    assert 170 <= int(book["tt"]) <= 171
    await asyncio.sleep(0.1)
    stats = await model.stats(calls=True)
    assert [call["ended"] for call in stats["list"]] == ["closed"]
    refused = await stack.call("POST", "/api/chat", body, key=key)
    assert refused.status == 402
    assert refused.headers["x-should-retry"] == "false"


async def test_the_sdk_does_not_repeat_a_402_and_waits_as_it_is_told_for_a_429(stack: Stack, model: DevModel) -> None:
    """Given the real OpenAI SDK's rules for headers, when it meets our refusals, then it repeats only what may help."""
    import openai

    hits = Counter[str]()
    _, key = await stack.tenant(requestsPerMinute=600, requestsBurst=1)

    class Client(openai.AsyncOpenAI):
        pass

    async with Client(api_key=key, base_url=f"{stack.base}/api", max_retries=2) as client:
        for _ in range(2):
            # Two at once with a burst of one: the second is told to come again in 100 ms, and does.
            answer: Any = await client.post("/jobs", body=chat(), cast_to=object)
            hits[answer["status"]] += 1
    assert hits["queued"] == 2
    _, key = await stack.tenant(budgets=[{"period": "day", "hardTokens": 0}])
    async with Client(api_key=key, base_url=f"{stack.base}/api", max_retries=5) as client:
        started = asyncio.get_running_loop().time()
        with pytest.raises(openai.APIStatusError) as refused:
            await client.post("/jobs", body=chat(), cast_to=object)
        assert refused.value.status_code == 402
        assert asyncio.get_running_loop().time() - started < 0.4


async def test_a_batch_waits_for_its_budget_and_goes_on_without_paying_twice(stack: Stack, model: DevModel) -> None:
    """Given an analysis whose budget ends in the middle, when the budget is raised, then it goes on by itself from
    where it was: no call that ended is made again."""
    from tests.conftest import analysis

    tenant, key = await stack.tenant(budgets=[{"period": "total", "hardTokens": 2_500}])
    job_id = await stack.submit(analysis(TEXT * 12), key=key)
    view = None
    async with asyncio.timeout(20):
        while view is None or view["status"] != "waiting":
            view = (await stack.call("GET", f"/api/jobs/{job_id}", key=key)).json
            assert view["status"] not in ("complete", "failed"), view
            await asyncio.sleep(0.02)
    assert view["waiting"]["kind"] == "budget"
    assert view["attempt"] == 1
    before = len((await model.stats(calls=True))["list"])
    assert before > 0
    changed = await stack.call(
        "PATCH", f"/api/admin/tenants/{tenant}", {"limits": {"budgets": [{"period": "total", "hardTokens": 10**6}]}}
    )
    assert changed.status == 200, changed.text
    view = await stack.finished(job_id, key=key)
    assert view["status"] == "complete"
    assert view["attempt"] == 1
    stats = await model.stats(calls=True)
    bodies = [str(call["body"]["messages"]) for call in stats["list"] if call["ended"] == "done"]
    assert len(bodies) == len(set(bodies)), "a call that ended was made again"
    await checked(stack, tenant)
