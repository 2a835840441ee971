"""Documents and search when things happen at once: nothing is lost, bought twice, left behind or wrong."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

from tests.conftest import DevModel, Stack
from tests.test_collections import collection, reindexed
from tests.test_embedding import embedded
from tests.test_search import BREAD, LEASE, TIDES, added, documents, found, keys_of, sent
from tests.test_search_pure import prose
from worker.documents.library import Library
from worker.tasks import HANDLERS
from worker.tasks.reindex import reindex


@pytest.fixture
async def stack(make_stack: Any) -> Stack:
    made: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    return made


def files_of(stack: Stack, document_id: str) -> list[str]:
    return sorted(
        str(path.relative_to(stack.settings.data_dir))
        for path in stack.settings.data_dir.rglob("*")
        if path.is_file() and document_id in str(path)
    )


async def text_of(stack: Stack, document_id: str) -> str:
    return (await stack.call("GET", f"/api/documents/{document_id}/text")).text


async def while_embedding(model: DevModel, calls: int = 1) -> None:
    async with asyncio.timeout(15):
        while len(await embedded(model)) < calls:
            await asyncio.sleep(0.01)


# -- wrong or lost content -------------------------------------------------------------------------------------------


async def test_a_put_before_the_first_content_was_read_is_not_undone_by_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ingest's extraction takes long; the PUT overtakes it."""
    extract = Library.extract

    async def slow(self: Library, content: bytes) -> Any:
        done = await extract(self, content)
        await asyncio.sleep(2 if b"tenant may end" in content else 0)
        return done

    monkeypatch.setattr(Library, "extract", slow)
    first = await stack.call("POST", "/api/documents", {"text": LEASE + "\n\n# More\n\n" + prose(30)})
    document_id = first.json["documentId"]
    put = await stack.call("PUT", f"/api/documents/{document_id}", {"text": TIDES})
    job = await stack.finished(put.json["jobId"])
    await stack.finished(first.json["jobId"])
    assert job["status"] == "complete"
    view = (await stack.call("GET", f"/api/documents/{document_id}")).json
    assert await text_of(stack, document_id) == TIDES
    assert (view["chunks"], view["characters"]) == (1, len(TIDES))
    result = await found(stack, "what causes the tides", minScore=0, topK=50)
    assert [source["text"] for source in result["sources"]] == [TIDES]


async def test_a_patch_while_a_document_is_ingested_reaches_search(stack: Stack, model: DevModel) -> None:
    await added(stack, BREAD)  # the model is measured
    await model.reset()
    await model.limits(latencySeconds=0.5)
    sent_one = await stack.call("POST", "/api/documents", {"text": TIDES, "metadata": {"lang": "en"}})
    document_id = sent_one.json["documentId"]
    await while_embedding(model)
    await stack.call("PATCH", f"/api/documents/{document_id}", {"title": "Ebb", "metadata": {"lang": "de"}})
    await stack.finished(sent_one.json["jobId"])
    await model.limits()
    assert (await stack.call("GET", f"/api/documents/{document_id}")).json["metadata"] == {"lang": "de"}
    result = await found(stack, "what causes the tides", filter={"lang": "de"})
    assert documents(result) == [document_id]
    assert result["sources"][0]["title"] == "Ebb"


async def test_a_patch_while_a_version_is_built_reaches_that_version(stack: Stack, model: DevModel) -> None:
    tides = await added(stack, TIDES, metadata={"lang": "en"})
    await model.reset()
    await model.limits(latencySeconds=0.7)
    begun = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 64})
    await while_embedding(model, 49)  # the measure of the model, then the document
    await stack.call("PATCH", f"/api/documents/{tides}", {"title": "Ebb", "metadata": {"lang": "de"}})
    await stack.finished(begun.json["jobId"])
    await model.limits()
    assert (await collection(stack))["version"] == 2
    result = await found(stack, "what causes the tides", filter={"lang": "de"})
    assert documents(result) == [tides]
    assert result["sources"][0]["title"] == "Ebb"


