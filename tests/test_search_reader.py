"""Search with models that are not told dimensions, and with none; texts and answers that were made to take time."""

from __future__ import annotations

from typing import Any

from tests.conftest import DevModel, Stack
from tests.test_collections import collection
from tests.test_search import TIDES, added, documents, found
from tests.test_search_pure import prose


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
