"""Search: documents into collections, found by meaning and words, and nothing embedded twice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from shared.errors import LeaseLostError
from shared.stores.indexes import IndexesStore
from shared.stores.jobs import Claimed
from shared.stores.tenants import DEFAULT_TENANT
from tests.conftest import ADMIN_KEY, DevModel, RedisServer, Stack
from tests.test_embedding import embedded
from tests.test_search_pure import prose

TIDES = "The gravity of the moon raises the water of the oceans twice a day. This is what causes the tides."
BREAD = "Bake the loaf for 35 minutes at 230 degrees, until the crust is dark and the bottom sounds hollow."
LEASE = "The tenant may end the lease with three months' notice. It has to be given in writing to the landlord."


async def sent(stack: Stack, text: str, **fields: Any) -> tuple[str, Any]:
    """A document and its job, which is complete."""
    answer = await stack.call("POST", "/api/documents", {"text": text, **fields})
    assert answer.status == 202, answer.text
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job
    return str(answer.json["documentId"]), job


async def added(stack: Stack, text: str, **fields: Any) -> str:
    """A document that is indexed."""
    return (await sent(stack, text, **fields))[0]


async def found(stack: Stack, q: str, **wanted: Any) -> Any:
    """A search's answer."""
    answer = await stack.call("POST", "/api/search", {"q": q, "answer": False, **wanted})
    assert answer.status == 200, answer.text
    return answer.json


def documents(result: Any) -> list[str]:
    return [source["documentId"] for source in result["sources"]]


@pytest.fixture
async def stack(make_stack: Any) -> Stack:
    made: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    return made


async def keys_of(stack: Stack, *marks: str) -> list[str]:
    """The keys of this stack that have one of these in their name or their value."""
    names = [name async for name in stack.client.scan_iter(f"{stack.settings.redis_prefix}*")]
    held = []
    for name in names:
        kind = (await stack.client.type(name)).decode()
        match kind:
            case "string":
                value: Any = await stack.client.get(name)
            case "hash":
                value = await stack.client.hgetall(name)
            case "zset":
                value = await stack.client.zrange(name, 0, -1)
            case "set":
                value = await stack.client.smembers(name)
            case "list":
                value = await stack.client.lrange(name, 0, -1)
            case _:
                value = await stack.client.xrange(name)
        if any(mark.encode() in name + repr(value).encode() for mark in marks):
            held.append(name.decode().removeprefix(stack.settings.redis_prefix))
    return held


# -- finding ---------------------------------------------------------------------------------------------------------


async def test_a_document_is_found_when_its_job_is_complete(stack: Stack) -> None:
    tides = await added(stack, TIDES, title="Tides", metadata={"lang": "en"})
    await added(stack, BREAD, title="Bread")
    result = await found(stack, "What causes the tides?")
    assert documents(result) == [tides], result
    source = result["sources"][0]
    assert (source["rank"], source["text"], source["title"]) == (1, TIDES, "Tides")
    assert (source["start"], source["end"]) == (0, len(TIDES))
    assert (source["metadata"], source["collection"]) == ({"lang": "en"}, "default")
    assert 0.5 <= source["score"] <= 1
    assert -1 <= source["scores"]["vector"] <= 1
    assert 0 <= source["scores"]["keyword"] <= 1
    assert result["answer"] is None
    assert (result["query"], result["mode"], result["minScore"]) == ("What causes the tides?", "hybrid", 0.5)
    assert result["searchId"].startswith("srch_")
    assert result["usage"]["embeddingTokens"] > 0
    assert result["tookMs"] > 0
    document = (await stack.call("GET", f"/api/documents/{tides}")).json
    assert (document["chunks"], document["status"], document["revision"]) == (1, "ready", 1)


async def test_offsets_are_those_of_the_documents_text(stack: Stack) -> None:
    text = f"\n\n  {prose(8)}\r\n\r\n{TIDES} Ærø 🌊\n\n{prose(8, 2)}"
    document_id = await added(stack, text)
    result = await found(stack, "what causes tides, the moon?", topK=50, minScore=0)
    whole = (await stack.call("GET", f"/api/documents/{document_id}/text")).text
    assert len(result["sources"]) > 5
    for source in result["sources"]:
        assert whole[source["start"] : source["end"]] == source["text"]
    assert TIDES in result["sources"][0]["text"]
    scores = [source["score"] for source in result["sources"]]
    assert scores == sorted(scores, reverse=True)
    assert [source["rank"] for source in result["sources"]] == list(range(1, len(scores) + 1))
    assert len({source["chunkId"] for source in result["sources"]}) == len(scores)