async def test_vectors_bought_for_one_version_do_not_go_into_another(stack: Stack, model: DevModel) -> None:
    """The version is switched while a document is embedded: another prefix, the same dimensions."""
    await added(stack, BREAD)
    await reindexed(stack, documentPrefix="zebra giraffe elephant lion tiger ")
    await model.reset()
    await model.limits(latencySeconds=0.7)
    sent_one = await stack.call("POST", "/api/documents", {"text": TIDES})
    await while_embedding(model)
    rolled = await stack.call("POST", "/api/collections/default/rollback")
    assert rolled.json["version"] == 1
    job = await stack.finished(sent_one.json["jobId"])
    await model.limits()
    assert job["status"] == "complete", job
    query = {"q": "what causes the tides", "mode": "vector", "minScore": 0, "topK": 1, "answer": False}
    (there,) = (await stack.call("POST", "/api/search", query)).json["sources"]
    _, key = await stack.tenant()  # who shares nothing with the other
    fresh = await stack.call("POST", "/api/documents", {"text": TIDES}, key=key)
    await stack.finished(fresh.json["jobId"], key=key)
    (right,) = (await stack.call("POST", "/api/search", query, key=key)).json["sources"]
    assert there["scores"]["vector"] == pytest.approx(right["scores"]["vector"], abs=0.005)


async def test_a_document_is_indexed_though_the_dimensions_changed_meanwhile(stack: Stack, model: DevModel) -> None:
    await added(stack, BREAD)
    await reindexed(stack, dimensions=64)
    await model.reset()
    await model.limits(latencySeconds=0.7)
    sent_one = await stack.call("POST", "/api/documents", {"text": TIDES})
    await while_embedding(model)
    assert (await stack.call("POST", "/api/collections/default/rollback")).status == 200
    job = await stack.finished(sent_one.json["jobId"])
    assert job["status"] == "complete", job


async def test_a_text_that_documents_share_has_its_vector_in_each(make_stack: Any, model: DevModel) -> None:
    """One build job, two documents, one of them soon done: its bought vectors are the other's too."""
    stack: Stack = await make_stack(
        workers=("both",), embedding_model="errand-dev-embedding", embedding_items=4, model_max_in_flight=2
    )
    shared = prose(1, 77)
    await added(stack, shared + "\n\n# Short\n\n" + prose(2, 5))
    long, job = await sent(stack, shared + "\n\n# Long\n\n" + prose(150, 6))
    chunks = job["result"]["chunks"]
    await model.reset()
    await model.limits(latencySeconds=0.1)
    await reindexed(stack, dimensions=64, chunkCharacters=200)
    await model.limits()
    answer = await stack.call("GET", f"/api/documents/{long}")
    assert answer.json["chunks"] >= chunks
    (key,) = [name for name in await keys_of(stack, long) if name.startswith("vectors:") and ":2:" in name]
    content = await stack.client.get(stack.settings.redis_prefix + key)
    count = answer.json["chunks"]
    assert len(content) == count * 68
    zeros = [row for row in range(count) if not any(content[row * 64 : row * 64 + 64])]
    assert zeros == []


async def test_a_worker_lost_after_the_switch_does_not_build_again(make_stack: Any, model: DevModel) -> None:
    hung = asyncio.Event()

    async def slow(spec: Any, context: Any) -> Any:
        done = await reindex(spec, context)
        if not hung.is_set():
            hung.set()
            await asyncio.sleep(60)  # lost between the switch and the end of the job
        return done

    stack: Stack = await make_stack(embedding_model="errand-dev-embedding", lease_seconds=1.0)
    handlers = {**HANDLERS, "reindex": slow}
    first = await stack.start_worker("both", handlers=handlers)
    await added(stack, TIDES)
    answer = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 64})
    await asyncio.wait_for(hung.wait(), 20)
    stack.kill_worker(first)
    await stack.start_worker("both", handlers=handlers)
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job
    view = await collection(stack)
    assert [one["version"] for one in view["versions"]] == [2, 1], view
    assert job["result"]["version"] == 2
    # A rollback goes to what was there before.
    rolled = await stack.call("POST", "/api/collections/default/rollback")
    assert (rolled.status, rolled.json["versions"][-1]["dimensions"]) == (200, 256)


async def test_a_rollback_that_is_sent_again_does_not_go_forth(stack: Stack) -> None:
    await added(stack, TIDES)
    await reindexed(stack, dimensions=64)
    headers = {"Idempotency-Key": "back-once"}
    first = await stack.call("POST", "/api/collections/default/rollback", headers=headers)
    assert (first.status, first.json["version"]) == (200, 1)
    again = await stack.call("POST", "/api/collections/default/rollback", headers=headers)
    assert (again.status, again.json["version"]) == (200, 1)
    assert (await collection(stack))["version"] == 1


# -- jobs that never end well ----------------------------------------------------------------------------------------


