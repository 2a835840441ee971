"""Collections and documents at their edges: what words alone find does not move, a content that was never read says
why, nothing that was dropped comes back, and a name may hold commas."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import worker.search.growth
from shared.collections import Calibration, IndexSpec
from shared.stores.documents import DocumentsStore
from shared.stores.indexes import IndexesStore
from shared.stores.tenants import DEFAULT_TENANT
from tests.conftest import DevModel, Stack
from tests.test_embedding import embedded
from tests.test_search import BREAD, TIDES, added, documents, found, keys_of, sent
from tests.test_search_pure import prose


@pytest.fixture
async def stack(make_stack: Any) -> Stack:
    made: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    return made


async def test_what_words_alone_find_moves_to_no_vector_set(make_stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a collection without a model that is over the bound, and a server with vector sets, then it stays."""

    async def has_vector_sets(_: Any) -> bool:
        return True

    monkeypatch.setattr(worker.search.growth, "has_vector_sets", has_vector_sets)
    stack: Stack = await make_stack(workers=("both",), embedding_model="", search_vset_chunks=2)
    _, job = await sent(stack, prose(40))
    assert job["result"]["chunks"] > 2
    assert [event for event in await stack.log(job["jobId"]) if event["type"] == "job.warning"] == []
    assert (await stack.call("GET", "/api/jobs?type=reindex")).json["data"] == []


async def test_a_content_whose_job_failed_says_so(stack: Stack) -> None:
    """Given a document that is found, when the job of a new content is cancelled, then the record and the list say so,
    the old content is found still, and the next content takes the error away."""
    document = await added(stack, TIDES)
    path = f"/api/documents/{document}"
    # A content that is refused before it has a job changes nothing.
    assert (await stack.call("PUT", path, {"text": " "})).status == 422
    assert "error" not in (await stack.call("GET", path)).json
    for engine in list(stack.engines):
        await stack.stop_worker(engine)
    replaced = await stack.call("PUT", path, {"text": BREAD})
    assert "error" not in (await stack.call("GET", path)).json, "it may still be read"
    assert (await stack.call("DELETE", f"/api/jobs/{replaced.json['jobId']}")).json["status"] == "cancelled"
    (listed,) = (await stack.call("GET", "/api/documents")).json["data"]
    shown = (await stack.call("GET", path)).json
    for view in (shown, listed):
        assert (view["status"], view["revision"]) == ("ready", 1)
        assert view["error"] == (
            "Its ingest job is cancelled; retry that job to put the new content in place of the one before."
        )
    await stack.start_worker("both")
    assert documents(await found(stack, "what causes the tides")) == [document]
    again = await stack.call("PUT", path, {"text": BREAD})
    await stack.finished(again.json["jobId"])
    assert "error" not in (await stack.call("GET", path)).json


