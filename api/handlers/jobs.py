"""Jobs: submit, read, list, cancel, retry, and their events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from api.admission import (
    START_S,
    admitted_view,
    class_ms,
    documents_of,
    message_problems,
    model_of,
    prompt_fields,
    record_of,
    schema_problems,
    timing_of,
    tool_problems,
    url_problems,
)
from api.batches import stored_form
from api.hooks import webhook_problems
from api.keys import (
    AUDIENCE,
    BLOBS,
    DOCUMENTS,
    EVENTS,
    HUB,
    JOBS,
    LIMITS,
    PINNING,
    PRICES,
    PRINCIPAL,
    SETTINGS,
    STANDING,
    TICKETS,
)
from api.live import follow
from api.pinning import NOTHING, BadPromptError, Chosen
from api.presence import until_hang_up
from api.sse import stream_job
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
    wait_s,
)
from shared.batch import MEDIA_TYPE
from shared.clock import monotonic_s, parse_rfc3339, rfc3339
from shared.codec import decode_body
from shared.errors import RefusedError
from shared.ids import time_part
from shared.jobs import JobRow, JobStatus, JobView, Output, retry_after_s, view_of
from shared.metrics import JOBS_ADMITTED, JOBS_REFUSED
from shared.specs import (
    JOB_TYPES,
    AnyJob,
    EmbeddingJob,
    Priority,
    PromptRef,
    PublicJob,
    ShortText,
    StoredEmbeddingJob,
    Submission,
    Wire,
    type_of,
)
from shared.stores.jobs import Admitted
from shared.stores.tickets import ends_ms

MAX_SEQ = 10**15
EXPIRY_S = 1.0


class RetryRequest(Wire, frozen=True):
    """Optional body of a retry: drop the journal, or change the model of what is left."""

    from_: Literal["start"] | None = msgspec.field(default=None, name="from")
    model: ShortText | None = None
    prompt: PromptRef | None = None


class GivenInput(Wire, frozen=True):
    """A person's answer: `requestId` is that of the job's `waiting`, `value` any JSON value."""

    request_id: Annotated[str, Meta(min_length=1, max_length=256)]
    value: Any


class StreamTicket(Output, frozen=True):
    """For `?ticket=` of this one job's stream, until five minutes after the job's end; `expiresAt` estimates
    that while the job runs: its time-outs and attempts, if nothing else holds it up."""

    ticket: str
    expires_at: str


class JobEventList(Output, frozen=True):
    """Answer of `GET /api/jobs/{id}/events`."""

    data: list[msgspec.Raw]
    has_more: bool
    next: int | None


async def submit(request: web.Request) -> web.StreamResponse:
    """POST /api/jobs."""
    query(request, ())
    job, body = await read_json(request, PublicJob)
    chosen = NOTHING
    if not await request.app[JOBS].was_answered(request[PRINCIPAL].tenant, *idempotency(request, body)):
        chosen = await check(request, job)
    return await admit(request, job, body, chosen=chosen)


async def check(request: web.Request, job: Submission, root: str = "$") -> Chosen:
    """What the Structs cannot check: schemas, documents and prompts that a job names; the prompts that it gets. `root`
    is the job's JSON path. Raises RefusedError."""
    settings, chosen = request.app[SETTINGS], NOTHING
    problems = schema_problems(job) + tool_problems(job, settings) + url_problems(job, settings) + message_problems(job)
    problems += webhook_problems(job, settings)
    try:
        chosen = await request.app[PINNING].choose(request[PRINCIPAL].tenant, job, job.prompt)
    except BadPromptError as error:
        problems += [(f"$.prompt{path}", text) for path, text in error.problems]
    for path, document_id in documents_of(job):
        try:
            row = await request.app[DOCUMENTS].record(request[PRINCIPAL].tenant, document_id)
        except RefusedError as error:
            problems.append((path, error.detail))
            continue
        if isinstance(job, EmbeddingJob) and row.get("media_type") != MEDIA_TYPE:
            problems.append((path, "is no batch file; upload NDJSON with `index=false`"))
    if problems:
        problems = [(path.replace("$", root, 1), text) for path, text in problems]
        raise RefusedError(
            "invalid_request", "; ".join(f"{path}: {text}" for path, text in problems), errors=tuple(problems)
        )
    return chosen


