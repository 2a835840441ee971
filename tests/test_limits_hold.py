"""Limits in odd places: calls that never fit, large calls, keys that are gone, books that are mended."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

import pytest

from shared.errors import LeaseLostError, OverLimit
from shared.limits import sentence_of
from shared.stores.events import Begun, Blocked, CallUsage, Reservation
from shared.stores.jobs import Settlement
from shared.tokens import TokenCounter
from tests.conftest import Stack, chat
from tests.test_spending import book_of, claim, step
from worker.limits import over_limit
from worker.model.calls import Progress

WAITING = '{"kind":"budget"}'
TEXT = "The harbour opens at nine. The ferry leaves at ten. The lighthouse is closed on Mondays. " * 6


async def test_what_needs_more_than_the_whole_limit_says_so(edge: Stack) -> None:
    """Given a day's limit of 100 tokens, when a call reads 150, then it is refused with what it needs and without a
    time at which it would be free: the attempt waits for the limit to be raised, not for the next day."""
    _, key = await edge.tenant(budgets=[{"period": "day", "hardTokens": 100}])
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    for reserve, needs in ((Reservation("m", 150), 151), (Reservation("e", 150, embeds=True), 150)):
        blocked = await edge.events.begin_step(job, "w1", reserve=reserve, **step(reserve.model))
        assert isinstance(blocked, Blocked)
        assert (blocked.kind, blocked.why.requested, blocked.why.frees_at) == ("spent", needs, None)
        ended = over_limit(blocked)
        assert isinstance(ended, OverLimit)
        assert (ended.due_ms, ended.delay_s) == (None, None)
        assert f"This needs {needs} tokens or more, which never fits" in ended.sentence
    fits = await edge.events.begin_step(job, "w1", reserve=Reservation("m", 60), **step("fits"))
    assert fits == Begun(bound=40)


@pytest.mark.parametrize(("before", "frees"), [(0, False), (30, True)])
async def test_a_call_cut_with_the_whole_limit_is_not_begun_again_next_day(
    edge: Stack, before: int, frees: bool
) -> None:
    """Given a call that is cut at a day's limit of 100, when it had all of it, then it waits for the limit to be
    raised; when others had some of it, it may fit tomorrow."""
    _, key = await edge.tenant(budgets=[{"period": "day", "hardTokens": 100}])
    await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    if before:
        await edge.events.begin_step(job, "w1", reserve=Reservation("m", 20), **step("a"))
        await edge.events.finish_step(job, "w1", usage=CallUsage(20, 10), result=b"{}", model="m", **step("a"))
    begun = await edge.events.begin_step(job, "w1", reserve=Reservation("m", 10), **step("b"))
    assert begun == Begun(bound=90 - before)
    blocked = await edge.events.extend(job, "w1", call="c-b", seen=90 - before, bound=90 - before)
    assert isinstance(blocked, Blocked)
    assert blocked.kind == "spent"
    assert (blocked.why.frees_at is not None) == frees
    assert blocked.why.requested == (None if frees else 101)


async def test_more_texts_of_a_step_are_reserved_too(edge: Stack) -> None:
    """Given a step that embeds 60 of 100 tokens, when its texts are asked for once more, then 30 more fit and 60 do
    not, and a lost worker is charged for both requests."""
    tenant, key = await edge.tenant(budgets=[{"period": "day", "hardTokens": 100}])
    await edge.submit(chat(), key=key)
    (job,) = (await edge.jobs.claim(worker="w1", lanes=[("interactive", 1)], count=1, lease_ms=1))[0]
    await edge.events.begin_step(job, "w1", reserve=Reservation("e", 60, embeds=True), **step("a"))
    blocked = await edge.events.extend(job, "w1", call="c-a", seen=0, bound=60, embeds=60)
    assert isinstance(blocked, Blocked)
    for _ in range(2):  # the answer was lost
        assert await edge.events.extend(job, "w1", call="c-a", seen=0, bound=60, embeds=30) == 90
    assert (await book_of(edge, tenant))["ht"] == "90"
    await asyncio.sleep(0.01)
    await edge.jobs.reap()
    assert {name: value for name, value in (await book_of(edge, tenant)).items() if name in ("tt", "ht")} == {
        "tt": "90",
        "ht": "0",
    }


async def test_a_large_call_is_not_starved_by_small_ones(edge: Stack) -> None:
    """Given a token rate of which small calls take all that flows in, when a call larger than the burst has asked, then
    small ones wait until it has had its turn, and no longer."""
    _, key = await edge.tenant(tokensPerMinute=60_000, tokensBurst=500)
    for _ in range(2):
        await edge.submit(chat(), key=key)
    jobs = await claim(edge)

    async def ask(name: str, tokens: int) -> Begun | Blocked:
        reserve = Reservation("e", tokens, embeds=True)
        found = await edge.events.begin_step(jobs[0], "w1", reserve=reserve, **step(name))
        assert isinstance(found, Begun | Blocked)
        return found

    assert isinstance(await ask("first", 400), Begun)
    blocked = await ask("large", 800)
    assert isinstance(blocked, Blocked)
    assert blocked.why.wait_s <= 0.4
    small = await ask("small", 50)
    assert isinstance(small, Blocked), "a small call took what the large one waits for"
    assert "A larger call goes first." in sentence_of(small.why)
    assert "larger" not in sentence_of(blocked.why)
    async with asyncio.timeout(3):
        while isinstance(found := await ask("large", 800), Blocked):
            assert isinstance(await ask("small", 50), Blocked)
            await asyncio.sleep(found.why.wait_s)
    again = await ask("small", 50)
    assert isinstance(again, Blocked), "what the large call took beyond the burst is paid for first"
    await asyncio.sleep(again.why.wait_s)
    assert isinstance(await ask("small", 50), Begun)


async def test_limits_of_a_revoked_key_hold_for_its_jobs(edge: Stack) -> None:
    """Given a key with a budget, and a job of it, when the key is revoked, then the job is held to the budget still."""
    tenant, _ = await edge.tenant()
    made = await edge.call(
        "POST",
        f"/api/admin/tenants/{tenant}/keys",
        {"name": "n", "limits": {"budgets": [{"period": "total", "hardTokens": 50}]}},
    )
    assert made.status == 201, made.text
    await edge.submit(chat(), key=made.json["key"])
    (job,) = await claim(edge)
    reserve = Reservation("m", 60)
    assert isinstance(await edge.events.begin_step(job, "w1", reserve=reserve, **step("a")), Blocked)
    gone = await edge.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{made.json['keyId']}")
    assert gone.status == 204
    blocked = await edge.events.begin_step(job, "w1", reserve=reserve, **step("b"))
    assert isinstance(blocked, Blocked)
    assert (blocked.why.scope, blocked.why.limit) == ("key", 50)


async def paused(edge: Stack, key: str, total: int) -> str:
    """A job that waits for a budget of `total` tokens to be raised."""
    job_id = await edge.submit(chat(), key=key)
    (job,) = await claim(edge)
    blocked = await edge.events.begin_step(job, "w1", reserve=Reservation("m", total), **step("late"))
    assert isinstance(blocked, Blocked)
    why = over_limit(blocked)
    error = '{"code":"budget_exhausted","message":"x"}'
    told = Settlement(
        job_id, job.lease, "budget", waiting=WAITING, due_ms=why.due_ms, revision=why.revision, error=error
    )
    assert await edge.jobs.settle("w1", [told]) == ["waiting"]
    return job_id


@pytest.mark.parametrize("how", ["corrected", "rebuilt"])
async def test_books_that_are_mended_wake_what_waits(edge: Stack, how: str) -> None:
    """Given a job that waits for a budget, when a lost call turns out to have used less, or the books are built anew,
    then it is looked at again."""
    tenant, key = await edge.tenant(budgets=[{"period": "total", "hardTokens": 100}])
    await edge.submit(chat(), key=key)
    (lost,) = (await edge.jobs.claim(worker="w0", lanes=[("interactive", 1)], count=1, lease_ms=1))[0]
    await edge.events.begin_step(lost, "w0", reserve=Reservation("m", 90), **step("a"))
    await asyncio.sleep(0.01)
    await edge.jobs.reap()
    await edge.jobs.cancel(tenant, lost.job_id)
    job_id = await paused(edge, key, 50)
    await edge.jobs.reap()
    assert (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json["status"] == "waiting"
    if how == "corrected":
        with suppress(LeaseLostError):
            await edge.events.finish_step(
                lost, "w0", usage=CallUsage(20, 1), result=b"{}", model="m", price=None, **step("a")
            )
    else:
        answer = await edge.call("POST", "/api/admin/books/rebuild", {"tenantId": tenant})
        assert answer.status == 200, answer.text
    await edge.jobs.reap()
    assert (await edge.call("GET", f"/api/jobs/{job_id}", key=key)).json["status"] == "queued"


async def test_output_is_counted_by_the_models_vocabulary_while_it_comes() -> None:
    """Given a model with a known vocabulary, when a chunk has many tokens, then each is counted, whatever its kind."""
    counter = TokenCounter()
    whole = await counter.text("gpt-4o", TEXT)
    progress = Progress(1, counter.quick("gpt-4o"))
    words = TEXT.split(" ")
    for first in range(0, len(words), 9):
        piece = " ".join(words[first : first + 9])
        progress.add(piece if first == 0 else f" {piece}", is_shown=True)
    assert progress.made == whole
    progress.add("")
    assert progress.made == whole + 1
    unknown = Progress(1, counter.quick("llama3"))
    for _ in range(7):
        unknown.add("a token", is_shown=True)
    assert unknown.made == 7
    mixed, before = Progress(1), 0
    for piece in ("x" * 3_000, *["ab"] * 400, "y" * 100):
        mixed.add(piece)
        assert mixed.made > before, "it never falls"
        before = mixed.made
    huge = Progress(1, counter.quick("gpt-4o"))
    huge.add("word " * 100_000)
    assert huge.made == math.ceil(500_000 / 4)