async def test_the_modes_look_at_what_they_say(stack: Stack, model: DevModel) -> None:
    tides, lease = await added(stack, TIDES), await added(stack, LEASE)
    await model.reset()
    words = await found(stack, "months notice", mode="keyword", minScore=0)
    assert documents(words) == [lease]
    assert words["sources"][0]["scores"]["vector"] is None
    assert words["usage"]["totalTokens"] == 0
    assert await embedded(model) == []
    meaning = await found(stack, "ebb and flow of the sea", mode="vector", minScore=0)
    assert documents(meaning) == [tides, lease]
    assert meaning["sources"][0]["scores"]["keyword"] is None
    both = await found(stack, "sea notice", minScore=0)
    assert set(documents(both)) == {tides, lease}


async def test_what_is_below_min_score_is_left_out_and_no_model_is_asked(stack: Stack, model: DevModel) -> None:
    await added(stack, TIDES)
    await model.reset()
    answer = await stack.call("POST", "/api/search", {"q": "quarterly dividend of the railway company"})
    assert answer.status == 200
    assert (answer.json["sources"], answer.json["answer"]) == ([], None)
    paths = [call["path"] for call in (await model.stats(calls=True))["list"]]
    assert paths == ["embeddings"]
    everything = await found(stack, "quarterly dividend of the railway company", minScore=0)
    assert len(everything["sources"]) == 1
    assert everything["sources"][0]["score"] < 0.5
    exact = everything["sources"][0]["score"]
    assert len((await found(stack, "quarterly dividend of the railway company", minScore=exact))["sources"]) == 1


async def test_an_empty_index_costs_nothing(stack: Stack, model: DevModel) -> None:
    result = await found(stack, "anything")
    assert result["sources"] == []
    assert (await model.stats())["calls"] == 0
    named = await found(stack, "anything", collection="nowhere")
    assert "no collection 'nowhere'" in named["warnings"][0]


async def test_filters_and_collections(stack: Stack) -> None:
    english = await added(stack, TIDES, collection="sea", metadata={"lang": "en", "year": "2021"})
    other = await added(stack, TIDES + " Ja.", collection="sea", metadata={"lang": "de", "year": "2019"})
    third = await added(stack, TIDES + " Yes.", collection="other")
    query = "what causes the tides"
    assert set(documents(await found(stack, query))) == {english, other, third}
    assert set(documents(await found(stack, query, collection="sea"))) == {english, other}
    assert set(documents(await found(stack, query, collection=["sea", "other"]))) == {english, other, third}
    assert documents(await found(stack, query, filter={"lang": "en"})) == [english]
    assert documents(await found(stack, query, filter={"year": {"lt": 2020}})) == [other]
    assert set(documents(await found(stack, query, filter={"lang": {"ne": "de"}}))) == {english, third}
    address = "/api/search?q=what%20causes%20the%20tides&answer=false&collection=sea,other&filter.lang=de&topK=5"
    by_address = await stack.call("GET", address)
    assert documents(by_address.json) == [other], by_address.text
    as_json = await stack.call("GET", '/api/search?q=tides%20moon&answer=false&filter={"lang":["de","en"]}')
    assert set(documents(as_json.json)) == {english, other}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$"),
        ({"q": "  "}, "$"),
        ({"q": "x", "topK": 51}, "$.topK"),
        ({"q": "x", "minScore": 1.5}, "$.minScore"),
        ({"q": "x", "mode": "fuzzy"}, "$.mode"),
        ({"q": "x", "filter": {"a": {"like": "b"}}}, "$"),
        ({"q": "x", "version": 1}, "$"),
        ({"q": "x", "query": "y"}, "$"),
        ({"q": "x", "collection": []}, "$.collection"),
    ],
)
async def test_a_bad_search_is_refused_and_told(edge: Stack, body: dict[str, Any], path: str) -> None:
    answer = await edge.call("POST", "/api/search", body)
    assert answer.status == 422, answer.text
    assert answer.json["errors"][0]["path"].startswith(path), answer.json


