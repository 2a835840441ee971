"""Limits and faults of the development model, and what it refuses as OpenAI does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.conftest import DevModel

ASK: Any = [{"role": "user", "content": "Say something."}]


@pytest.fixture
async def sdk(model: DevModel) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{model.base}/v1", api_key="x", max_retries=0) as client:
        yield client


async def test_calls_beyond_those_in_flight_are_refused_at_once(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    await model.limits(inFlight=2, retryAfter=7, latencySeconds=0.3, paths=["embeddings"])
    started = time.monotonic()
    answers = await asyncio.gather(
        *(sdk.embeddings.create(model="e", input=f"text {n}") for n in range(5)), return_exceptions=True
    )
    assert time.monotonic() - started >= 0.3
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(refused) == 3
    assert refused[0].response.headers["retry-after"] == "7"
    assert refused[0].code == "rate_limit_exceeded"
    stats = await model.stats()
    assert (stats["calls"], stats["refused"], stats["mostOpen"]) == (2, 3, 2)
    await model.limits(inFlight=0, paths=["embeddings"])
    await sdk.chat.completions.create(model="m", messages=ASK)


async def test_tokens_a_minute(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    await model.limits(tokensPerMinute=10)
    await sdk.embeddings.create(model="e", input="one two three four five six")
    with pytest.raises(openai.RateLimitError, match="tokens per min"):
        await sdk.embeddings.create(model="e", input="one two three four five six")


async def test_embeddings_are_refused_as_openai_refuses_them(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8191 tokens") as caught:
        await sdk.embeddings.create(model="e", input=["short", "word " * 8_192])
    assert caught.value.code is None
    await sdk.embeddings.create(model="e", input="word " * 8_191)
    with pytest.raises(openai.BadRequestError, match="Requested 301000 tokens, max 300000") as caught:
        await sdk.embeddings.create(model="e", input=["word " * 7_000] * 43)
    assert caught.value.code == "max_tokens_per_request"
    with pytest.raises(openai.BadRequestError, match="input' is invalid"):
        await sdk.embeddings.create(model="e", input=["a", ""])


async def test_a_chat_over_the_context_has_its_code(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 128_001}])
    assert caught.value.code == "context_length_exceeded"


async def test_a_fault_may_be_for_one_text_only(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    """One bad item of a batch can be made refusable."""
    fault = {"kind": "status", "status": 400, "code": "context_length_exceeded", "match": 'a "bad" text', "times": 99}
    await model.faults({**fault, "path": "embeddings"})
    for _ in range(2):
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.embeddings.create(model="e", input=["good", 'this is a "bad" text'])
        assert caught.value.code == "context_length_exceeded"
    await sdk.embeddings.create(model="e", input=["good"])
    await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": 'a "bad" text'}])


async def test_usage_may_be_wrong(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    await model.faults({"kind": "zero_usage"}, {"kind": "twice_usage"})
    zero = await sdk.chat.completions.create(model="m", messages=ASK)
    twice = await sdk.chat.completions.create(model="m", messages=ASK)
    right = await sdk.chat.completions.create(model="m", messages=ASK)
    assert zero.usage is not None
    assert twice.usage is not None
    assert right.usage is not None
    assert (zero.usage.total_tokens, twice.usage.total_tokens) == (0, 2 * right.usage.total_tokens)
    assert (await model.stats())["inputTokens"] == 3 * right.usage.prompt_tokens


async def test_faults_of_embeddings(sdk: openai.AsyncOpenAI, model: DevModel) -> None:
    await model.faults(*({"kind": kind, "path": "embeddings"} for kind in ("no_usage", "drop", "bad_json")))
    answer = await sdk.embeddings.create(model="e", input="a text")
    assert getattr(answer, "usage", None) is None
    with pytest.raises(openai.APIConnectionError):
        await sdk.embeddings.create(model="e", input="a text")
    with pytest.raises(ValueError, match=r"Unterminated|Expecting|truncated"):
        await sdk.embeddings.create(model="e", input="a text")
    await model.faults({"kind": "stall", "path": "embeddings"})
    with pytest.raises(openai.APITimeoutError):
        await sdk.embeddings.create(model="e", input="a text", timeout=0.3)