async def test_a_refused_chunk_does_not_keep_a_version_from_being_built(stack: Stack, model: DevModel) -> None:
    text = "\n\n".join([prose(3, seed) for seed in range(6)] + ["The forbidden word: xyzzy. " + prose(2, 9)])
    await model.faults({"kind": "status", "status": 400, "path": "embeddings", "match": "xyzzy", "times": 999})
    await added(stack, text)
    await added(stack, TIDES)
    answer = await stack.call("POST", "/api/collections/default/reindex", {})
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job["error"]


async def test_a_refused_chunk_does_not_keep_new_content_out(stack: Stack, model: DevModel) -> None:
    parts = [prose(3, seed) for seed in range(6)]
    text = "\n\n".join([*parts, "The forbidden word: xyzzy. " + prose(2, 9)])
    await model.faults({"kind": "status", "status": 400, "path": "embeddings", "match": "xyzzy", "times": 999})
    document_id = await added(stack, text)
    answer = await stack.call("PUT", f"/api/documents/{document_id}", {"text": text, "title": "Same text"})
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job["error"]


async def test_an_abandoned_version_can_be_removed(stack: Stack, model: DevModel) -> None:
    await added(stack, TIDES)
    await model.reset()
    await model.limits(latencySeconds=2)
    begun = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 64})
    await while_embedding(model, 49)
    cancelled = await stack.call("DELETE", f"/api/jobs/{begun.json['jobId']}?wait=10")
    assert cancelled.json["status"] == "cancelled"
    await model.limits()
    answer = await stack.call("DELETE", "/api/collections/default/versions/2")
    assert (answer.status, [one["version"] for one in answer.json.get("versions", [])]) == (200, [1]), answer.text


async def test_a_cancelled_build_leaves_nothing_after_the_next(stack: Stack, model: DevModel) -> None:
    for seed in range(3):
        await added(stack, prose(4, seed))
    await model.reset()
    await model.limits(latencySeconds=2)
    begun = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 64})
    await while_embedding(model, 50)
    await stack.call("DELETE", f"/api/jobs/{begun.json['jobId']}?wait=10")
    await model.limits()
    await reindexed(stack, dimensions=32)
    view = await collection(stack)
    assert [one["version"] for one in view["versions"]] == [3, 1], view


async def test_an_engine_that_is_not_there_is_refused(stack: Stack) -> None:
    document_id = await added(stack, TIDES)
    await stack.call("DELETE", f"/api/documents/{document_id}")
    answer = await stack.call("POST", "/api/collections/default/reindex", {"engine": "redis-vset"})
    if answer.status == 202:
        await stack.finished(answer.json["jobId"])
    assert documents(await found(stack, "x", minScore=0)) == []
    await added(stack, TIDES)


# -- bought twice ----------------------------------------------------------------------------------------------------


async def test_what_a_copy_still_has_is_not_bought_again_after_a_delete(stack: Stack, model: DevModel) -> None:
    text = prose(20)
    await added(stack, text)
    copy = await added(stack, text, collection="copy")
    await stack.call("DELETE", f"/api/documents/{copy}")
    await model.reset()
    _, job = await sent(stack, text, collection="third")
    assert (job["result"]["embedded"], await embedded(model)) == (0, [])


async def test_what_a_copy_still_has_is_not_bought_again_after_a_change(stack: Stack, model: DevModel) -> None:
    text = prose(20)
    await added(stack, text)
    copy = await added(stack, text, collection="copy")
    put = await stack.call("PUT", f"/api/documents/{copy}", {"text": TIDES})
    await stack.finished(put.json["jobId"])
    await model.reset()
    _, job = await sent(stack, text, collection="third")
    assert (job["result"]["embedded"], await embedded(model)) == (0, [])


# -- left behind -----------------------------------------------------------------------------------------------------


async def test_a_delete_takes_new_content_that_was_under_way(stack: Stack, model: DevModel) -> None:
    document_id = await added(stack, TIDES)
    await model.reset()
    await model.limits(latencySeconds=0.7)
    put = await stack.call("PUT", f"/api/documents/{document_id}", {"text": BREAD})
    await while_embedding(model)
    await stack.call("DELETE", f"/api/documents/{document_id}")
    await stack.finished(put.json["jobId"])
    await asyncio.sleep(0.3)
    assert files_of(stack, document_id) == []


async def test_a_delete_takes_new_content_that_waited(edge: Stack) -> None:
    posted = await edge.call("POST", "/api/documents", {"text": TIDES})
    document_id = posted.json["documentId"]
    put = await edge.call("PUT", f"/api/documents/{document_id}", {"text": BREAD})
    await edge.call("DELETE", f"/api/documents/{document_id}")
    await edge.start_worker("both")
    await edge.finished(put.json["jobId"])
    await asyncio.sleep(0.3)
    assert files_of(edge, document_id) == []


