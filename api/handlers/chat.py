"""Chat: a model's answer as plain frames of text, or whole. Behind each is a `chat` job."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from aiohttp import web
from msgspec import Meta

from api.admission import NO_MESSAGES
from api.chat import answer_stream, naming, parse_place, whole_answer
from api.handlers.jobs import check, take_in
from api.keys import JOBS, PRINCIPAL, SETTINGS
from api.pinning import NOTHING
from api.wire import answer, idempotency, invalid, query, read_body, read_json
from shared.errors import RefusedError
from shared.jobs import Output, UsageView, usage_of
from shared.rules import Rule, given, some_of
from shared.specs import ChatInput, ChatJob, ChatMessage, PromptRef, ShortText, Wire

PLACE = "Last-Event-ID"
MAX_GRACE_S = 3_600


class ChatRequest(Wire, frozen=True):
    """A conversation, and who asks. `disconnectGraceSeconds`: the chat is cancelled when nobody has listened for so
    long (by default the setting of that name)."""

    RULES: ClassVar[list[Rule]] = [{"anyOf": [given("prompt"), some_of("messages")]}]

    messages: Annotated[list[ChatMessage], Meta(max_length=1_000)] = msgspec.field(default_factory=list)
    model: ShortText | None = None
    prompt: PromptRef | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    user: ShortText | None = None
    disconnect_grace_seconds: Annotated[float, Meta(ge=1, le=MAX_GRACE_S)] | None = None


class ChatAnswer(Output, frozen=True):
    """The whole answer, why it ended (`stop`, `length`, …), and the job behind it."""

    text: str
    finish_reason: str
    job_id: str
    model: str
    usage: UsageView


class _Result(msgspec.Struct, rename="camel"):
    text: str
    finish_reason: str


async def stream(request: web.Request) -> web.StreamResponse:
    """POST /api/chat/stream. With `Last-Event-ID` it resumes that chat and starts none."""
    query(request, ())
    if _place(request) is not None:
        await read_body(request, any_type=True)  # what a client sends again is not looked at
        return await _resume(request)
    chat, body = await read_json(request, ChatRequest)
    return await _answer_stream(request, chat, body)


async def stream_message(request: web.Request) -> web.StreamResponse:
    """GET /api/chat/stream?message=…: for clients that can only read an address."""
    names = ("message", "model", "maxTokens", "temperature", "user", "disconnectGraceSeconds")
    parameters = query(request, names)
    if _place(request) is not None:
        return await _resume(request)
    message = parameters.pop("message", "")
    if not message.strip():
        raise invalid("?message", "this parameter is required: what to say to the model")
    try:
        chat = msgspec.convert(
            {"messages": [{"role": "user", "content": message}], **parameters}, ChatRequest, strict=False
        )
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        raise invalid(f"?{path.rstrip('`')}", what) from None
    return await _answer_stream(request, chat, request.rel_url.raw_query_string.encode())


async def resume(request: web.Request) -> web.StreamResponse:
    """GET /api/chat/stream/{jobId}: from the start, or after `Last-Event-ID`."""
    query(request, ("ticket",))
    return await _resume(request, request.match_info["jobId"])


async def whole(request: web.Request) -> web.Response:
    """POST /api/chat: the same as one JSON object."""
    query(request, ())
    chat, body = await read_json(request, ChatRequest)
    job_id, grace_ms, headers = await _admit(request, chat, body)
    row = await whole_answer(request, job_id, grace_ms)
    result = msgspec.json.decode(row.raw("result") or b"{}", type=_Result)
    usage = usage_of(row)
    shown = ChatAnswer(
        text=result.text, finish_reason=result.finish_reason, job_id=job_id, model=row.text("model") or "", usage=usage
    )
    return answer(shown, headers={**headers, **naming(job_id)})


async def _answer_stream(request: web.Request, chat: ChatRequest, body: bytes) -> web.StreamResponse:
    job_id, grace_ms, headers = await _admit(request, chat, body)
    return await answer_stream(request, job_id, grace_ms, headers=headers)


async def _admit(request: web.Request, chat: ChatRequest, body: bytes) -> tuple[str, int, dict[str, str]]:
    """Takes the chat in as a job. Returns its id, its grace in ms, and the headers of a replay."""
    grace_s = chat.disconnect_grace_seconds or request.app[SETTINGS].disconnect_grace_seconds
    grace_ms = round(grace_s * 1000)
    job = ChatJob(
        input=ChatInput(messages=chat.messages, max_tokens=chat.max_tokens, temperature=chat.temperature),
        model=chat.model,
        prompt=chat.prompt,
        user=chat.user,
    )
    if not chat.messages and chat.prompt is None:
        raise invalid("$.messages", NO_MESSAGES)
    digest, body_hash = idempotency(request, body)
    chosen = NOTHING
    if not await request.app[JOBS].was_answered(request[PRINCIPAL].tenant, digest, body_hash):
        chosen = await check(request, job)
    admitted = await take_in(request, job, digest, body_hash, chosen=chosen, grace_ms=grace_ms)
    if not admitted.replayed:
        return admitted.job_id, grace_ms, {}
    # It may have been retried since then: then it needs no listener any more.
    row = await request.app[JOBS].view(request[PRINCIPAL].tenant, admitted.job_id)
    return admitted.job_id, row.number("grace_ms"), {"Idempotent-Replayed": "true"}


async def _resume(request: web.Request, wanted: str | None = None) -> web.StreamResponse:
    place = _place(request)
    job_id, after = parse_place(place) if place is not None else (wanted or "", 0)
    if wanted is not None and job_id != wanted:
        raise invalid(PLACE, "is the place of another chat than the one in the address")
    row = await request.app[JOBS].view(request[PRINCIPAL].tenant, job_id)
    if row.text("type") != "chat":
        raise RefusedError("not_found", f"{job_id} is no chat; its events are at /api/jobs/{job_id}/stream.")
    newest = row.number("seq")
    # Its last event is read once more: it says how the chat ended.
    after = min(after, newest - 1 if row.is_final else newest)
    return await answer_stream(request, job_id, row.number("grace_ms"), after=after, headers={})


def _place(request: web.Request) -> str | None:
    return request.headers.get(PLACE, "").strip() or None
