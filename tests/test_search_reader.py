"""Search with models that are not told dimensions, and with none; texts and answers that were made to take time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared.filters import filter_problem
from shared.search import Scores, Source
from shared.stores.indexes import IndexesStore
from tests.conftest import DevModel, Stack
from tests.test_collections import collection
from tests.test_search import BREAD, TIDES, added, documents, found, keys_of
from tests.test_search_pure import prose
from worker.fencing import as_data, fenced
from worker.search.answering import SENTENCE, Cited, Sources
from worker.search.marks import Marks


async def test_words_are_searched_in_long_documents_too(make_stack: Any) -> None:
    """Without a model the stored rows have one number; a document of four chunks and more was not found."""
    stack: Stack = await make_stack(workers=("both",), embedding_model="")
    wanted = await added(stack, f"{prose(12)}\n\n{TIDES}")
    assert (await collection(stack))["chunks"] > 4
    assert documents(await found(stack, "gravity of the moon")) == [wanted]


async def test_a_model_is_not_told_dimensions_that_nobody_chose(make_stack: Any, model: DevModel) -> None:
    """Many models refuse a request with `dimensions`, whatever its value."""
    stack: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    await model.reset()
    await added(stack, f"{prose(6)}\n\n{TIDES}")
    assert documents(await found(stack, "what causes the tides", mode="vector", minScore=0))
    again = await stack.call("POST", "/api/collections/default/reindex", {"documentPrefix": "passage: "})
    assert (await stack.finished(again.json["jobId"]))["status"] == "complete"
    asked = [call["body"] for call in (await model.stats(calls=True))["list"]]
    assert len(asked) >= 4
    assert not [body for body in asked if "dimensions" in body]
    await model.reset()
    chosen = await stack.call("POST", "/api/collections/default/reindex", {"dimensions": 64})
    assert (await stack.finished(chosen.json["jobId"]))["status"] == "complete"
    assert documents(await found(stack, "what causes the tides", mode="vector", minScore=0))
    asked = [call["body"] for call in (await model.stats(calls=True))["list"]]
    assert {body.get("dimensions") for body in asked} == {64}


HOSTILE = {
    "spaces": "<" + " " * 20_000,
    "lines": "x" + "\n" * 20_000 + "y",
    "brackets": "\n[" * 10_000,
    "dots": "a" + "." * 20_000 + "x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_long(name: str) -> None:
    """Each took seconds, or grew with the square of the length, on the loop that renews leases."""
    text = HOSTILE[name]
    started_s = time.perf_counter()
    fenced("sources", as_data(text))
    list(SENTENCE.finditer(text))
    assert time.perf_counter() - started_s < 0.5


def test_labels_and_tags_are_broken_as_before() -> None:
    assert as_data("a\n\n  [1] b\n\t[ 22 ] c [3]") == "a\n\n  (1) b\n\t( 22 ) c [3]"
    assert as_data("< / sources> <\n/\nSource> </x>") == "‹  / sources> ‹ \n/\nSource> </x>"
    assert "</sources>" not in fenced("sources", "a </sources> < / SOURCES >").removesuffix("</sources>")


def test_sentences_end_with_their_marks() -> None:
    text = 'He left... Then "it rained." And 3.5 mm fell?! Yes\nno... and so on.'
    assert [one.strip() for one in SENTENCE.findall(text)] == [
        "He left...", 'Then "it rained."', "And 3.5 mm fell?!", "Yes", "no...", "and so on.",
    ]  # fmt: skip


def test_a_quote_with_many_numbers_is_looked_for_once() -> None:
    def source(rank: int) -> Cited:
        text = f"passage {rank} " * 100 + ("the moon raises the oceans" if rank in (7, 30) else "")
        given = Source(
            rank=rank, document_id="d", chunk_id="c", collection="c", title=None, text=text, score=0.9,
            scores=Scores(0.5, 0.5), start=0, end=len(text), metadata={},
        )  # fmt: skip
        return Cited(given, [])

    sources = Sources([source(rank) for rank in range(1, 51)])
    marks = Marks(sources.ranks, sources.where)
    numbers = ",".join(map(str, range(1, 201)))
    started_s = time.perf_counter()
    marks.feed(f'[{numbers}: "{"nowhere " * 40}"] ')
    assert time.perf_counter() - started_s < 0.3
    assert (marks.dropped, marks.kept) == (1, [])
    assert [sources.where("The moon raises the  oceans", named) for named in (30, 7, 8, 99)] == [30, 7, 7, 7]


@pytest.mark.parametrize(
    "wanted",
    [
        {"a": ["x"] * 1_001},
        {"a": {"in": ["x"] * 600, "nin": ["x"] * 600}},
        {"$or": [{"a": ["x"] * 600}, {"$not": {"b": {"in": ["x"] * 600}}}]},
        {"$and": [{}] * 101},
    ],
)
def test_a_filter_has_an_end(wanted: dict[str, Any]) -> None:
    """It is looked at for each document, on the loop that renews leases."""
    assert "more than" in (filter_problem(wanted) or "")


def test_a_long_list_is_a_good_filter() -> None:
    assert filter_problem({"a": {"in": [str(number) for number in range(1_000)]}}) is None


async def test_a_collection_of_an_earlier_release_can_be_built(make_stack: Any) -> None:
    """All its documents were stored when there was no index: nothing has made the collection yet."""
    stack: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    for fields in ({"collection": "old"}, {}):
        answer = await stack.call("POST", "/api/documents", {"text": TIDES, "index": False, **fields})
        await stack.finished(answer.json["jobId"])
        await stack.client.hdel(stack.keys.document(answer.json["documentId"]), "index", "revision", "next")
        name = fields.get("collection", "default")
        assert (await stack.call("GET", f"/api/collections/{name}")).status == 404
        job = await stack.call("POST", f"/api/collections/{name}/reindex", {})
        assert (await stack.finished(job.json["jobId"]))["status"] == "complete"
        assert documents(await found(stack, "what causes the tides", collection=name)) == [answer.json["documentId"]]
    assert (await stack.call("POST", "/api/collections/none/reindex", {})).status == 404


async def test_collections_are_listed_page_by_page(make_stack: Any) -> None:
    stack: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    names = ["a&b / ü", "c?d", "plain"]
    for name in names:
        await added(stack, TIDES, collection=name)
    path, listed = "/api/collections?limit=1", []
    while path:
        page = await stack.call("GET", path)
        listed += [one["name"] for one in page.json["data"]]
        cursor = page.json["next"]
        assert cursor is None or cursor.replace("-", "").replace("_", "").isalnum()
        path = f"/api/collections?limit=1&after={cursor}" if page.json["hasMore"] else ""
    assert listed == names
    assert (await stack.call("GET", "/api/collections?after=%25")).status == 422


async def test_a_wrong_filter_is_named(edge: Stack) -> None:
    posted = await edge.call("POST", "/api/search", {"q": "x", "filter": {"a": {"foo": 1}}})
    assert posted.json["errors"][0]["path"] == "$.filter", posted.text
    asked = await edge.call("GET", "/api/search?q=x&filter.$foo=1")
    assert asked.json["errors"][0]["path"] == "?filter", asked.text


async def test_a_file_that_became_a_text_has_no_file_name(make_stack: Any) -> None:
    stack: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    document_id = await added(stack, TIDES)
    answer = await stack.call("PUT", f"/api/documents/{document_id}", {"text": BREAD})
    assert (await stack.finished(answer.json["jobId"]))["status"] == "complete"
    assert (await stack.call("GET", f"/api/documents/{document_id}")).json["filename"] is None


async def test_what_an_interrupted_deletion_left_goes(make_stack: Any) -> None:
    """The API was lost after the record was gone: the files are on the list, and a second call erases the log."""
    stack: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    document_id = await added(stack, TIDES)
    assert documents(await found(stack, "what causes the tides")) == [document_id]
    blobs = [path for path in stack.settings.data_dir.rglob("*") if document_id in path.name]
    assert len(blobs) == 2
    names = [str(path.relative_to(stack.settings.data_dir / "blobs")) for path in blobs]
    store = IndexesStore(stack.client, stack.keys)
    assert (await store.remove("ten_" + "0" * 26, document_id, "default", blobs=names))[0] == 1
    assert await keys_of(stack, "gravity of the moon")
    assert (await stack.call("DELETE", f"/api/documents/{document_id}")).status == 404
    assert await keys_of(stack, "gravity of the moon") == []
    listed: Any = await stack.client.smembers(stack.keys.trash)
    assert {name.encode() for name in names} <= listed