async def test_a_bad_address_is_refused_and_told(edge: Stack) -> None:
    for query, words in (("", "?q"), ("q=x&topK=0", "?topK"), ("q=x&answer=yes", "true or false"),
                         ("q=x&filter=[1]", "JSON object"), ("q=x&nonsense=1", "unknown query parameter")):  # fmt: skip
        answer = await edge.call("GET", f"/api/search?{query}")
        assert (answer.status, words in answer.json["detail"]) == (422, True), answer.text


async def test_another_tenant_finds_nothing(stack: Stack) -> None:
    document_id = await added(stack, TIDES)
    _, key = await stack.tenant()
    answer = await stack.call("POST", "/api/search", {"q": "what causes the tides", "minScore": 0}, key=key)
    assert answer.json["sources"] == []
    for method, path in (("GET", "/api/collections/default"), ("PUT", f"/api/documents/{document_id}"),
                         ("PATCH", f"/api/documents/{document_id}"), ("POST", "/api/collections/default/reindex"),
                         ("POST", "/api/collections/default/rollback")):  # fmt: skip
        assert (await stack.call(method, path, {}, key=key)).status in (404, 422), path
    assert (await stack.call("GET", "/api/collections", key=key)).json["data"] == []


async def test_a_search_needs_a_worker(edge: Stack) -> None:
    # Ten seconds: the contract's bound.
    answer = await edge.call("POST", "/api/search", {"q": "x", "answer": False})
    assert answer.status == 503
    assert "Retry-After" in answer.headers


# -- what is bought --------------------------------------------------------------------------------------------------


async def test_the_same_content_is_not_embedded_again(stack: Stack, model: DevModel) -> None:
    text = prose(40)
    first, job = await sent(stack, text)
    assert job["result"]["embedded"] == job["result"]["chunks"] > 5
    await model.reset()
    second, job = await sent(stack, text, collection="another", title="Copy")
    assert (job["result"]["embedded"], job["usage"]["totalTokens"]) == (0, 0)
    assert await embedded(model) == []
    result = await found(stack, text[:200], minScore=0, topK=2, mode="vector")
    assert set(documents(result)) == {first, second}
    await stack.call("DELETE", f"/api/documents/{first}")
    assert second in documents(await found(stack, text[:200], minScore=0, mode="vector"))


async def test_of_a_changed_document_only_changed_chunks_are_embedded(stack: Stack, model: DevModel) -> None:
    text = prose(120)
    document_id, job = await sent(stack, text, metadata={"v": "1"})
    chunks = job["result"]["chunks"]
    await model.reset()
    changed = text.replace("\n\n", "\n\nThe brand new sentence about zeppelins stands here.\n\n", 1)
    answer = await stack.call("PUT", f"/api/documents/{document_id}", {"text": changed, "title": "Second"})
    assert answer.status == 202, answer.text
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job
    assert 1 <= job["result"]["embedded"] <= chunks * 0.1
    bought = await embedded(model)
    assert len(bought) == job["result"]["embedded"]
    assert any("zeppelins" in one for one in bought)
    result = await found(stack, "zeppelins", mode="keyword", minScore=0)
    assert documents(result) == [document_id]
    assert result["sources"][0]["title"] == "Second"
    assert result["sources"][0]["metadata"] == {"v": "1"}
    whole = (await stack.call("GET", f"/api/documents/{document_id}/text")).text
    assert "zeppelins" in whole
    everything = await found(stack, "tide moon water", minScore=0, topK=50)
    assert all(whole[one["start"] : one["end"]] == one["text"] for one in everything["sources"])
    view = (await stack.call("GET", f"/api/documents/{document_id}")).json
    assert (view["revision"], view["chunks"], view["title"]) == (2, job["result"]["chunks"], "Second")
    # What the first content left behind is gone: its blobs and its vectors.
    for _ in range(100):
        blobs = [path for path in stack.settings.data_dir.rglob("*") if path.is_file() and document_id in str(path)]
        if len(blobs) == 2:
            break
        await asyncio.sleep(0.1)
    assert sorted(path.name for path in blobs) == [f"{document_id}.2", f"{document_id}.2"]
    packs = [name for name in await keys_of(stack, document_id) if name.startswith(("pack:", "vectors:"))]
    assert len(packs) == 2
    assert all(":1:2" in name for name in packs)


