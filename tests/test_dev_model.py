"""The development model speaks OpenAI's API: the SDK's own types parse every answer, strictly."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from scripts.extractive import Reader, fill_schema
from tests.conftest import DevModel

DOCUMENT = "<document>\nThe crane costs 27 million. The quay is closed. Ferries run daily.\n</document>\n\n"
PAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "count": {"type": "integer", "minimum": 1, "maximum": 5},
        "kind": {"enum": ["harbour", "ferries"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "nested": {"$ref": "#/$defs/node"},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "number"}]},
    },
    "required": ["summary", "count", "kind", "tags", "nested", "maybe"],
    "$defs": {"node": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}},
}


@pytest.fixture
async def sdk(model: DevModel) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(
        base_url=f"{model.base}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    )
    yield client
    await client.close()


async def test_a_plain_answer(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    answer = await sdk.chat.completions.create(
        model="m", messages=[{"role": "user", "content": DOCUMENT + "What does the crane cost?"}]
    )
    assert "27 million" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    stats = await model.stats()
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (stats["inputTokens"], stats["outputTokens"])


async def test_a_streamed_answer_ends_with_usage(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    stream = await sdk.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": DOCUMENT + "What does the crane cost?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "27 million" in text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == (await model.stats())["outputTokens"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls(sdk: openai.AsyncOpenAI, stream: bool) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "search_documents",
            "description": "Search the documents for a question",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    }
    messages: Any = [{"role": "user", "content": "Search the documents for crane prices."}]
    if stream:
        chunks = [
            chunk
            async for chunk in await sdk.chat.completions.create(
                model="m", messages=messages, tools=[tool], stream=True
            )
        ]
        parts = [call for chunk in chunks for call in (chunk.choices[0].delta.tool_calls or [])]
        name = parts[0].function.name if parts[0].function else None
        arguments = "".join(part.function.arguments or "" for part in parts if part.function)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    else:
        answer = await sdk.chat.completions.create(model="m", messages=messages, tools=[tool])
        call: Any = (answer.choices[0].message.tool_calls or [])[0]
        name, arguments = call.function.name, call.function.arguments
        assert answer.choices[0].finish_reason == "tool_calls"
    assert name == "search_documents"
    assert isinstance(json.loads(arguments)["query"], str)
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "search_documents", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "The crane costs 27 million."},
    ]  # fmt: skip
    after = await sdk.chat.completions.create(model="m", messages=messages, tools=[tool])
    assert "27 million" in (after.choices[0].message.content or "")


async def test_json_that_fits_its_schema(sdk: openai.AsyncOpenAI) -> None:
    from shared.schemas import compile_schema, violations

    answer = await sdk.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": DOCUMENT + "Fill the form."}],
        response_format={"type": "json_schema", "json_schema": {"name": "page", "schema": PAGE}},
    )
    data = json.loads(answer.choices[0].message.content or "")
    assert violations(compile_schema(PAGE), data) == []


def test_schemas_of_many_shapes_are_filled() -> None:
    from shared.schemas import compile_schema, violations

    reader = Reader([("user", DOCUMENT + "Fill the form.")])
    shapes: list[dict[str, Any]] = [
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
        {"type": ["string", "null"]},
        {"const": 7},
        {"type": "object", "properties": {}},
        {"type": "number", "minimum": 100},
        {"type": "string", "maxLength": 3},
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
    ]
    for shape in shapes:
        assert violations(compile_schema(shape), fill_schema(reader, shape)) == [], shape


async def test_embeddings(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    texts = ["a ship in the harbour", "a boat at the quay", "tax law"]
    answer = await sdk.embeddings.create(model="e", input=texts, encoding_format="float")
    ship, boat, law = (entry.embedding for entry in answer.data)
    assert len(ship) == 256
    assert abs(sum(value * value for value in ship) - 1) < 1e-3
    near = sum(left * right for left, right in zip(ship, boat, strict=True))
    far = sum(left * right for left, right in zip(ship, law, strict=True))
    assert near > far
    # The SDK asks for base64 by itself when nothing is said, and decodes it.
    # (Its strict validation would refuse the base64 that it asked for itself.)
    async with openai.AsyncOpenAI(base_url=f"{model.base}/v1", api_key="x", max_retries=0) as plain:
        short = await plain.embeddings.create(model="e", input="x", dimensions=8)
    assert len(short.data[0].embedding) == 8
    raw = await sdk.embeddings.with_raw_response.create(model="e", input="x", dimensions=8, encoding_format="base64")
    coded = json.loads(raw.content)["data"][0]["embedding"]
    assert list(struct.unpack("<8f", base64.b64decode(coded))) == pytest.approx(short.data[0].embedding, abs=1e-6)


async def test_models_and_errors(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    assert [entry.id async for entry in sdk.models.list()] == ["errand-dev-extractive", "errand-dev-embedding"]
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(model="m", messages=[])
    with pytest.raises(openai.BadRequestError):
        await sdk.embeddings.create(model="e", input=[])
    await model.faults({"kind": "status", "status": 429, "retryAfter": 3})
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert caught.value.response.headers["retry-after"] == "3"


async def test_answers_are_deterministic(sdk: openai.AsyncOpenAI) -> None:
    answers = [
        (await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": DOCUMENT + "Quay?"}]))
        .choices[0].message.content
        for _ in range(2)
    ]  # fmt: skip
    assert answers[0] == answers[1]


async def test_tokens_are_counted_as_sent_when_the_client_goes(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    await model.pace(tokensPerSecond=50)
    words = " ".join(f"w{n}" for n in range(300))
    stream = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": words}], stream=True)
    seen = 0
    async for chunk in stream:
        seen += bool(chunk.choices[0].delta.content)
        if seen == 5:
            break
    await stream.close()
    import asyncio

    async with asyncio.timeout(5):
        while (stats := await model.stats())["open"]:
            await asyncio.sleep(0.02)
    assert stats["ended"] == {"closed": 1}
    assert 5 <= stats["outputTokens"] <= 20


@pytest.mark.parametrize("profile", ["openai", "vllm", "ollama"])
async def test_chunks_of_several_tokens_are_counted_by_the_token(
    sdk: openai.AsyncOpenAI, model: DevModel, profile: str
) -> None:
    """Given a server that joins eight tokens to a chunk, when it answers, then it says the same in an eighth of the
    chunks, and counts the same tokens."""
    texts, made, chunks = [], [], []
    await model.profile(profile)
    text = "The harbour opens at nine. The ferry leaves at ten. The lighthouse is closed on Mondays. " * 4
    for size in (1, 8):
        await model.pace(tokensPerChunk=size)
        stream = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], stream=True)
        told = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        pieces = [piece for piece in told if piece]
        texts.append("".join(pieces))
        chunks.append(len(pieces))
        made.append((await model.stats(calls=True))["list"][-1]["outputTokens"])
    assert texts[0] == texts[1]
    assert made[0] == made[1] > 16
    assert chunks[1] <= made[1] / 8 + 1


async def test_under_a_known_name_its_tokens_are_those_of_the_vocabulary(
    sdk: openai.AsyncOpenAI, model: DevModel
) -> None:
    """Given the name of a model whose vocabulary is known, when it answers, also beyond ASCII, then input and output
    are what that vocabulary makes of them, and the pieces join to the text."""
    from shared.tokens import TokenCounter

    messages: Any = [
        {"role": "user", "content": "Das Öffnen der Luke dauert 20 Minuten. 🚢🛟 Die Fähre fährt täglich."}
    ]
    stream = await sdk.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert "Luke dauert 20 Minuten" in text
    (call,) = (await model.stats(calls=True))["list"]
    counter = TokenCounter()
    assert call["inputTokens"] == await counter.chat("gpt-4o-mini", messages)
    assert call["outputTokens"] == await counter.text("gpt-4o-mini", text)
