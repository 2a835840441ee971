"""What the chaos run judges leaks by, and the leaks that it has found."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest
import redis

from scripts.havoc.history import FINAL
from scripts.havoc.inspector import Inspector, mark_in
from scripts.havoc.leftovers import Leftovers, fate, kind_of
from scripts.havoc.slopes import second_half, theil_sen
from shared.keys import KEY_KINDS, Keys
from shared.metrics import TASKS, count_tasks
from shared.settings import Settings
from shared.stores.events import CallUsage
from shared.stores.indexes import IndexesStore
from tests.conftest import DevModel, RedisServer, Stack, chat
from tests.test_collections import reindexed
from tests.test_embedding import embedded
from tests.test_limits_hold import claim, step
from tests.test_search import TIDES, added, found
from tests.test_search_pure import prose
from worker.model.discipline import MOST_STATES, Discipline
from worker.search.replica import Replicas

# -- judging ----------------------------------------------------------------------------------------------------------


def test_a_slope_is_not_moved_by_a_few_odd_samples() -> None:
    """Given a line with some of its points far off, also the last ones, then the slope is that of the line."""
    points = [(float(at), 100 + 0.5 * at + (800 if at % 20 == 3 or at > 195 else 0)) for at in range(200)]
    assert theil_sen(points) == pytest.approx(0.5, abs=0.05)
    assert theil_sen([(at, value) for at, value in points for _ in range(5)]) == pytest.approx(0.5, abs=0.05)
    assert (theil_sen([]), theil_sen([(1.0, 5.0)])) == (0.0, 0.0)
    assert second_half(points)[0][0] == 100.0


def test_every_kind_of_key_has_a_fate_and_is_known_by_its_name() -> None:
    """Given a key of each kind, then it is taken for that kind, and there is a rule for its lifetime."""
    values = {"lane": "batch", "scope": "ten_1:u:a:b", "name": "a/b:c", "owner": "ten_1", "hash": "ab12"}
    for kind in KEY_KINDS:
        if kind.type == "channel":
            continue
        form = kind.form
        for part in form.split("{")[1:]:
            member = part.split("}")[0]
            form = form.replace("{" + member + "}", values.get(member, "01ABC"), 1)
        known = kind_of(form)
        assert known is not None, form
        assert known.form == kind.form
        assert fate(kind) in ("stays", "timed", "goes")
    assert kind_of("nothing:1") is None


def test_what_is_left_is_named(own_redis: RedisServer) -> None:
    """Given keys that may stay, have a time, should be gone, or are of no kind, then the last two are named."""
    client: Any = redis.Redis.from_url(own_redis.url)
    keys = Keys("errand:")
    client.xadd(keys.ledger("ten_1"), {"a": 1})
    client.set(keys.gone("job_1"), "ten_1", ex=60)
    left = Leftovers(own_redis.url)
    assert left.wrong() == []
    client.hset(keys.journal("job_2"), "a", 1)
    client.persist(keys.gone("job_1"))
    client.set("errand:strange", 1)
    named = "\n".join(left.wrong())
    assert all(word in named for word in ("journal:job_2", "gone:job_1", "without a time to live", "strange"))
    assert len(named.splitlines()) == 3
    assert sorted(left.traces(["ten_1", "ten_9"])) == ["gone:job_1 has ten_1", "ledger:ten_1 has ten_1"]
    client.zadd("errand:retention", {"job_3": 2_000_000_000_000})
    assert not left.is_swept()
    left.hasten()
    assert client.zscore("errand:retention", "job_3") == 1
    left.close()
    client.close()


def test_a_mark_is_found_in_any_text() -> None:
    assert mark_in("You refer to ref and ref12x: a text") == "ref12x"
    assert mark_in("no ref x, ref1 y") == ""


async def test_a_look_comes_a_while_later_and_none_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given work that has ended, then it is looked at after its time, and at the end all of it at once."""
    monkeypatch.setattr("scripts.havoc.inspector.LOOK_AFTER_S", 0.2)
    inspector, looked = Inspector(), []

    async def look() -> None:
        looked.append(1)

    inspector.later(look)
    running = asyncio.create_task(inspector.run())
    await asyncio.sleep(0.1)
    assert looked == []
    async with asyncio.timeout(5):
        while not looked:
            await asyncio.sleep(0.02)
    running.cancel()
    inspector.later(look)
    await inspector.finish()
    assert looked == [1, 1]


async def test_tasks_are_counted_at_each_scrape() -> None:
    count_tasks(asyncio.get_running_loop())
    before = TASKS.collect()[0].samples[0].value
    more = [asyncio.create_task(asyncio.sleep(60)) for _ in range(3)]
    assert TASKS.collect()[0].samples[0].value == before + 3
    for task in more:
        task.cancel()
    await asyncio.wait(more)
    assert await asyncio.to_thread(lambda: TASKS.collect()[0].samples[0].value) >= before


# -- leaks that were found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [b'{"text": "4"}', None])
async def test_a_step_that_cost_nothing_ends_once(edge: Stack, result: bytes | None) -> None:
    """Given the end of a tool's step whose answer was lost, when it is written again, then the log tells it once."""
    await edge.submit(chat())
    (job,) = await claim(edge)
    await edge.events.begin_step(job, "w1", **step("tool"))
    for _ in range(2):
        await edge.events.finish_step(job, "w1", usage=CallUsage(), result=result, **step("tool"))
    told = [event["state"] for event in await edge.log(job.job_id) if event["type"] == "job.step"]
    assert told == ["started", "finished" if result else "failed"]


