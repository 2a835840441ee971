"""POST /v1/embeddings.

The words of its refusals: https://github.com/microsoft/PubSec-Info-Assistant/issues/755 (one text too long),
https://github.com/assafelovic/gpt-researcher/issues/1524 (all texts together),
https://github.com/openai/openai-python/issues/576 (an empty text).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from scripts.dev_model.embedder import coded
from scripts.dev_model.state import STATE, State, body_of, upset_usage
from scripts.extractive import count_tokens

EMBEDDING_MODEL: Final = "errand-dev-embedding"
DIMENSIONS: Final = 256
MAX_TEXTS: Final = 2_048
MAX_TEXT_TOKENS: Final = 8_191
MAX_REQUEST_TOKENS: Final = 300_000
FAILED: Final = frozenset({"drop", "status"})


async def embeddings(request: web.Request) -> web.Response:
    """The endpoint."""
    state = request.app[STATE]
    body = await body_of(request)
    if isinstance(body, web.Response):
        return body
    texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
    dimensions = body.get("dimensions", DIMENSIONS)
    if (refusal := _invalid(state, texts, dimensions)) is not None:
        return refusal
    assert isinstance(texts, list)
    counts = await asyncio.to_thread(lambda: [count_tokens(text) for text in texts])
    tokens = sum(counts)
    call = state.admit("embeddings", body, tokens)
    if isinstance(call, web.Response):
        return call
    fault = state.faults.take("embeddings", body)
    try:
        refusal = state.fault_status(fault, "embeddings") or _too_long(state, counts)
        if refusal is not None:
            call["inputTokens"], call["status"] = 0, refusal.status
            return refusal
        if fault.get("kind") == "stall":
            await asyncio.sleep(fault.get("seconds", 3600))
        if fault.get("kind") == "drop" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        await asyncio.sleep(state.limits.latency_seconds)
        usage = upset_usage({"prompt_tokens": tokens, "total_tokens": tokens}, fault)
        payload = await asyncio.to_thread(_payload, state, body, texts, dimensions, usage)
        if fault.get("kind") == "bad_json":
            payload = payload[: len(payload) // 2]
        return web.Response(body=payload, content_type="application/json")
    except (asyncio.CancelledError, ConnectionResetError):
        state.books.end(call, "closed")
        raise
    finally:
        state.books.end(call, "fault" if fault.get("kind") in FAILED else "done")


def _payload(
    state: State, body: dict[str, Any], texts: list[str], dimensions: int, usage: dict[str, Any] | None
) -> bytes:
    profile = state.profile
    encoding = "float" if profile.floats_only else body.get("encoding_format", "float")
    vectors = coded(state.embedder.embed(texts, dimensions), encoding)
    return msgspec.json.encode(profile.embeddings(body.get("model") or EMBEDDING_MODEL, vectors, usage))


def _invalid(state: State, texts: Any, dimensions: Any) -> web.Response | None:
    told = None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        told = "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
    elif len(texts) > MAX_TEXTS:
        told = f"Invalid 'input': array too long. Expected an array with maximum length {MAX_TEXTS}."
    elif not isinstance(dimensions, int) or not 1 <= dimensions <= DIMENSIONS:
        told = f"Invalid value for 'dimensions': must be between 1 and {DIMENSIONS}."
    return None if told is None else state.error(400, told, path="embeddings")


def _too_long(state: State, counts: list[int]) -> web.Response | None:
    longest, total = max(counts), sum(counts)
    if longest > MAX_TEXT_TOKENS:
        told = (
            f"This model's maximum context length is {MAX_TEXT_TOKENS} tokens, however you requested {longest} tokens "
            f"({longest} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
        )
        return state.error(400, told, path="embeddings")
    if total > MAX_REQUEST_TOKENS:
        told = f"Requested {total} tokens, max {MAX_REQUEST_TOKENS} tokens per request"
        return state.error(400, told, "max_tokens_per_request", code="max_tokens_per_request", path="embeddings")
    return None