async def test_a_rejected_new_content_leaves_the_old_one(stack: Stack) -> None:
    document_id = await added(stack, TIDES)
    form = aiohttp.FormData()
    form.add_field("file", b"\x00\x01\x02 binary", filename="x.bin")
    answer = await stack.call("PUT", f"/api/documents/{document_id}", data=form)
    assert answer.status == 202, answer.text
    job = await stack.finished(answer.json["jobId"])
    assert (job["status"], job["error"]["code"]) == ("failed", "document_rejected")
    assert documents(await found(stack, "what causes the tides")) == [document_id]
    view = (await stack.call("GET", f"/api/documents/{document_id}")).json
    assert view["status"] == "ready"
    assert "was rejected, the one before is still there" in view["error"]
    assert (await stack.call("GET", f"/api/documents/{document_id}/text")).text == TIDES


async def test_metadata_and_title_change_at_once_and_for_nothing(stack: Stack, model: DevModel) -> None:
    document_id = await added(stack, TIDES, metadata={"lang": "en"})
    assert documents(await found(stack, "what causes the tides", filter={"lang": "de"})) == []
    await model.reset()
    patch = {"title": "Ebb", "metadata": {"lang": "de", "x": "y"}}
    answer = await stack.call("PATCH", f"/api/documents/{document_id}", patch)
    assert (answer.status, answer.json["metadata"], answer.json["chunks"]) == (200, patch["metadata"], 1)
    result = await found(stack, "what causes the tides", filter={"lang": "de"})
    assert (result["sources"][0]["title"], result["sources"][0]["metadata"]) == ("Ebb", patch["metadata"])
    assert len(await embedded(model)) == 1  # the query
    cleared = await stack.call("PATCH", f"/api/documents/{document_id}", {"metadata": {}})
    assert cleared.json["metadata"] == {}
    assert (await found(stack, "what causes the tides"))["sources"][0]["metadata"] == {}


async def test_delete_removes_everything_and_says_so(stack: Stack) -> None:
    document_id = await added(stack, prose(10) + "\n\n" + TIDES)
    kept = await added(stack, BREAD)
    assert document_id in documents(await found(stack, "what causes the tides"))
    await found(stack, "how long is bread baked")
    chunks = (await stack.call("GET", f"/api/documents/{document_id}")).json["chunks"]
    answer = await stack.call("DELETE", f"/api/documents/{document_id}")
    assert answer.status == 200
    assert answer.json == {"documentId": document_id, "deleted": True, "chunks": chunks, "searches": 2}
    assert documents(await found(stack, "what causes the tides")) == []
    assert documents(await found(stack, "how long is bread baked")) == [kept]
    assert [path for path in stack.settings.data_dir.rglob("*") if document_id in str(path)] == []
    left = await keys_of(stack, document_id, "causes the tides. ", "gravity of the moon")
    # Its ingest job names it, and the changes of the index; nothing holds its text.
    assert {name.split(":")[0] for name in left} <= {"job", "changes", "journal", "log"}, left
    assert await keys_of(stack, "gravity of the moon raises") == []


async def test_what_is_not_to_be_searched_is_not(stack: Stack) -> None:
    answer = await stack.call("POST", "/api/documents", {"text": TIDES, "index": False})
    job = await stack.finished(answer.json["jobId"])
    assert (job["status"], job["result"]["chunks"]) == ("complete", 0)
    assert documents(await found(stack, "what causes the tides", minScore=0)) == []
    replaced = await stack.call("PUT", f"/api/documents/{answer.json['documentId']}", {"text": BREAD})
    assert (replaced.status, replaced.json["code"]) == (409, "conflict")


async def test_documents_are_listed_by_collection_and_metadata(stack: Stack) -> None:
    one = await added(stack, TIDES, collection="sea", metadata={"lang": "en"})
    two = await added(stack, BREAD)
    for query, wanted in (("collection=sea", [one]), ("collection=default", [two]), ("metadata.lang=en", [one]),
                          ("status=ready", [two, one]), ("status=rejected", [])):  # fmt: skip
        page = (await stack.call("GET", f"/api/documents?{query}")).json
        assert [row["documentId"] for row in page["data"]] == wanted
    first = (await stack.call("GET", "/api/documents?status=ready&limit=1")).json
    assert (len(first["data"]), first["hasMore"]) == (1, True)
    second = (await stack.call("GET", f"/api/documents?status=ready&limit=1&after={first['next']}")).json
    assert [row["documentId"] for row in second["data"]] == [one]
    listed = (await stack.call("GET", "/api/collections")).json["data"]
    assert [(row["name"], row["documents"], row["chunks"]) for row in listed] == [("default", 1, 1), ("sea", 1, 1)]


