"""Versions of a collection's index: built beside the one that answers, switched at once, rolled back in one call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import DevModel, Stack
from tests.test_embedding import embedded
from tests.test_search import BREAD, LEASE, TIDES, added, documents, found, keys_of
from tests.test_search_pure import prose


@pytest.fixture
async def stack(make_stack: Any) -> Stack:
    made: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    return made


async def collection(stack: Stack, name: str = "default") -> Any:
    answer = await stack.call("GET", f"/api/collections/{name}")
    assert answer.status == 200, answer.text
    return answer.json


async def reindexed(stack: Stack, **wanted: Any) -> Any:
    answer = await stack.call("POST", "/api/collections/default/reindex", wanted)
    assert (answer.status, answer.json["type"]) == (202, "reindex"), answer.text
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job
    return job


async def test_a_change_of_the_model_is_a_new_version(stack: Stack, model: DevModel) -> None:
    tides = await added(stack, TIDES)
    await added(stack, prose(12))
    before = await collection(stack)
    assert (before["version"], [one["state"] for one in before["versions"]]) == (1, ["current"])
    assert (before["versions"][0]["model"], before["versions"][0]["dimensions"]) == ("errand-dev-embedding", 256)
    job = await reindexed(stack, dimensions=64)
    result = job["result"]
    assert (result["version"], result["previous"], result["documents"], result["failed"]) == (2, 1, 2, 0)
    assert result["embedded"] == result["chunks"] == before["chunks"]
    after = await collection(stack)
    assert after["version"] == 2
    assert {one["version"]: (one["state"], one["dimensions"]) for one in after["versions"]} == {
        2: ("current", 64), 1: ("previous", 256),
    }  # fmt: skip
    found_now = await found(stack, "what causes the tides")
    assert documents(found_now)[0] == tides
    old = await found(stack, "what causes the tides", collection="default", version=1)
    assert documents(old)[0] == tides
    assert old["sources"][0]["scores"]["vector"] != found_now["sources"][0]["scores"]["vector"]
    missing = await stack.call("POST", "/api/search", {"q": "x", "collection": "default", "version": 9})
    assert (missing.status, "no index version 9" in missing.json["detail"]) == (422, True), missing.text
    await model.reset()
    again = await reindexed(stack, engine="redis-exact")
    assert (again["result"]["embedded"], again["result"]["version"]) == (0, 3)
    assert await embedded(model) == []
    # What was the version before the last is gone, with all it took.
    assert [one["version"] for one in (await collection(stack))["versions"]] == [3, 2]
    assert not [
        name
        for name in await keys_of(stack, tides)
        if name.startswith(("pack:", "vectors:")) and name.split(":")[3] == "1"
    ]


async def test_smaller_chunks(stack: Stack) -> None:
    document_id = await added(stack, prose(20))
    before = await collection(stack)
    job = await reindexed(stack, chunkCharacters=300)
    assert job["result"]["chunks"] > 2 * before["chunks"]
    document = (await stack.call("GET", f"/api/documents/{document_id}")).json
    assert document["chunks"] == job["result"]["chunks"]


async def test_searches_are_answered_while_a_version_is_built(stack: Stack, model: DevModel) -> None:
    tides = await added(stack, TIDES)
    for seed in range(20):
        await added(stack, prose(4, seed))
    await model.limits(latencySeconds=0.2)
    begun = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 32})
    states = set()
    late = ""
    while True:
        states.add(tuple(one["state"] for one in (await collection(stack))["versions"]))
        assert documents(await found(stack, "what causes the tides", mode="keyword"))[:1] == [tides]
        if not late and ("building", "current") in states:
            late = await added(stack, LEASE, title="Came while it was built")
            second = await stack.call("POST", "/api/collections/default/reindex", {})
        if (await stack.call("GET", f"/api/jobs/{begun.json['jobId']}")).json["status"] == "complete":
            break
        await asyncio.sleep(0.02)
    await model.limits()
    assert ("building", "current") in states
    assert late
    refused = await stack.finished(second.json["jobId"])
    assert refused["status"] == "failed"
    assert "builds a version of this collection already" in refused["error"]["message"]
    assert (await collection(stack))["version"] == 2
    assert documents(await found(stack, "how much notice ends the lease"))[0] == late
    assert (await collection(stack))["documents"] == 22


async def test_a_rollback_is_one_call(stack: Stack) -> None:
    refused = await stack.call("POST", "/api/collections/default/rollback")
    assert refused.status == 404
    tides = await added(stack, TIDES)
    refused = await stack.call("POST", "/api/collections/default/rollback")
    assert (refused.status, refused.json["code"]) == (409, "conflict")
    await reindexed(stack, dimensions=64)
    answer = await stack.call("POST", "/api/collections/default/rollback")
    assert (answer.status, answer.json["version"]) == (200, 1)
    assert documents(await found(stack, "what causes the tides")) == [tides]
    answer = await stack.call("POST", "/api/collections/default/rollback")
    assert (answer.status, answer.json["version"]) == (200, 2)
    # What has come since is put into the version before the switch.
    bread = await added(stack, BREAD)
    answer = await stack.call("POST", "/api/collections/default/rollback")
    assert answer.status == 202, answer.text
    job = await stack.finished(answer.json["jobId"])
    assert (job["status"], job["result"]["version"], job["result"]["documents"]) == ("complete", 1, 1)
    assert (await collection(stack))["version"] == 1
    assert documents(await found(stack, "how long is bread baked, until the crust is dark")) == [bread]


async def test_a_version_that_nobody_asks_can_be_dropped(stack: Stack) -> None:
    await added(stack, TIDES)
    await reindexed(stack, dimensions=64)
    path = "/api/collections/default/versions"
    assert (await stack.call("DELETE", f"{path}/2")).status == 409
    assert [(await stack.call("DELETE", f"{path}/{name}")).status for name in ("7", "x", "01x")] == [404, 404, 404]
    answer = await stack.call("DELETE", f"{path}/1")
    assert (answer.status, [one["version"] for one in answer.json["versions"]]) == (200, [2])
    assert not [
        name
        for name in await keys_of(stack, "")
        if name.startswith(("pack:", "vectors:")) and name.split(":")[3] == "1"
    ]
    assert (await stack.call("POST", "/api/collections/default/rollback")).status == 409


async def test_a_build_goes_on_where_its_worker_was_lost(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(embedding_model="errand-dev-embedding", lease_seconds=1.0, model_max_in_flight=2)
    first = await stack.start_worker("both")
    for seed in range(30):
        await added(stack, prose(3, seed))
    await model.reset()
    await model.limits(latencySeconds=0.1)
    answer = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 64})
    while len(await embedded(model)) < 60:
        await asyncio.sleep(0.02)
    stack.kill_worker(first)
    await model.limits()
    await stack.start_worker("both")
    job = await stack.finished(answer.json["jobId"])
    assert (job["status"], job["result"]["version"]) == ("complete", 2), job
    bought = await embedded(model)
    assert len(bought) - len(set(bought)) <= 20
    view = await collection(stack)
    assert (view["documents"], len(view["versions"])) == (30, 2)
    assert await found(stack, "tide1", mode="keyword", minScore=0)


async def test_documents_of_an_earlier_release_are_taken_in(stack: Stack) -> None:
    """They were stored when there was no index: a build finds them."""
    answer = await stack.call("POST", "/api/documents", {"text": TIDES, "index": False})
    await stack.finished(answer.json["jobId"])
    key = stack.keys.document(answer.json["documentId"])
    await stack.client.hdel(key, "index", "revision", "next")
    await added(stack, BREAD)
    assert documents(await found(stack, "what causes the tides")) == []
    await reindexed(stack)
    assert documents(await found(stack, "what causes the tides")) == [answer.json["documentId"]]
    assert (await stack.call("DELETE", f"/api/documents/{answer.json['documentId']}")).json["chunks"] == 1


async def test_an_engine_that_the_server_has_not_is_told(stack: Stack) -> None:
    await added(stack, TIDES)
    answer = await stack.call("POST", "/api/collections/default/reindex", {"engine": "redis-vset"})
    job = await stack.finished(answer.json["jobId"])
    if (await stack.client.info("server"))["redis_version"] >= "8":
        assert job["status"] == "complete"
        return
    assert (job["status"], "no vector sets" in job["error"]["message"]) == ("failed", True), job
    assert documents(await found(stack, "what causes the tides"))
    refused = await stack.call("POST", "/api/collections/default/reindex", {"engine": "faiss"})
    assert refused.status == 422