async def admit(request: web.Request, job: Any, body: bytes, *, chosen: Chosen) -> web.StreamResponse:
    """Takes a checked job in and answers as the request prefers: 202, 200 after a wait, or the stream inline."""
    admitted = await take_in(request, job, *idempotency(request, body), chosen=chosen)
    headers = {"Location": f"/api/jobs/{admitted.job_id}"}
    if admitted.replayed:
        headers["Idempotent-Replayed"] = "true"
    if asks_for_stream(request):
        return await stream_job(request, admitted.job_id, 0, {**headers, "X-Job-Id": admitted.job_id})
    if seconds := preferred_wait_s(request):
        row = await wait_final(request, admitted.job_id, seconds)
        if row.is_final:
            return answer(view_of(row), headers={**headers, "Preference-Applied": f"wait={seconds}"})
    return answer(await first_view(request, job, admitted, chosen), status=202, headers=headers)


async def first_view(request: web.Request, job: Submission, admitted: Admitted, chosen: Chosen) -> JobView:
    """The job as it was at admission, also when that was an earlier request's."""
    view = admitted_view(job, admitted, request.app[SETTINGS], chosen)
    if not admitted.replayed:
        return view
    then = view_of(await request.app[JOBS].view(request[PRINCIPAL].tenant, admitted.job_id))
    return msgspec.structs.replace(view, prompt=then.prompt, model=then.model)


async def take_in(
    request: web.Request,
    job: PublicJob | AnyJob,
    digest: str | None,
    body_hash: str | None,
    *,
    chosen: Chosen,
    grace_ms: int | None = None,
) -> Admitted:
    """Admits a checked job with its prompts; `digest` and `body_hash` are those of its idempotency key, if it has one.

    With `grace_ms` it is a chat whose client waits for it: it starts at once or not at all, and ends when nobody has
    listened for so long.

    Raises RefusedError.
    """
    settings = request.app[SETTINGS]
    timing = timing_of(job, settings)
    if grace_ms is not None:
        # The client is told before; this is for one that is gone.
        timing["expires_in_ms"] = round((START_S + EXPIRY_S) * 1000)
    made, size_bytes = None, 0
    stored: AnyJob
    if isinstance(job, EmbeddingJob):
        stored, made, size_bytes = await stored_form(request, job)
    else:
        stored = job
    try:
        admitted = await request.app[JOBS].admit(
            tenant=request[PRINCIPAL].tenant,
            lane=job.LANE,
            record=record_of(
                stored,
                settings,
                grace_ms=grace_ms,
                size_bytes=size_bytes,
                blobs=made,
                key=request[PRINCIPAL].key_id,
                chosen=chosen,
            ),
            idem_digest=digest,
            idem_body=body_hash,
            patience_ms=round(START_S * 1000) if grace_ms is not None else None,
            unpriced=is_unpriced(request, model_of(job, settings, chosen.model)),
            **timing,
        )
    except RefusedError as error:
        JOBS_REFUSED.labels(error.code).inc()
        if error.code in ("rate_limited", "budget_exhausted") and job.user is not None:
            principal, store = request[PRINCIPAL], request.app[LIMITS].store
            request[STANDING] = await store.standing(principal.tenant, principal.key_id, job.user)
        if made is not None:
            await request.app[BLOBS].delete(made)
        raise
    if made is not None and admitted.replayed:
        await request.app[BLOBS].delete(made)
    request[STANDING] = admitted.standing
    if not admitted.replayed:
        JOBS_ADMITTED.labels(type_of(job), job.priority.value).inc()
    return admitted


def is_unpriced(request: web.Request, model: str) -> bool:
    """Whether no price of a model is known."""
    return request.app[PRICES].price(model) is None


async def wait_final(request: web.Request, job_id: str, seconds: float) -> JobRow:
    """The job when it is final, or as it is after `seconds`."""
    store, tenant = request.app[JOBS], request[PRINCIPAL].tenant
    row = await store.view(tenant, job_id)
    if row.is_final or seconds <= 0:
        return row
    deadline = monotonic_s() + seconds
    with request.app[AUDIENCE].listener(job_id, row.number("grace_ms")), until_hang_up(request):
        async with follow(request.app[HUB], request.app[EVENTS], job_id, after=row.number("seq")) as feed:
            while not feed.done and (left_s := deadline - monotonic_s()) > 0:
                await feed.next(left_s)
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