async def test_two_puts_at_once_leave_one_content(stack: Stack) -> None:
    document_id = await added(stack, TIDES)
    answers = await asyncio.gather(
        *(stack.call("PUT", f"/api/documents/{document_id}", {"text": f"{LEASE} Number {n}."}) for n in range(6))
    )
    for answer in answers:
        await stack.finished(answer.json["jobId"])
    result = await found(stack, "how much notice ends the lease", minScore=0, topK=50)
    (source,) = result["sources"]
    assert source["text"] == await text_of(stack, document_id)
    view = (await stack.call("GET", f"/api/documents/{document_id}")).json
    assert view["revision"] == 7
    packs = [name for name in await keys_of(stack, document_id) if name.startswith(("pack:", "vectors:"))]
    kept = [name for name in packs if await stack.client.ttl(stack.settings.redis_prefix + name) < 0]
    assert len(kept) == 2, kept
    async with asyncio.timeout(10):
        while len(files_of(stack, document_id)) > 2:
            await asyncio.sleep(0.2)


async def test_a_cancelled_put_leaves_no_file(stack: Stack, model: DevModel) -> None:
    document_id = await added(stack, TIDES)
    await model.reset()
    await model.limits(latencySeconds=3)
    put = await stack.call("PUT", f"/api/documents/{document_id}", {"text": BREAD})
    await while_embedding(model)
    await stack.call("DELETE", f"/api/jobs/{put.json['jobId']}?wait=10")
    await model.limits()
    assert documents(await found(stack, "what causes the tides")) == [document_id]
    await stack.call("DELETE", f"/api/documents/{document_id}")
    await asyncio.sleep(0.3)
    assert files_of(stack, document_id) == []


async def test_put_and_delete_at_once_leave_no_ghost(stack: Stack) -> None:
    for _ in range(25):
        document_id = await added(stack, TIDES)
        put, delete = await asyncio.gather(
            stack.call("PUT", f"/api/documents/{document_id}", {"text": BREAD}),
            stack.call("DELETE", f"/api/documents/{document_id}"),
        )
        assert delete.status == 200
        assert put.status in (202, 404)
        assert (await stack.call("GET", f"/api/documents/{document_id}")).status == 404
        assert not await stack.client.exists(stack.keys.document(document_id))


async def test_texts_of_searches_that_are_not_logged_are_soon_gone(stack: Stack) -> None:
    document_id = await added(stack, TIDES)
    await found(stack, "what causes the tides", log=False)
    await stack.call("DELETE", f"/api/documents/{document_id}")
    # The job of such a search is the one place: it is kept for a minute, and no longer.
    (left,) = [name for name in await keys_of(stack, "gravity of the moon raises") if name.startswith("job:")]
    assert int(await stack.client.hget(stack.settings.redis_prefix + left, "retention_ms")) == 60_000  # type: ignore[misc]


async def test_a_deleted_tenant_leaves_no_key(stack: Stack, model: DevModel) -> None:
    tenant, key = await stack.tenant()
    for name in ("a:b", "ü/ö", "x y"):
        answer = await stack.call(
            "POST", "/api/documents", {"text": TIDES + secrets.token_hex(3), "collection": name}, key=key
        )
        await stack.finished(answer.json["jobId"], key=key)
    await stack.call("POST", "/api/search", {"q": "what causes tides", "user": "u", "answer": False}, key=key)
    begun = await stack.call("POST", "/api/collections/a:b/reindex", {"dimensions": 64}, key=key)
    await stack.finished(begun.json["jobId"], key=key)
    answer = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
    await stack.finished(answer.json["jobId"])
    left = await keys_of(stack, tenant)
    assert {name.split(":")[0] for name in left} <= {"audit", "job", "log", "journal"}, left


async def test_the_log_tells_how_a_search_ended_not_its_first_attempt(stack: Stack, model: DevModel) -> None:
    await added(stack, TIDES)
    await model.faults({"kind": "status", "status": 500, "path": "chat", "times": 1})
    answer = await stack.call("POST", "/api/search", {"q": "what causes the tides"})
    assert answer.status == 200, answer.text
    (logged,) = (await stack.call("GET", "/api/search/log")).json["data"]
    assert "error" not in logged
    assert logged["answer"]["text"] == answer.json["answer"]["text"]