async def test_what_is_staged_goes_with_time_and_never_outlives_its_job(edge: Stack) -> None:
    """Given vectors that a job has bought, then they have a time to live from the start, and a job that was erased
    meanwhile keeps none."""
    tenant, _ = await edge.tenant()
    store = IndexesStore(edge.client, edge.keys)
    job_id = await edge.submit(chat())
    bought = {secrets.token_bytes(16): secrets.token_bytes(260) for _ in range(1_100)}
    await store.stage(tenant, job_id, "marks", bought)
    assert await store.staged(tenant, job_id, "marks", list(bought)) == list(bought.values())
    assert 86_000 < await edge.client.ttl(edge.keys.staged(tenant, job_id, "marks")) <= 86_400
    await edge.client.delete(edge.keys.job(job_id))
    await store.stage(tenant, job_id, "others", bought)
    assert await edge.client.exists(edge.keys.staged(tenant, job_id, "others")) == 0


@pytest.fixture
async def searching(make_stack: Any) -> Stack:
    made: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    return made


async def homes(stack: Stack) -> dict[bytes, bytes]:
    """What is known of which texts' vectors are where."""
    known: dict[bytes, bytes] = {}
    async for name in stack.client.scan_iter(f"{stack.settings.redis_prefix}chunks:*"):
        known |= await stack.client.hgetall(name)
    return known


async def test_a_dropped_version_is_no_home_of_texts_any_more(searching: Stack, model: DevModel) -> None:
    """Given a document that was indexed in small chunks and in large ones, when the first version is dropped, then
    nothing says that a text's vector is there; what both have is known to be in the other, and is not bought again."""
    stack = searching
    long = await added(stack, prose(20))
    short = await added(stack, TIDES)
    first = await homes(stack)
    await reindexed(stack, chunkCharacters=300)
    both = await homes(stack)
    assert len(both) > len(first)
    assert (await stack.call("DELETE", "/api/collections/default/versions/1")).status == 200
    now = await homes(stack)
    assert {home.split(b" ")[1] for home in now.values()} == {b"2"}
    assert {home.split(b" ")[0].decode() for home in now.values()} == {long, short}
    assert len(now) < len(both)
    await model.reset()
    await added(stack, TIDES)
    assert await embedded(model) == []
    for document in (await stack.call("GET", "/api/documents")).json["data"]:
        await stack.call("DELETE", f"/api/documents/{document['documentId']}")
    assert await homes(stack) == {}


async def test_indexes_that_nobody_searches_are_let_go(searching: Stack) -> None:
    """Given indexes that were searched once, when they have been idle for long, then the next search lets them go,
    also where memory is not short."""
    stack = searching
    for name in ("a", "b", "c"):
        await added(stack, TIDES, collection=name)
        await found(stack, "tides", collection=name)
    replicas: Replicas = stack.engines[0]._deps.replicas
    assert len(replicas) == 3
    replicas._idle_s = 0.0
    await found(stack, "tides", collection="a")
    assert len(replicas) == 1


def test_a_worker_remembers_so_many_models() -> None:
    """Given clients that name ever other models, then those that nobody asks are forgotten, and no other."""
    discipline = Discipline(Settings())
    busy = discipline.of("busy")
    busy.window.in_flight = 1
    for number in range(MOST_STATES + 50):
        discipline.of(f"model{number}")
    assert len(discipline._states) == MOST_STATES
    assert discipline.of("busy") is busy
    assert "model0" not in discipline._states


async def test_a_short_retention_is_kept_to(make_stack: Any) -> None:
    """Given a retention of a second, when a job has ended, then it is gone soon after, not at the next half minute."""
    stack: Stack = await make_stack(workers=("interactive",), retention_seconds=1.0)
    job_id = await stack.submit(chat())
    await stack.finished(job_id)
    async with asyncio.timeout(8):
        while (await stack.call("GET", f"/api/jobs/{job_id}")).status != 410:
            await asyncio.sleep(0.1)


async def test_a_tenant_is_erased_through_outages_in_one_attempt(make_stack: Any, own_redis: RedisServer) -> None:
    """Given an erasure, when its connections to Redis break again and again, then it goes on where it was: none of its
    attempts is spent on that."""
    stack: Stack = await make_stack(redis_url=own_redis.url)
    tenant, key = await stack.tenant()
    for _ in range(8):
        await asyncio.gather(*(stack.submit(chat(), key=key) for _ in range(50)))
    await stack.start_worker("batch")
    begun = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
    assert begun.status == 202
    view: dict[str, Any] = {"status": ""}
    async with asyncio.timeout(60):
        while view["status"] not in FINAL:
            await stack.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.02)
            answer = await stack.call("GET", f"/api/jobs/{begun.json['jobId']}")
            view = answer.json if answer.status == 200 else view
    assert (view["status"], view["attempt"], view["result"]["remaining"]) == ("complete", 1, 0), view
    assert view["result"]["counts"]["jobs"] == 400


async def test_a_prompt_is_waited_for_while_redis_is_away(make_stack: Any, own_redis: RedisServer) -> None:
    """Given a worker that asks for a version of a prompt, when Redis is away, then it waits for it."""
    stack: Stack = await make_stack(redis_url=own_redis.url)
    engine = await stack.start_worker("batch")
    await asyncio.to_thread(own_redis.kill)
    asking = asyncio.create_task(engine._deps.versions.get("shared", "errand/agent", 1))
    await asyncio.sleep(0.6)
    assert not asking.done()
    await asyncio.to_thread(own_redis.start)
    async with asyncio.timeout(10):
        assert (await asking).messages
