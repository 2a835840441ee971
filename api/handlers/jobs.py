"""Jobs: submit, read, list, cancel, retry, and their events."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from aiohttp import web

from api.admission import admitted_view, class_ms, record_of, schema_problems, timing_of
from api.keys import DOCUMENTS, EVENTS, HUB, JOBS, PRINCIPAL, SETTINGS
from api.live import follow
from api.sse import HEARTBEAT_S, stream_job
from api.wire import (
    accepts,
    answer,
    asks_for_stream,
    etag_of,
    idempotency,
    integer,
    invalid,
    matches,
    page_answer,
    page_of,
    preferred_wait_s,
    query,
    read_body,
    read_json,
    traceparent_of,
    wait_s,
)
from shared.clock import parse_rfc3339
from shared.codec import decode_body
from shared.errors import RefusedError
from shared.ids import time_part
from shared.jobs import JobRow, JobStatus, Output, retry_after_s, view_of
from shared.metrics import JOBS_ADMITTED, JOBS_REFUSED
from shared.specs import (
    JOB_TYPES,
    AnalysisJob,
    Priority,
    PromptRef,
    PublicJob,
    ShortText,
    Submission,
    Wire,
    type_of,
)
from shared.stores.jobs import Companion

MAX_SEQ = 10**15


class RetryRequest(Wire, frozen=True):
    """Optional body of a retry: drop the journal, or change the model of what is left."""

    from_: str | None = msgspec.field(default=None, name="from")
    model: ShortText | None = None
    prompt: PromptRef | None = None


class JobEventList(Output, frozen=True):
    """Answer of `GET /api/jobs/{id}/events`."""

    data: list[msgspec.Raw]
    has_more: bool
    next: int | None


async def submit(request: web.Request) -> web.StreamResponse:
    """POST /api/jobs."""
    query(request, ())
    job, body = await read_json(request, PublicJob)
    if not await request.app[JOBS].was_answered(request[PRINCIPAL].tenant, *idempotency(request, body)):
        await check(request, job)
    return await admit(request, job, body)


async def check(request: web.Request, job: Submission) -> None:
    """What the Structs cannot check: schemas, documents and prompts that a job names. Raises RefusedError."""
    problems = schema_problems(job)
    if job.prompt is not None:
        problems.append(("$.prompt.name", f"there is no prompt {job.prompt.name!r}"))
    if isinstance(job, AnalysisJob) and (document_id := job.input.document.document_id) is not None:
        try:
            await request.app[DOCUMENTS].record(request[PRINCIPAL].tenant, document_id)
        except RefusedError as error:
            problems.append(("$.input.document.documentId", error.detail))
    if problems:
        raise RefusedError(
            "invalid_request", "; ".join(f"{path}: {text}" for path, text in problems), errors=tuple(problems)
        )


async def admit(
    request: web.Request, job: Any, body: bytes, *, companion: Companion | None = None
) -> web.StreamResponse:
    """Takes a checked job in and answers as the request prefers: 202, 200 after a wait, or the stream inline."""
    settings = request.app[SETTINGS]
    tenant = request[PRINCIPAL].tenant
    digest, body_hash = idempotency(request, body)
    kind = type_of(job)
    try:
        admitted = await request.app[JOBS].admit(
            tenant=tenant,
            lane=job.LANE,
            record=record_of(job, settings, traceparent_of(request)),
            idem_digest=digest,
            idem_body=body_hash,
            companion=companion,
            **timing_of(job, settings),
        )
    except RefusedError as error:
        JOBS_REFUSED.labels(error.code).inc()
        raise
    if not admitted.replayed:
        JOBS_ADMITTED.labels(kind, job.priority.value).inc()
    headers = {"Location": f"/api/jobs/{admitted.job_id}"}
    if admitted.replayed:
        headers["Idempotent-Replayed"] = "true"
    if asks_for_stream(request):
        return await stream_job(request, admitted.job_id, 0, {**headers, "X-Job-Id": admitted.job_id})
    if seconds := preferred_wait_s(request):
        row = await wait_final(request, admitted.job_id, seconds)
        if row.is_final:
            return answer(view_of(row), headers={**headers, "Preference-Applied": f"wait={seconds}"})
    return answer(admitted_view(job, admitted, settings), status=202, headers=headers)


async def wait_final(request: web.Request, job_id: str, seconds: float) -> JobRow:
    """The job when it is final, or as it is after `seconds`."""
    store, tenant = request.app[JOBS], request[PRINCIPAL].tenant
    row = await store.view(tenant, job_id)
    if row.is_final or seconds <= 0:
        return row
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            frames = follow(
                request.app[HUB],
                request.app[EVENTS],
                job_id,
                after=row.number("seq"),
                heartbeat_s=HEARTBEAT_S,
            )
            async with aclosing(frames):
                async for _ in frames:
                    pass
    return await store.view(tenant, job_id)


def view_answer(request: web.Request, row: JobRow) -> web.Response:
    """A job view with its ETag; 304 when the client has it already; Retry-After while the job is not final."""
    view = view_of(row)
    body = msgspec.json.encode(view)
    etag = etag_of(body)
    if view.queue is not None and view.queue.eta is not None:
        # Time passes, and the estimate with it: that alone is no news.
        timeless = msgspec.structs.replace(view, queue=msgspec.structs.replace(view.queue, eta=None))
        etag = f"W/{etag_of(msgspec.json.encode(timeless))}"
    headers = {"ETag": etag}
    if (wait_s := retry_after_s(row)) is not None:
        headers["Retry-After"] = str(wait_s)
    if matches(request.headers.get("If-None-Match"), etag.removeprefix("W/")):
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, headers=headers, content_type="application/json", charset="utf-8")


async def show(request: web.Request) -> web.Response:
    """GET /api/jobs/{id}."""
    seconds = wait_s(query(request, ("wait",)))
    return view_answer(request, await wait_final(request, request.match_info["id"], seconds))


async def list_jobs(request: web.Request) -> web.Response:
    """GET /api/jobs."""
    names = ("limit", "after", "status", "type", "priority", "user", "createdAfter", "createdBefore")
    parameters = query(request, names, prefix="metadata.")
    limit, after = page_of(parameters, "job")
    known: dict[str, list[str]] = {"status": list(JobStatus), "type": list(JOB_TYPES), "priority": list(Priority)}
    filters = {}
    for name, values in known.items():
        if name in parameters:
            if parameters[name] not in values:
                raise invalid(f"?{name}", f"must be one of {', '.join(values)}")
            filters[name] = parameters[name]
    if "user" in parameters:
        filters["user"] = parameters["user"]
    metadata = {name[len("metadata.") :]: value for name, value in parameters.items() if name.startswith("metadata.")}
    high, low = "+", "-"
    if "createdBefore" in parameters:
        high = f"(job_{_time_bound(parameters, 'createdBefore')}"
    if "createdAfter" in parameters:
        low = f"[job_{_time_bound(parameters, 'createdAfter')}"
    if after is not None:
        high = min(high, f"({after}") if high != "+" else f"({after}"
    rows, cursor = await request.app[JOBS].page(
        request[PRINCIPAL].tenant, limit=limit, high=high, low=low, filters=filters, metadata=metadata
    )
    return page_answer(request, [view_of(row) for row in rows], cursor)


def _time_bound(parameters: dict[str, str], name: str) -> str:
    # A `+` of a zone arrives as a blank when the client did not escape it.
    try:
        return time_part(max(0, parse_rfc3339(parameters[name].replace(" ", "+"))))
    except (ValueError, OverflowError) as error:
        raise invalid(f"?{name}", f"must be an RFC 3339 time: {error}") from None


async def cancel(request: web.Request) -> web.Response:
    """DELETE /api/jobs/{id}."""
    seconds = wait_s(query(request, ("wait",)))
    job_id = request.match_info["id"]
    await request.app[JOBS].cancel(request[PRINCIPAL].tenant, job_id)
    row = await wait_final(request, job_id, seconds)
    return answer(view_of(row), status=200 if row.is_final else 202)


async def retry(request: web.Request) -> web.Response:
    """POST /api/jobs/{id}/retry."""
    query(request, ())
    wish = RetryRequest()
    if request.body_exists and (body := await read_body(request)).strip():
        wish = decode_body(body, RetryRequest)
    if wish.from_ not in (None, "start"):
        raise invalid("$.from", 'must be "start"')
    if wish.prompt is not None:
        raise invalid("$.prompt.name", f"there is no prompt {wish.prompt.name!r}")
    store, tenant, settings = request.app[JOBS], request[PRINCIPAL].tenant, request.app[SETTINGS]
    job_id = request.match_info["id"]
    kind, spec = await store.spec(tenant, job_id)
    job = msgspec.json.decode(spec, type=JOB_TYPES[kind])
    await store.retry(
        tenant,
        job_id,
        from_start=wish.from_ == "start",
        record={"model": wish.model} if wish.model else {},
        class_ms=class_ms(job, settings),
        expires_in_ms=round(job.expires_in_seconds * 1000),
    )
    row = await store.view(tenant, job_id)
    view = msgspec.structs.replace(view_of(row), status=JobStatus.QUEUED)
    return answer(view, status=202, headers={"Location": f"/api/jobs/{job_id}"})


async def stream(request: web.Request) -> web.StreamResponse:
    """GET /api/jobs/{id}/stream."""
    parameters = query(request, ("after",))
    if not accepts(request, "text/event-stream"):
        raise RefusedError("not_acceptable", "This resource is text/event-stream only; the Accept header excludes it.")
    job_id = request.match_info["id"]
    row = await request.app[JOBS].view(request[PRINCIPAL].tenant, job_id)
    header = request.headers.get("Last-Event-ID")
    if header is not None and header.strip():
        parameters["Last-Event-ID"] = header.strip()
        after = integer(parameters, "Last-Event-ID", 0, low=0, high=MAX_SEQ)
    else:
        after = integer(parameters, "after", 0, low=0, high=MAX_SEQ)
    newest = row.number("seq")
    if row.is_final and after >= newest:
        return web.Response(status=204)
    return await stream_job(request, job_id, min(after, newest), {"X-Job-Id": job_id})


async def events(request: web.Request) -> web.Response:
    """GET /api/jobs/{id}/events."""
    parameters = query(request, ("after", "limit"))
    job_id = request.match_info["id"]
    await request.app[JOBS].view(request[PRINCIPAL].tenant, job_id)
    after = integer(parameters, "after", 0, low=0, high=MAX_SEQ)
    limit = integer(parameters, "limit", 200, low=1, high=1_000)
    found = await request.app[EVENTS].read(job_id, after=after, limit=limit + 1)
    page, more = found[:limit], len(found) > limit
    following = page[-1].seq if more else None
    return answer(JobEventList(data=[msgspec.Raw(event.to_json()) for event in page], has_more=more, next=following))
