"""The OpenAI SDK reads what each server really sends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from tests.conftest import DevModel
from tests.test_dev_tools import BOTH, CALCULATE, SEARCH

NAMES = ["openai", "azure", "vllm", "ollama"]
DOCUMENT = "<document>\nThe crane costs 27 million. The quay is closed.\n</document>\n\n"
QUESTION: Any = [{"role": "user", "content": DOCUMENT + "What does the crane cost?"}]
FORM: Any = {
    "type": "json_schema",
    "json_schema": {"name": "form", "schema": {"type": "object", "properties": {"cost": {"type": "string"}}}},
}


@pytest.fixture
async def sdk(model: DevModel) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{model.base}/v1", api_key="x", max_retries=0) as client:
        yield client


async def events(model: DevModel, **body: Any) -> list[dict[str, Any]]:
    """The stream's payloads, as they are on the wire."""
    async with aiohttp.ClientSession() as session:
        request = {"model": "m", "messages": QUESTION, "stream": True, **body}
        async with session.post(f"{model.base}/v1/chat/completions", json=request) as response:
            lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.parametrize("name", NAMES)
async def test_text_streamed_and_whole(sdk: openai.AsyncOpenAI, model: DevModel, name: str) -> None:
    await model.profile(name)
    options: Any = {"include_usage": True}
    stream = await sdk.chat.completions.create(model="m", messages=QUESTION, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The crane costs 27 million."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    if name == "ollama":
        assert usage is None
    else:
        assert usage is not None
        assert usage.completion_tokens == (await model.stats())["outputTokens"]
    whole = await sdk.chat.completions.create(model="m", messages=QUESTION)
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert 2 * whole.usage.completion_tokens == (await model.stats())["outputTokens"]


@pytest.mark.parametrize("name", NAMES)
async def test_tool_calls_assemble(sdk: openai.AsyncOpenAI, model: DevModel, name: str) -> None:
    """By index, or by id where a server gives all of them the same index."""
    await model.profile(name)
    ask: Any = {"model": "m", "messages": [{"role": "user", "content": BOTH}], "tools": [SEARCH, CALCULATE]}
    calls: dict[Any, dict[str, str]] = {}
    current: Any = None
    async for chunk in await sdk.chat.completions.create(**ask, stream=True):
        for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            current = part.id or current
            call = calls.setdefault(current, {"name": "", "arguments": ""})
            call["name"] += (part.function and part.function.name) or ""
            call["arguments"] += (part.function and part.function.arguments) or ""
            assert part.index == (0 if name == "ollama" else len(calls) - 1)
    whole = (await sdk.chat.completions.create(**ask)).choices[0]
    streamed = [(call["name"], call["arguments"]) for call in calls.values()]
    assert streamed == [(call.function.name, call.function.arguments) for call in whole.message.tool_calls]
    assert [name for name, _ in streamed] == ["search_documents", "calculate"]
    assert whole.finish_reason == "tool_calls"


@pytest.mark.parametrize("name", ["openai", "azure", "vllm"])
async def test_the_sdks_own_accumulator(sdk: openai.AsyncOpenAI, model: DevModel, name: str) -> None:
    """Not for Ollama: with one index for all calls it merges them into one."""
    await model.profile(name)
    ask: Any = {"model": "m", "messages": [{"role": "user", "content": BOTH}], "tools": [SEARCH, CALCULATE]}
    async with sdk.chat.completions.stream(**ask) as stream:
        completion = await stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == [
        {"query": "harbour's depth"},
        {"expression": "12 * 7.5"},
    ]


@pytest.mark.parametrize("name", NAMES)
async def test_json_is_fenced_by_ollama_only(sdk: openai.AsyncOpenAI, model: DevModel, name: str) -> None:
    await model.profile(name)
    answer = await sdk.chat.completions.create(model="m", messages=QUESTION, response_format=FORM)
    text = answer.choices[0].message.content or ""
    assert text.startswith("```json\n") == (name == "ollama")
    assert json.loads(text.strip("`").removeprefix("json"))


@pytest.mark.parametrize("name", NAMES)
async def test_embeddings(sdk: openai.AsyncOpenAI, model: DevModel, name: str) -> None:
    """The SDK asks for base64 by itself, and takes floats too."""
    await model.profile(name)
    answer = await sdk.embeddings.create(model="e", input=["a ship", "a law"])
    assert [len(entry.embedding) for entry in answer.data] == [256, 256]
    raw = await sdk.embeddings.with_raw_response.create(model="e", input="a ship", encoding_format="base64")
    assert isinstance(json.loads(raw.content)["data"][0]["embedding"], list if name == "ollama" else str)


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [("openai", "rate_limit_exceeded", "requests"), ("azure", "429", None), ("vllm", "429", "RateLimitError"),
     ("ollama", None, "api_error")],
)  # fmt: skip
async def test_errors(sdk: openai.AsyncOpenAI, model: DevModel, name: str, code: Any, kind: str | None) -> None:
    await model.profile(name)
    await model.limits(inFlight=0)
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.chat.completions.create(model="m", messages=QUESTION)
    assert (caught.value.code and str(caught.value.code), caught.value.type) == (code, kind)


async def test_what_is_special_on_the_wire(model: DevModel) -> None:
    options = {"include_usage": True}
    first, *_, last = await events(model, stream_options=options)
    assert first["obfuscation"]
    assert first["usage"] is None
    assert last["choices"] == []
    await model.profile("azure")
    first, second, third, *_ = await events(model)
    assert (first["choices"], first["model"], first["id"]) == ([], "", "")
    assert first["prompt_filter_results"][0]["content_filter_results"]["hate"]["severity"] == "safe"
    assert second["choices"][0]["content_filter_results"] == {}
    assert third["choices"][0]["content_filter_results"]["violence"] == {"filtered": False, "severity": "safe"}
    await model.profile("vllm")
    chunks = await events(model)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "reasoning_content" in chunks[1]["choices"][0]["delta"]
    assert chunks[-1]["choices"][0]["stop_reason"] is None
    await model.profile("ollama")
    chunks = await events(model, stream_options=options)
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_ollama"}
    assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks)