async def _changed(request: web.Request, job: AnyJob, wish: RetryRequest) -> dict[str, Any]:
    """The fields of a job's record that a retry changes. Another prompt is resolved now and holds for what is left."""
    record: dict[str, Any] = {"model": wish.model} if wish.model else {}
    if wish.prompt is None:
        return record
    try:
        chosen = await request.app[PINNING].choose(request[PRINCIPAL].tenant, job, wish.prompt)
    except BadPromptError as error:
        problems = [(f"$.prompt{path}", text) for path, text in error.problems]
        detail = "; ".join(f"{path}: {text}" for path, text in problems)
        raise RefusedError("invalid_request", detail, errors=tuple(problems)) from None
    changed = msgspec.structs.replace(job, prompt=wish.prompt)
    record["spec"] = msgspec.json.encode(changed).decode()
    if wish.model is None and job.model is None:
        record["model"] = model_of(changed, request.app[SETTINGS], chosen.model)
    return record | {name: value if value is not None else "" for name, value in prompt_fields(chosen).items()}


async def retry(request: web.Request) -> web.Response:
    """POST /api/jobs/{id}/retry."""
    query(request, ())
    wish = RetryRequest()
    if request.body_exists and (body := await read_body(request)).strip():
        wish = decode_body(body, RetryRequest)
    store, tenant, settings = request.app[JOBS], request[PRINCIPAL].tenant, request.app[SETTINGS]
    job_id = request.match_info["id"]
    kind, spec = await store.spec(tenant, job_id)
    job = msgspec.json.decode(spec, type=JOB_TYPES[kind])
    if isinstance(job, StoredEmbeddingJob) and wish.model is not None and wish.from_ is None:
        raise invalid("$.model", 'vectors of two models cannot be compared; also say "from": "start"')
    record = await _changed(request, job, wish)
    await store.retry(
        tenant,
        job_id,
        from_start=wish.from_ == "start",
        record=record,
        class_ms=class_ms(job, settings),
        expires_in_ms=round(job.expires_in_seconds * 1000),
        unpriced=is_unpriced(request, record.get("model") or model_of(job, settings)),
    )
    row = await store.view(tenant, job_id)
    view = msgspec.structs.replace(view_of(row), status=JobStatus.QUEUED)
    return answer(view, status=202, headers={"Location": f"/api/jobs/{job_id}"})


async def give_input(request: web.Request) -> web.Response:
    """POST /api/jobs/{id}/input."""
    query(request, ())
    given, _ = await read_json(request, GivenInput)
    job_id = request.match_info["id"]
    await request.app[JOBS].answer(request[PRINCIPAL].tenant, job_id, given.request_id, given.value)
    return answer(view_of(await row_of(request, job_id)))


async def stream(request: web.Request) -> web.StreamResponse:
    """GET /api/jobs/{id}/stream."""
    parameters = query(request, ("after", "ticket"))
    if not accepts(request, "text/event-stream"):
        raise RefusedError("not_acceptable", "This resource is text/event-stream only; the Accept header excludes it.")
    row = await row_of(request, request.match_info["id"])
    after = integer(parameters, "after", 0, low=0, high=MAX_SEQ)
    header = request.headers.get("Last-Event-ID")
    if header is not None and header.strip():
        parameters["Last-Event-ID"] = header.strip()
        after = integer(parameters, "Last-Event-ID", 0, low=0, high=MAX_SEQ)
    if (place := events_place(row, after)) is None:
        return web.Response(status=204)
    return await stream_job(request, row.job_id, place, {"X-Job-Id": row.job_id}, grace_ms=row.number("grace_ms"))


async def row_of(request: web.Request, job_id: str) -> JobRow:
    """The caller's job. Raises RefusedError."""
    return await request.app[JOBS].view(request[PRINCIPAL].tenant, job_id)


def events_place(row: JobRow, after: int) -> int | None:
    """Where the reading of a job's events goes on; None when `after` is the final one: nothing follows."""
    newest = row.number("seq")
    return None if row.is_final and after >= newest else min(after, newest)


async def stream_ticket(request: web.Request) -> web.Response:
    """POST /api/jobs/{id}/stream-ticket."""
    query(request, ())
    row = await row_of(request, request.match_info["id"])
    ticket = await request.app[TICKETS].issue(request[PRINCIPAL], row.job_id)
    retry_max_ms = round(request.app[SETTINGS].retry_max_seconds * 1000)
    return answer(StreamTicket(ticket=ticket, expires_at=rfc3339(ends_ms(row, retry_max_ms))))


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
