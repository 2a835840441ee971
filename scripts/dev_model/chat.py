"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from scripts.dev_model.answer import Answer, input_tokens_of, make_answer, model_of
from scripts.dev_model.state import STATE, State, body_of, upset_usage
from scripts.extractive import count_tokens

MAX_INPUT_TOKENS: Final = 128_000
FAILED: Final = frozenset({"cut", "truncate", "drop", "status"})  # kinds of faults that leave no whole answer


async def chat(request: web.Request) -> web.StreamResponse:
    """The endpoint."""
    state = request.app[STATE]
    body = await body_of(request)
    if isinstance(body, web.Response):
        return body
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(entry, dict) for entry in messages):
        return state.error(400, "'messages' must be a list of messages with at least one entry.", param="messages")
    tokens = input_tokens_of(body)
    call = state.admit("chat", body, tokens)
    if isinstance(call, web.Response):
        return call
    fault = state.faults.take("chat", body)
    try:
        if (refusal := state.fault_status(fault, "chat")) is not None:
            call["inputTokens"], call["status"] = 0, refusal.status
            return refusal
        if tokens > MAX_INPUT_TOKENS:
            call["inputTokens"], call["status"] = 0, 400
            return state.error(
                400,
                f"This model's maximum context length is {MAX_INPUT_TOKENS} tokens. However, your messages resulted in "
                f"{tokens} tokens. Please reduce the length of the messages.",
                code="context_length_exceeded",
                param="messages",
            )
        if fault.get("kind") == "stall":
            await asyncio.sleep(fault.get("seconds", 3600))
        if fault.get("kind") == "drop" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        answer = await _answer(state, body, fault)
        if body.get("stream"):
            return await _stream(request, body, answer, call, fault)
        await _pace(state, count_tokens(answer.content or ""))
        call["outputTokens"] = answer.tokens
        frame = state.profile.frame(model_of(body))
        return _json(state.profile.whole(frame, answer, upset_usage(_usage(answer, tokens), fault)))
    except (asyncio.CancelledError, ConnectionResetError):
        state.books.end(call, "closed")
        raise
    finally:
        state.books.end(call, "fault" if fault.get("kind") in FAILED else "done")


async def _answer(state: State, body: dict[str, Any], fault: dict[str, Any]) -> Answer:
    profile = state.profile
    answer = await asyncio.to_thread(make_answer, body, fence_json=profile.fence_json, reasoning=profile.reasoning)
    answer.per_chunk = int(state.pace["tokensPerChunk"])
    if fault.get("kind") == "bad_json":
        answer.cut_content()
    if fault.get("kind") == "refuse":
        answer.finish = "content_filter"
    if answer.calls and (upset := state.faults.take("chat", body, calls_tools=True)):
        if upset["kind"] == "thought":
            answer.think_aloud()
        else:
            answer.cut_arguments()
    return answer


def _usage(answer: Answer, tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": tokens,
        "completion_tokens": answer.tokens,
        "total_tokens": tokens + answer.tokens,
    }


def _json(payload: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(payload), content_type="application/json")


async def _pace(state: State, tokens: int) -> None:
    """Takes the time that a model of the set speed would."""
    rate = state.pace["tokensPerSecond"]
    await asyncio.sleep(state.pace["firstTokenSeconds"] + (tokens / rate if rate else 0))


async def _stream(
    request: web.Request, body: dict[str, Any], answer: Answer, call: dict[str, Any], fault: dict[str, Any]
) -> web.StreamResponse:
    """Server-Sent Events; tokens are counted as they are sent."""
    state, kind = request.app[STATE], fault.get("kind")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    options = body.get("stream_options") or {}
    rate = fault.get("tokensPerSecond") if kind == "slow" else state.pace["tokensPerSecond"]
    await asyncio.sleep(state.pace["firstTokenSeconds"])
    await response.prepare(request)
    usage = upset_usage(_usage(answer, call["inputTokens"]), fault) if options.get("include_usage") else None
    frame = state.profile.frame(model_of(body))
    cut_after = fault.get("after", answer.tokens // 2) if kind in ("cut", "truncate") else None
    for chunk in state.profile.stream(frame, answer, usage, options):
        if cut_after is not None and chunk.tokens and call["outputTokens"] + chunk.tokens > cut_after:
            if kind == "truncate":
                # A proxy in between that ends the body as if it were whole.
                await response.write_eof()
            elif request.transport is not None:
                request.transport.abort()
            return response
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client went away")
        await response.write(b"data: " + msgspec.json.encode(chunk.payload) + b"\n\n")
        call["outputTokens"] += chunk.tokens
        if rate and chunk.tokens:
            await asyncio.sleep(chunk.tokens / rate)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response