async def test_a_page_of_documents_is_read_in_a_few_round_trips(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given pending documents, then a page of them costs as many round trips as a page of one."""
    for number in range(12):
        await edge.call("POST", "/api/documents", {"text": f"Text {number}."})
    store = DocumentsStore(edge.client, edge.keys)
    trips = 0
    connection = edge.client.connection_pool.connection_class
    send = connection.send_packed_command

    async def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal trips
        trips += 1
        return await send(self, *arguments, **options)

    monkeypatch.setattr(connection, "send_packed_command", counted)
    needed = []
    await store.documents(DEFAULT_TENANT, limit=1, after=None)  # a connection is made
    for limit in (1, 12):
        trips = 0
        found, _ = await store.documents(DEFAULT_TENANT, limit=limit, after=None)
        assert len(found) == limit
        needed.append(trips)
    assert needed[0] == needed[1] <= 3


async def test_a_dropped_version_is_not_described(edge: Stack) -> None:
    """Given a version that is dropped, or a collection that is gone, while somebody measures its model, when what was
    measured is noted, then it does not come back."""
    store = IndexesStore(edge.client, edge.keys)
    spec = IndexSpec(version=0, model="m", chunk_characters=1_000)
    made = await store.open(DEFAULT_TENANT, "c", spec)
    assert not isinstance(made, str)
    learned = msgspec.structs.replace(made.spec, dimensions=8, calibration=Calibration(0.0, 1.0, 8))
    await store.describe(DEFAULT_TENANT, "c", learned)
    known = await store.collection(DEFAULT_TENANT, "c")
    assert known is not None
    assert known.spec.dimensions == 8
    other = msgspec.structs.replace(learned, version=7)
    await store.describe(DEFAULT_TENANT, "c", other)
    await store.describe(DEFAULT_TENANT, "gone", learned)
    known = await store.collection(DEFAULT_TENANT, "c")
    assert known is not None
    assert list(known.specs) == [1]
    assert await store.collection(DEFAULT_TENANT, "gone") is None


async def test_the_homes_of_texts_go_with_the_last_version_of_their_model(stack: Stack, model: DevModel) -> None:
    """Given versions of two models, when the last one of the first is dropped, then the homes of its texts are gone,
    and those of the other are there."""
    await added(stack, TIDES)
    (first,) = [name for name in await keys_of(stack, "chunks:") if name.startswith("chunks:")]
    done = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 64})
    assert (await stack.finished(done.json["jobId"]))["status"] == "complete"
    both = {name for name in await keys_of(stack, "chunks:") if name.startswith("chunks:")}
    assert len(both) == 2
    assert (await stack.call("DELETE", "/api/collections/default/versions/1")).status == 200
    left = {name for name in await keys_of(stack, "chunks:") if name.startswith("chunks:")}
    assert left == both - {first}


async def test_a_home_whose_version_is_gone_is_noted_anew(stack: Stack, model: DevModel) -> None:
    """Given a text that two collections have, when the version that had it first is dropped and another document brings
    it, then a third one finds its vector there, and it is not bought again."""
    await added(stack, TIDES, collection="first")
    again = await stack.call("POST", "/api/collections/first/reindex", {"chunkCharacters": 300})
    assert (await stack.finished(again.json["jobId"]))["status"] == "complete"
    (name,) = [name for name in await keys_of(stack, "chunks:") if name.startswith("chunks:")]
    key = f"{stack.settings.redis_prefix}{name}"
    client: Any = stack.client
    # Homes in versions that are no more, as a drop of an earlier release left them.
    for field in await client.hkeys(key):
        await client.hset(key, field, "doc_00000000000000000000000000 9 first")
    await added(stack, TIDES, collection="second", title="Second")
    homes = {home.decode().rpartition(" ")[2] for home in await client.hvals(key)}
    assert homes == {"second"}
    await model.reset()
    await added(stack, TIDES, collection="third", title="Third")
    assert await embedded(model) == []


async def test_a_collection_with_a_comma_in_its_name_can_be_asked_by_the_address(stack: Stack) -> None:
    """Given collections `a,b`, `a` and `b`, then `a,b` means two by itself; given several times, each is one name."""
    ids = {name: await added(stack, f"{TIDES} {name}", collection=name) for name in ("a,b", "a", "b", "c")}
    q = "q=tides&answer=false&minScore=0"
    for address, wanted in (
        ("collection=a,b", {"a", "b"}),
        ("collection=a,b&collection=", {"a,b"}),
        ("collection=a%2Cb&collection=c", {"a,b", "c"}),
        ("collection=a&collection=b", {"a", "b"}),
        ("collection=c", {"c"}),
    ):
        answer = await stack.call("GET", f"/api/search?{q}&{address}")
        assert answer.status == 200, answer.text
        assert set(documents(answer.json)) == {ids[name] for name in wanted}, address
    twice = await stack.call("GET", "/api/search?q=a&q=b")
    assert (twice.status, twice.json["errors"][0]["path"]) == (422, "?q")


async def test_feedback_names_the_member_that_is_wrong(stack: Stack) -> None:
    await added(stack, TIDES)
    search = await found(stack, "what causes the tides")
    body = {"chunkId": "none", "relevant": True}
    answer = await stack.call("POST", f"/api/search/{search['searchId']}/feedback", body)
    assert (answer.status, [one["path"] for one in answer.json["errors"]]) == (422, ["$.chunkId"])
