"""Search: what stands in a tenant's documents, and an answer from it. Behind each is a `search` job."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from api.chat import answer_stream, naming, parse_place, whole_answer
from api.handlers.jobs import check, take_in
from api.keys import JOBS, PRINCIPAL, REDIS, SETTINGS
from api.pinning import NOTHING
from api.search import SearchReader
from api.wire import answer, asks_for_stream, idempotency, invalid, query, read_body, read_json
from shared.codec import explain
from shared.errors import RefusedError
from shared.ids import new_id
from shared.jobs import usage_of
from shared.redis import redis_now_ms
from shared.search import SEARCH_ID, SearchRequest, SearchResult
from shared.specs import SearchInput, SearchJob

PLACE: Final = "Last-Event-ID"
IN_ADDRESS: Final = (
    "q",
    "minScore",
    "topK",
    "collection",
    "mode",
    "answer",
    "filter",
    "rerank",
    "version",
    "log",
    "user",
    "model",
)
FILTER: Final = "filter."

_result: Final = msgspec.json.Decoder(SearchResult).decode


async def post(request: web.Request) -> web.StreamResponse:
    """POST /api/search."""
    query(request, ())
    if (place := _place(request)) is not None:
        await read_body(request, any_type=True)  # what a client sends again is not looked at
        return await _resume(request, place)
    wanted, body = await read_json(request, SearchRequest)
    return await _search(request, wanted, body)


async def get(request: web.Request) -> web.StreamResponse:
    """GET /api/search?q=…: the same by the address."""
    parameters = query(request, IN_ADDRESS, prefix=FILTER, repeated="collection")
    if (place := _place(request)) is not None:
        return await _resume(request, place)
    wanted = _from_address(parameters, request.query.getall("collection", []))
    return await _search(request, wanted, request.rel_url.raw_query_string.encode())


def _from_address(parameters: dict[str, str], collections: list[str]) -> SearchRequest:
    if not parameters.get("q", "").strip():
        raise invalid("?q", "this parameter is required: what to look for")
    wanted: dict[str, Any] = {}
    conditions: dict[str, Any] = {}
    for name, value in parameters.items():
        if name.startswith(FILTER):
            conditions[name.removeprefix(FILTER)] = value
        elif name == "filter":
            try:
                conditions |= msgspec.json.decode(value, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise invalid("?filter", f"must be a JSON object: {error}") from None
        elif name == "collection":
            # A name may hold commas: given several times, each is one, and an empty one is none.
            named = collections if len(collections) > 1 else [part.strip() for part in value.split(",")]
            wanted[name] = [one for one in named if one] or value
        elif name in ("answer", "rerank", "log"):
            if value not in ("true", "false"):
                raise invalid(f"?{name}", "must be true or false")
            wanted[name] = value == "true"
        else:
            wanted[name] = value
    if conditions:
        wanted["filter"] = conditions
    try:
        return msgspec.convert(wanted, SearchRequest, strict=False)
    except msgspec.ValidationError as error:
        path, message = explain(error)
        raise invalid(f"?{path.lstrip('$.')}", message) from None


async def _search(request: web.Request, wanted: SearchRequest, body: bytes) -> web.StreamResponse:
    settings, tenant = request.app[SETTINGS], request[PRINCIPAL].tenant
    search_id = new_id(SEARCH_ID, await redis_now_ms(request.app[REDIS]))
    min_score = settings.search_min_score if wanted.min_score is None else wanted.min_score
    job = SearchJob(
        input=SearchInput(search_id=search_id, request=msgspec.to_builtins(wanted), min_score=min_score),
        model=wanted.model,
        prompt=wanted.prompt,
        user=wanted.user,
    )
    digest, body_hash = idempotency(request, body)
    chosen = NOTHING
    if not await request.app[JOBS].was_answered(tenant, digest, body_hash):
        chosen = await check(request, job)
    grace_ms = round(settings.disconnect_grace_seconds * 1000)
    admitted = await take_in(request, job, digest, body_hash, chosen=chosen, grace_ms=grace_ms)
    headers = {"Idempotent-Replayed": "true"} if admitted.replayed else {}
    if asks_for_stream(request):
        return await answer_stream(request, admitted.job_id, grace_ms, headers=headers, reader=SearchReader)
    row = await whole_answer(request, admitted.job_id, grace_ms)
    result = row.raw("result")
    if result is None:
        raise RefusedError("gone", "What this search found was erased.", headers=naming(admitted.job_id))
    found = _result(result)
    found = msgspec.structs.replace(found, job_id=admitted.job_id, usage=usage_of(row))
    return answer(found, headers={**headers, **naming(admitted.job_id)})


async def _resume(request: web.Request, place: str) -> web.StreamResponse:
    job_id, after = parse_place(place)
    row = await request.app[JOBS].view(request[PRINCIPAL].tenant, job_id)
    if row.text("type") != "search":
        raise RefusedError("not_found", f"{job_id} is no search.")
    newest = row.number("seq")
    # Its last event is read once more: it says how the search ended.
    after = min(after, newest - 1 if row.is_final else newest)
    return await answer_stream(request, job_id, row.number("grace_ms"), after=after, headers={}, reader=SearchReader)


def _place(request: web.Request) -> str | None:
    return request.headers.get(PLACE, "").strip() or None