# -- streams ---------------------------------------------------------------------------------------------------------


async def frames(stack: Stack, body: dict[str, Any], **headers: str) -> list[tuple[str | None, str, str]]:
    """(event, id, data) of each frame of a streamed search."""
    sent_headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Accept": "text/event-stream", **headers}
    async with stack.session.post(stack.base + "/api/search", json=body, headers=sent_headers) as answer:
        assert answer.status == 200, await answer.text()
        text = await answer.text()
    shown = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in fields:
            shown.append((fields.get("event"), fields.get("id", ""), fields["data"]))
    return shown


async def test_a_stream_has_sources_then_text_then_the_answer(stack: Stack) -> None:
    tides = await added(stack, TIDES)
    shown = await frames(stack, {"q": "What causes the tides?"})
    kinds = [event or "text" for event, _, _ in shown]
    assert kinds[0] == "sources"
    assert kinds[-2:] == ["answer", "text"]
    assert shown[-1][2] == "[DONE]"
    sources = json.loads(shown[0][2])
    assert documents(sources) == [tides]
    text = "".join(json.loads(data)["text"] for event, _, data in shown[1:-2])
    last = json.loads(shown[-2][2])
    assert text == last["answer"]["text"] != ""
    assert last["usage"]["totalTokens"] > 0
    assert last["searchId"] == sources["searchId"]
    # From any place it goes on, and nothing is searched again.
    for at, (_, place, _) in enumerate(shown[:-1]):
        again = await frames(stack, {"q": "What causes the tides?"}, **{"Last-Event-ID": place})
        assert again == shown[at + 1 :]
    log = (await stack.call("GET", "/api/search/log")).json["data"]
    assert len(log) == 1


async def test_a_stream_without_sources_says_so(stack: Stack) -> None:
    await added(stack, TIDES)
    shown = await frames(stack, {"q": "quarterly dividend of the railway company"})
    assert [event for event, _, _ in shown] == ["sources", "answer", None]
    assert json.loads(shown[0][2])["sources"] == []
    assert json.loads(shown[1][2])["answer"] is None


# -- the log ---------------------------------------------------------------------------------------------------------


async def test_every_search_is_logged_with_all_that_was_considered(stack: Stack) -> None:
    await added(stack, TIDES)
    await added(stack, BREAD)
    result = await found(stack, "What causes the tides?", user="u1", topK=1, minScore=0.2)
    logged = (await stack.call("GET", f"/api/search/{result['searchId']}")).json
    assert (logged["query"], logged["user"], logged["mode"]) == ("What causes the tides?", "u1", "hybrid")
    assert (logged["kept"], len(logged["candidates"])) == (1, 2)
    first, second = logged["candidates"]
    assert (first["kept"], first["score"]) == (True, result["sources"][0]["score"])
    assert second["kept"] is False
    assert second["reason"] in ("belowMinScore", "beyondTopK")
    (index,) = logged["indexes"]
    assert (index["collection"], index["version"], index["engine"], index["chunks"]) == ("default", 1, "redis-exact", 2)
    assert logged["timings"]["tookMs"] > 0
    assert logged["usage"]["embeddingTokens"] == result["usage"]["embeddingTokens"]
    await found(stack, "not to be logged", log=False)
    assert len((await stack.call("GET", "/api/search/log")).json["data"]) == 1


# -- faults ----------------------------------------------------------------------------------------------------------


async def test_without_the_embedding_model_words_are_looked_for(stack: Stack, model: DevModel) -> None:
    tides = await added(stack, TIDES)
    await model.faults({"kind": "status", "status": 500, "path": "embeddings", "times": 9})
    result = await found(stack, "gravity of the moon")
    assert documents(result) == [tides]
    assert "only words were looked for" in result["warnings"][0]
    answer = await stack.call("POST", "/api/search", {"q": "gravity", "mode": "vector", "answer": False})
    assert (answer.status, answer.json["code"]) == (502, "upstream_unavailable")


