"""Search: documents into collections, found by meaning and words, answered with proven citations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import Stack

TIDES = "The gravity of the moon raises the water of the oceans twice a day. This is what causes the tides."
BREAD = "Bake the loaf for 35 minutes at 230 degrees, until the crust is dark and the bottom sounds hollow."
LEASE = "The tenant may end the lease with three months' notice. It has to be given in writing to the landlord."


async def added(stack: Stack, text: str, **fields: Any) -> str:
    """A document that is indexed."""
    answer = await stack.call("POST", "/api/documents", {"text": text, **fields})
    assert answer.status == 202, answer.text
    job = await stack.finished(answer.json["jobId"])
    assert job["status"] == "complete", job
    return str(answer.json["documentId"])


async def found(stack: Stack, q: str, **wanted: Any) -> Any:
    """A search's answer."""
    answer = await stack.call("POST", "/api/search", {"q": q, "answer": False, **wanted})
    assert answer.status == 200, answer.text
    return answer.json


@pytest.fixture
async def stack(make_stack: Any) -> Stack:
    made: Stack = await make_stack(workers=("both",), embedding_model="errand-dev-embedding")
    return made


async def test_a_document_is_found_when_its_job_is_complete(stack: Stack) -> None:
    tides = await added(stack, TIDES, title="Tides", metadata={"lang": "en"})
    await added(stack, BREAD, title="Bread")
    result = await found(stack, "What causes the tides?")
    assert [source["documentId"] for source in result["sources"]] == [tides], result
    source = result["sources"][0]
    assert source["rank"] == 1
    assert source["text"] == TIDES
    assert (source["start"], source["end"]) == (0, len(TIDES))
    assert source["metadata"] == {"lang": "en"}
    assert 0.3 <= source["score"] <= 1
    assert result["answer"] is None
    print(json.dumps(result, indent=1))
