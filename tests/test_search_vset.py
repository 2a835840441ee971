"""Search over vector sets of Redis 8: the same answers, moved to by itself, and nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import redis8
from tests.conftest import DevModel, Stack
from tests.test_collections import collection, reindexed
from tests.test_embedding import embedded
from tests.test_search import BREAD, LEASE, TIDES, added, documents, found, keys_of, sent
from tests.test_search_pure import prose


@pytest.fixture
async def stack(make_stack: Any, short_dir: Path) -> AsyncIterator[Stack]:
    command = redis8.find()
    if command is None:
        pytest.skip(redis8.MISSING)
    server = redis8.Redis8Server(short_dir / "r8s", command)
    server.start()
    made: Stack = await make_stack(
        workers=("both",), redis_url=server.url, embedding_model="errand-dev-embedding", search_vset_chunks=40
    )
    yield made
    await made.stop()
    server.stop()


async def elements(stack: Stack, version: int) -> int:
    name = next(iter(await stack.client.keys("*tenant:ten_*"))).decode().rpartition(":")[2]
    return int(await stack.client.execute_command("VCARD", stack.keys.vector_set(name, version, "default")))


async def test_a_vector_set_finds_what_exact_search_finds(stack: Stack, model: DevModel) -> None:
    tides, bread, lease = await added(stack, TIDES), await added(stack, BREAD), await added(stack, LEASE)
    exact = {mode: await found(stack, "what causes the tides", mode=mode, minScore=0) for mode in ("hybrid", "vector")}
    await model.reset()
    await reindexed(stack, engine="redis-vset")
    assert await embedded(model) == []  # vectors are copied
    assert (await collection(stack))["versions"][0]["engine"] == "redis-vset"
    assert await elements(stack, 2) == 3
    for mode, before in exact.items():
        now = await found(stack, "what causes the tides", mode=mode, minScore=0)
        assert documents(now) == documents(before)
        for one, other in zip(now["sources"], before["sources"], strict=True):
            assert abs(one["score"] - other["score"]) < 0.03
    # What comes, changes and goes is followed.
    late = await added(stack, "Zeppelins are filled with helium, which is lighter than air.", metadata={"a": "b"})
    assert documents(await found(stack, "what fills zeppelins, helium or air"))[:1] == [late]
    assert documents(await found(stack, "helium", minScore=0, filter={"a": "b"}, mode="vector")) == [late]
    replaced = await stack.call("PUT", f"/api/documents/{late}", {"text": "Balloons are filled with hot air."})
    await stack.finished(replaced.json["jobId"])
    assert documents(await found(stack, "what fills balloons, hot air"))[:1] == [late]
    assert await elements(stack, 2) == 4
    assert (await stack.call("DELETE", f"/api/documents/{tides}")).json["chunks"] == 1
    assert await elements(stack, 2) == 3
    assert tides not in documents(await found(stack, "what causes the tides", minScore=0))
    assert {bread, lease} <= set(documents(await found(stack, "bread lease", minScore=0)))
    back = await stack.call("POST", "/api/collections/default/rollback")
    job = await stack.finished(back.json["jobId"])
    assert job["status"] == "complete", job
    assert documents(await found(stack, "what fills balloons, hot air"))[:1] == [late]
    await stack.call("DELETE", "/api/collections/default/versions/2")
    assert [name for name in await keys_of(stack, "") if name.startswith("vset")] == []


async def test_a_collection_moves_when_it_has_grown(stack: Stack, model: DevModel) -> None:
    _, job = await sent(stack, prose(40))
    assert (await collection(stack))["versions"][0]["engine"] == "redis-exact"
    assert job["result"]["chunks"] < 40
    _, job = await sent(stack, prose(120, 5))
    (told,) = [event for event in await stack.log(job["jobId"]) if event["type"] == "job.warning"]
    assert told["code"] == "collection_moves"
    moving = told["message"].split()[4]
    done = await stack.finished(moving)
    assert (done["status"], done["result"]["embedded"]) == ("complete", 0), done
    view = await collection(stack)
    assert (view["version"], view["versions"][0]["engine"]) == (2, "redis-vset")
    result = await found(stack, prose(120, 5)[:150], mode="vector", topK=5, minScore=0)
    assert len(result["sources"]) == 5
    _, job = await sent(stack, prose(9, 7))
    assert [event for event in await stack.log(job["jobId"]) if event["type"] == "job.warning"] == []