async def test_what_was_bought_before_a_worker_was_lost_is_not_bought_again(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(
        embedding_model="errand-dev-embedding", embedding_items=16, lease_seconds=1.0, model_max_in_flight=2
    )
    await model.limits(latencySeconds=0.15)
    first = await stack.start_worker("both")
    answer = await stack.call("POST", "/api/documents", {"text": prose(900)})
    while len(await embedded(model)) < 150:
        await asyncio.sleep(0.02)
    stack.kill_worker(first)
    await model.limits()
    await stack.start_worker("both")
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job
    bought = await embedded(model)
    twice = len(bought) - len(set(bought))
    assert twice <= 16 * 3, twice  # what was at the model when it was lost, and what it had no time to write
    assert job["result"]["chunks"] > 300
    result = await found(stack, "tide moon", topK=50, minScore=0)
    assert len(result["sources"]) == 50
    assert all(source["scores"]["vector"] is not None for source in result["sources"])


async def test_two_workers_find_what_either_has_indexed(make_stack: Any) -> None:
    stack: Stack = await make_stack(workers=("both", "both"), embedding_model="errand-dev-embedding")
    for number in range(12):
        word = f"zebra{number}"
        document_id = await added(stack, f"The {word} eats grass near the river {number}.")
        for _ in range(3):
            assert documents(await found(stack, word, mode="keyword", minScore=0)) == [document_id]
        if number % 3 == 0:
            await stack.call("DELETE", f"/api/documents/{document_id}")
            for _ in range(3):
                assert documents(await found(stack, word, mode="keyword", minScore=0)) == []


async def test_a_refused_chunk_is_found_by_its_words(stack: Stack, model: DevModel) -> None:
    text = "\n\n".join(
        [prose(3, seed) for seed in range(6)] + ["The forbidden word stands here: xyzzy. " + prose(2, 9)]
    )
    await model.faults({"kind": "status", "status": 400, "path": "embeddings", "match": "xyzzy", "times": 99})
    document_id, job = await sent(stack, text)
    assert job["result"]["embedded"] == job["result"]["chunks"] - 1
    events = await stack.log(job["jobId"])
    assert [event["code"] for event in events if event["type"] == "job.warning"] == ["chunk_refused"]
    await model.faults()
    result = await found(stack, "xyzzy", mode="keyword", minScore=0)
    assert documents(result) == [document_id]
    by_meaning = await found(stack, "xyzzy", mode="vector", minScore=0, topK=50)
    assert len(by_meaning["sources"]) == job["result"]["chunks"] - 1


async def test_without_an_embedding_model_words_are_searched(make_stack: Any, model: DevModel) -> None:
    stack: Stack = await make_stack(workers=("both",), embedding_model="")
    tides = await added(stack, TIDES)
    assert documents(await found(stack, "gravity of the moon")) == [tides]
    assert (await model.stats())["calls"] == 0
    answer = await stack.call("POST", "/api/search", {"q": "gravity", "mode": "vector", "answer": False})
    assert (answer.status, "no embedding model" in answer.json["detail"]) == (422, True), answer.text


async def test_of_two_new_contents_the_newer_content_stays(stack: Stack, model: DevModel) -> None:
    """Sent one after the other, done the other way round."""
    document_id = await added(stack, TIDES)
    await model.limits(latencySeconds=0.6)
    first = await stack.call("PUT", f"/api/documents/{document_id}", {"text": prose(30, 4)})
    while (await model.stats())["open"] == 0:
        await asyncio.sleep(0.01)
    await model.limits()
    second = await stack.call("PUT", f"/api/documents/{document_id}", {"text": BREAD})
    done = await stack.finished(second.json["jobId"])
    assert done["status"] == "complete", done
    late = await stack.finished(first.json["jobId"])
    assert (late["status"], "newer content" in late["error"]["message"]) == ("failed", True), late
    assert (await stack.call("GET", f"/api/documents/{document_id}/text")).text == BREAD
    assert documents(await found(stack, "loaf until the crust is dark")) == [document_id]
    view = (await stack.call("GET", f"/api/documents/{document_id}")).json
    assert (view["revision"], view["chunks"]) == (3, 1)


async def test_a_worker_that_lost_its_lease_indexes_nothing(stack: Stack) -> None:
    document_id, job = await sent(stack, TIDES)
    store = IndexesStore(stack.client, stack.keys)
    entry = await store.entry(DEFAULT_TENANT, "default", 1, document_id)
    assert entry is not None
    fields = dict.fromkeys(("lane", "spec", "model"), "")
    claimed = Claimed(job["jobId"], DEFAULT_TENANT, "ingest", **fields, lease=1, attempt=1, max_attempts=3,
                      timeout_ms=1, budget=0, tokens_used=0, claimed_ms=1, queued_ms=1, traceparent="")  # fmt: skip
    with pytest.raises(LeaseLostError):
        await store.put(
            claimed, "somebody", collection="default", version=1, document_id=document_id,
            entry=msgspec.structs.replace(entry, title="stolen"), fields={}, follows=True, has_vectors=True,
        )  # fmt: skip
    assert (await found(stack, "what causes the tides"))["sources"][0]["title"] is None


async def test_a_tenant_is_erased_with_all_that_it_searched(stack: Stack) -> None:
    tenant, key = await stack.tenant()
    for collection in ("default", "other:place, with space"):
        answer = await stack.call(
            "POST", "/api/documents", {"text": TIDES + collection, "collection": collection}, key=key
        )
        await stack.finished(answer.json["jobId"], key=key)
    search = {"q": "what causes the tides", "user": "somebody"}
    assert (await stack.call("POST", "/api/search", search, key=key)).json["sources"]
    again = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 32}, key=key)
    await stack.finished(again.json["jobId"], key=key)
    mine = await added(stack, TIDES)
    gone = await stack.call("DELETE", f"/api/admin/tenants/{tenant}")
    job = await stack.finished(gone.json["jobId"])
    assert (job["status"], job["result"]["remaining"]) == ("complete", 0), job
    # Its receipt and the audit log name it; nothing else does.
    left = [name for name in await keys_of(stack, tenant) if not name.startswith(("audit", "job:", "log:", "journal:"))]
    assert left == []
    assert documents(await found(stack, "what causes the tides")) == [mine]


async def test_a_document_may_be_given_by_its_url(make_stack: Any) -> None:
    served = {"text": f"<html><title>Sea</title><body><p>{TIDES}</p></body></html>", "status": 200}

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=str(served["text"]), content_type="text/html", status=int(served["status"]))

    app = web.Application()
    app.router.add_get("/page", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        stack: Stack = await make_stack(
            workers=("both",), embedding_model="errand-dev-embedding", fetch_enabled=True,
            fetch_private_hosts=f"127.0.0.1:{port}",
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}/page"
        answer = await stack.call("POST", "/api/documents", {"url": url})
        assert answer.status == 202, answer.text
        assert (await stack.finished(answer.json["jobId"]))["status"] == "complete"
        document_id = answer.json["documentId"]
        result = await found(stack, "what causes the tides")
        assert (documents(result), result["sources"][0]["title"]) == ([document_id], "Sea")
        view = (await stack.call("GET", f"/api/documents/{document_id}")).json
        assert (view["url"], view["mediaType"], view["sizeBytes"]) == (url, "text/html", len(str(served["text"])))
        # Fetched anew: the same page costs nothing, another one replaces it.
        served["text"] = f"<html><body><p>{BREAD}</p></body></html>"
        answer = await stack.call("PUT", f"/api/documents/{document_id}", {"url": url})
        assert (await stack.finished(answer.json["jobId"]))["status"] == "complete"
        assert documents(await found(stack, "loaf until the crust is dark")) == [document_id]
        served["status"] = 404
        answer = await stack.call("PUT", f"/api/documents/{document_id}", {"url": url})
        job = await stack.finished(answer.json["jobId"])
        assert (job["status"], job["error"]["code"]) == ("failed", "document_rejected")
        assert documents(await found(stack, "loaf until the crust is dark")) == [document_id]
        refused = await stack.call("POST", "/api/documents", {"url": f"http://localhost:{port + 1}/x"})
        job = await stack.finished(refused.json["jobId"])
        assert (job["status"], job["error"]["code"]) == ("failed", "document_rejected"), job
        rejected = (await stack.call("GET", f"/api/documents/{refused.json['documentId']}")).json
        assert (rejected["status"], rejected["sizeBytes"]) == ("rejected", None)
    finally:
        await runner.cleanup()


async def test_urls_are_off_unless_the_operator_says_so(edge: Stack) -> None:
    answer = await edge.call("POST", "/api/documents", {"url": "https://example.org/"})
    assert (answer.status, "switched off" in answer.json["detail"]) == (422, True)
    both = await edge.call("POST", "/api/documents", {"url": "https://example.org/", "text": "x"})
    assert both.status == 422


async def test_a_replayed_search_that_was_erased_is_gone(stack: Stack) -> None:
    document_id = await added(stack, TIDES)
    body = {"q": "what causes the tides", "answer": False}
    headers = {"Idempotency-Key": "once"}
    first = await stack.call("POST", "/api/search", body, headers=headers)
    again = await stack.call("POST", "/api/search", body, headers=headers)
    assert (again.json["searchId"], again.headers["Idempotent-Replayed"]) == (first.json["searchId"], "true")
    assert (await stack.call("POST", "/api/search", {**body, "topK": 3}, headers=headers)).status == 422
    await stack.call("DELETE", f"/api/documents/{document_id}")
    gone = await stack.call("POST", "/api/search", body, headers=headers)
    assert (gone.status, gone.json["code"]) == (410, "gone"), gone.text


async def test_a_worker_that_missed_more_changes_than_are_told_reads_all_anew(stack: Stack) -> None:
    first = await added(stack, TIDES)
    assert documents(await found(stack, "what causes the tides")) == [first]
    second = await added(stack, BREAD)
    name = stack.keys.changes(DEFAULT_TENANT, 1, "default")
    for _ in range(2):
        await stack.client.xadd(name, {"d": "doc_X"})
    await stack.client.xtrim(name, maxlen=1, approximate=False)
    assert documents(await found(stack, "loaf until the crust is dark")) == [second]
    await stack.call("DELETE", f"/api/documents/{first}")
    await stack.client.xadd(name, {"d": "doc_X"})
    await stack.client.xtrim(name, maxlen=1, approximate=False)
    assert first not in documents(await found(stack, "what causes the tides", minScore=0))


async def test_a_search_whose_client_goes_is_cancelled_and_logged(stack: Stack, model: DevModel) -> None:
    tides = await added(stack, TIDES)
    await model.pace(tokensPerSecond=3, firstTokenSeconds=0, tokensPerChunk=1)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Accept": "text/event-stream"}
    body = {"q": "what causes the tides"}
    async with stack.session.post(stack.base + "/api/search", json=body, headers=headers) as answer:
        job_id = answer.headers["X-Job-Id"]
        assert (await answer.content.readline()).startswith(b"id: ")
    assert (await stack.call("DELETE", f"/api/jobs/{job_id}?wait=5")).json["status"] == "cancelled"
    (logged,) = (await stack.call("GET", "/api/search/log")).json["data"]
    assert (logged["error"], logged["answer"], logged["kept"]) == ("cancelled", None, 1)
    assert logged["candidates"][0]["documentId"] == tides


async def test_redis_killed_in_the_middle_of_an_ingest_loses_nothing(
    make_stack: Any, own_redis: RedisServer, model: DevModel
) -> None:
    stack: Stack = await make_stack(
        workers=("both",), redis_url=own_redis.url, embedding_model="errand-dev-embedding", embedding_items=16,
        model_max_in_flight=2,
    )  # fmt: skip
    await added(stack, TIDES)
    await model.reset()
    await model.limits(latencySeconds=0.1)
    answer = await stack.call("POST", "/api/documents", {"text": prose(400)})
    for bought in (40, 90, 10_000):
        async with asyncio.timeout(30):
            while len(await embedded(model)) < bought and not (bought == 10_000 and await ended(stack, answer)):
                await asyncio.sleep(0.02)
        if bought != 10_000:
            own_redis.kill()
            await asyncio.sleep(0.5)
            own_redis.start()
    job = await stack.finished(answer.json["jobId"])
    assert (job["status"], job["attempt"]) == ("complete", 1), job
    bought_texts = await embedded(model)
    assert len(bought_texts) == len(set(bought_texts)) == job["result"]["embedded"]
    result = await found(stack, "tide moon", minScore=0, topK=50)
    assert len(result["sources"]) == 50


async def ended(stack: Stack, answer: Any) -> bool:
    view = (await stack.call("GET", f"/api/jobs/{answer.json['jobId']}")).json
    return view.get("finishedAt") is not None
