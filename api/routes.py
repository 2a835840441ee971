"""The whole URL table. The OpenAPI document is generated from it, so each fact about a call stands here once."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from api.auth import authenticate, redeem, refuse_key_in_address, require
from api.handlers import admin, books, chat, diagnosis, documents, erasure, jobs, judging, ops, output, usage
from api.keys import PRINCIPAL
from api.problems import problem_page
from api.prompt_routes import PROMPT_ROUTES
from api.route import (
    IDEMPOTENCY,
    LIST,
    WAIT,
    Day,
    EntryPlace,
    EventNumber,
    Handler,
    Moment,
    Page,
    Place,
    Route,
    Text,
    id_of,
    list_of,
    whole,
)
from api.route import in_header as _h
from api.route import in_query as _q
from api.search_routes import SEARCH_ROUTES
from api.webhook_routes import WEBHOOK_ROUTES
from api.websocket import socket
from shared.audit import Action, AuditEntry
from shared.batch import MEDIA_TYPE
from shared.books import BooksReport
from shared.collections import DocumentDeleted
from shared.diagnosis.findings import Diagnosis
from shared.documents import (
    DocumentAccepted,
    DocumentPatch,
    DocumentSource,
    DocumentStatus,
    DocumentView,
    NewTextDocument,
)
from shared.ids import ULID
from shared.jobs import JobStatus, JobView
from shared.limit_rows import LimitsView
from shared.scope import note
from shared.specs import JOB_TYPES, Priority, PublicJob, ShortText
from shared.tenants import KeyPatch, KeyView, NewKey, NewTenant, Rotation, Scope, TenantPatch, TenantView
from shared.usage import Group, Order, UsageRow

SOCKET_PATH = "/api/ws"
_GROUP = "|".join(Group)
Groups = Annotated[str, Meta(pattern=f"^(({_GROUP})(,({_GROUP}))*)?$")]
RESUME = (
    _h("Last-Event-ID", "resume after this event number", Annotated[str, Meta(pattern="^[0-9]{0,15}$")]),
    _q("after", "the same, for clients without headers", EventNumber),
)

PLACE = _h("Last-Event-ID", "the `id` of the last frame that came: resumes that chat, and starts none", Place)
TICKET = _q("ticket", "from `stream-ticket`, in place of a key")
FRAMES = 'Frames `data: {"text": "…"}`, then `data: [DONE]`; a failure after text is `event: error` with a problem.'
CHAT_PROBLEMS = (
    "invalid_request",
    "cancelled",
    "upstream_unavailable",
    "upstream_refused",
    "upstream_rate_limited",
    "timeout",
    "worker_lost",
    "budget_exhausted",
)
# What a limit refuses, before anything was spent: shared by all that take a job in.
LIMIT_PROBLEMS = ("queue_full", "rate_limited", "budget_exhausted")
BODY_CHAT_PROBLEMS = (
    "malformed_request",
    "too_large",
    "unsupported_media_type",
    "idempotency_mismatch",
    "queue_full",
    "rate_limited",
    "request_timeout",
)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST", "/api/jobs", jobs.submit, "Submit a job", Scope.JOBS,
        {
            202: ("The job is durable and queued (or scheduled).", JobView),
            200: ("`Prefer: wait`: it ended in time. `Accept: text/event-stream`: its events.", JobView),
        },
        body=PublicJob,
        parameters=(
            IDEMPOTENCY,
            _h("Prefer", "`wait=N` (at most 60): answer with the final view if it comes in time"),
            _h("Accept", "`text/event-stream`: the job's events, inline"),
        ),
        problems=("malformed_request", "too_large", "unsupported_media_type", "invalid_request",
                  "idempotency_mismatch", *LIMIT_PROBLEMS, "request_timeout"),
    ),
    Route(
        "GET", "/api/jobs", jobs.list_jobs, "List jobs, newest first (`?metadata.NAME=` filters too)", Scope.JOBS,
        {200: ("One page.", Page(JobView))},
        parameters=(
            *list_of("job"), _q("status", "a status", JobStatus), _q("type", "a job type", Literal[*JOB_TYPES]),
            _q("priority", "high, normal or low", Priority), _q("user", "the job's `user`"),
            _q("createdAfter", "RFC 3339", Moment), _q("createdBefore", "RFC 3339", Moment),
        ),
        problems=("invalid_request",),
    ),
    Route(
        "POST", "/api/jobs/estimate", judging.estimate, "What a job would use, before it is submitted", Scope.JOBS,
        {200: ("Tokens, limits and start; nothing is spent.", judging.Estimate)},
        body=PublicJob,
        problems=("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "request_timeout"),
    ),
    Route(
        "GET", "/api/jobs/{id}", jobs.show, "Read a job", Scope.JOBS,
        {200: ("The job.", JobView), 304: ("Unchanged.", None)},
        parameters=(WAIT, _h("If-None-Match", "the ETag of an earlier answer")),
        problems=("not_found", "gone", "invalid_request"),
    ),
    Route(
        "DELETE", "/api/jobs/{id}", jobs.cancel, "Cancel a job", Scope.JOBS,
        {200: ("It had not started, or has ended; `cancellation` is the receipt.", JobView),
         202: ("It is being cancelled.", JobView)},
        parameters=(WAIT,),
        problems=("not_found", "gone", "invalid_request"),
    ),
    Route(
        "POST", "/api/jobs/{id}/retry", jobs.retry, "Retry a failed, cancelled or expired job", Scope.JOBS,
        {202: ("Queued again; finished steps are reused.", JobView)},
        body=jobs.RetryRequest, may_lack_body=True,
        problems=("not_found", "gone", "conflict", "invalid_request", *LIMIT_PROBLEMS),
    ),
    Route(
        "POST", "/api/jobs/{id}/feedback", judging.feedback, "Say what you think of a job's result", Scope.JOBS,
        {201: ("It is noted.", judging.FeedbackGiven)},
        body=judging.NewFeedback,
        parameters=(IDEMPOTENCY,),
        problems=("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "not_found", "gone",
                  "conflict", "idempotency_mismatch", "request_timeout"),
    ),
    Route(
        "GET", "/api/jobs/{id}/stream", jobs.stream, "A job's events, as they happen", Scope.JOBS,
        {200: ("Server-Sent Events; `id` is the event number; ends with `data: [DONE]`.", "text/event-stream"),
         204: ("Nothing follows: the client has the final event.", None)},
        parameters=(*RESUME, TICKET),
        problems=("not_found", "gone", "not_acceptable", "invalid_request"),
        ticket=True, is_stream=True,
    ),
    Route(
        "POST", "/api/jobs/{id}/stream-ticket", jobs.stream_ticket,
        "A ticket for a browser's EventSource, which cannot send a header", Scope.JOBS,
        {200: ("For `?ticket=` of this job's stream, until five minutes after its end.", jobs.StreamTicket)},
        problems=("not_found", "gone"),
    ),
    Route(
        "POST", "/api/jobs/{id}/input", jobs.give_input, "Answer a job that waits for a person", Scope.JOBS,
        {200: ("The job goes on.", JobView)},
        body=jobs.GivenInput, problems=("not_found", "gone", "conflict", "malformed_request", "invalid_request"),
    ),
    Route(
        "GET", SOCKET_PATH, socket,
        "Many jobs on one WebSocket: `submit`, `subscribe`, `unsubscribe`, `cancel`, `input`", Scope.JOBS,
        {101: ("Frames are JSON; without an `Authorization` header the first is "
               "`{\"op\": \"auth\", \"key\": \"ek_…\"}`. What a limit refuses is answered with its `problem`, and the "
               "socket stays open.", None)},
        problems=("malformed_request",), is_stream=True,
    ),
    Route(
        "POST", "/api/chat", chat.whole, "Chat: the whole answer", Scope.JOBS,
        {200: ("The answer.", chat.ChatAnswer)},
        body=chat.ChatRequest, parameters=(IDEMPOTENCY,), problems=(*CHAT_PROBLEMS, *BODY_CHAT_PROBLEMS),
    ),
    Route(
        "POST", "/api/chat/stream", chat.stream, "Chat: the answer as it is made", Scope.JOBS,
        {200: (FRAMES, "text/event-stream")},
        body=chat.ChatRequest, parameters=(IDEMPOTENCY, PLACE),
        problems=(*CHAT_PROBLEMS, *BODY_CHAT_PROBLEMS, "not_found", "gone"), is_stream=True,
    ),
    Route(
        "GET", "/api/chat/stream", chat.stream_message, "Chat for simple clients: one message in the address",
        Scope.JOBS, {200: (FRAMES, "text/event-stream")},
        parameters=(
            _q("message", "what to say to the model; not looked at with `Last-Event-ID`", Text, required=True),
            _q("model", "the model", ShortText), _q("maxTokens", "bound of the answer", whole(1, 1_000_000)),
            _q("temperature", "0 to 2", Annotated[float, Meta(ge=0, le=2)]), _q("user", "your end user", ShortText),
            _q("disconnectGraceSeconds", "cancelled when nobody has listened for so long",
               Annotated[float, Meta(ge=1, le=3_600)]), IDEMPOTENCY, PLACE,
        ),
        problems=(*CHAT_PROBLEMS, "not_found", "gone", "queue_full", "rate_limited", "idempotency_mismatch"),
        is_stream=True,
    ),
    Route(
        "GET", "/api/chat/stream/{jobId}", chat.resume, "Resume a chat's stream", Scope.JOBS,
        {200: (FRAMES, "text/event-stream")}, parameters=(PLACE, TICKET),
        problems=(*CHAT_PROBLEMS, "not_found", "gone"), ticket=True, is_stream=True,
    ),
    Route(
        "GET", "/api/jobs/{id}/events", jobs.events, "A job's events as a list", Scope.JOBS,
        {200: ("Events in order.", jobs.JobEventList)},
        parameters=(_q("after", "events after this number", EventNumber),
                    _q("limit", "1 to 1000, default 200", whole(1, 1_000))),
        problems=("not_found", "gone", "invalid_request"),
    ),
    Route(
        "GET", "/api/jobs/{id}/output", output.read, "A job's large result, readable while it grows", Scope.JOBS,
        {200: ("All of it; while the job is not final, what is there so far, with `Retry-After`.", MEDIA_TYPE),
         206: ("The range; its `Content-Range` names no total while the job is not final.", MEDIA_TYPE),
         304: ("Unchanged (a final job's only).", None)},
        parameters=(
            _h("Range", "one range of bytes; one that begins at the end of what is there is 416, and while the job is "
               "not final `Retry-After` says when to ask again"),
            _h("If-Range", "the ETag that the range belongs to"),
            _h("If-None-Match", "the ETag of an earlier answer"),
        ),
        problems=("not_found", "gone", "range_not_satisfiable"),
    ),
    Route(
        "POST", "/api/documents", documents.create, "Store a document", Scope.DOCUMENTS,
        {202: ("Stored; an ingest job reads it.", DocumentAccepted)},
        body=NewTextDocument, upload=True, parameters=(IDEMPOTENCY,),
        problems=("malformed_request", "too_large", "invalid_request", "idempotency_mismatch",
                  "unsupported_media_type", *LIMIT_PROBLEMS),
    ),
    Route(
        "GET", "/api/documents", documents.list_documents, "List documents, newest first", Scope.DOCUMENTS,
        {200: ("One page; with filters it may be short though there are more.", Page(DocumentView))},
        parameters=(*list_of("doc"), _q("collection", "only those of this collection (`default`: of none)"),
                    _q("status", "pending, ready or rejected", DocumentStatus),
                    _q("metadata.NAME", "only those with this value")),
        problems=("invalid_request",),
    ),
    Route(
        "GET", "/api/documents/{id}", documents.show, "Read a document's record", Scope.DOCUMENTS,
        {200: ("The document.", DocumentView)}, problems=("not_found",),
    ),
    Route(
        "GET", "/api/documents/{id}/text", documents.text, "Read a document's normalised text", Scope.DOCUMENTS,
        {200: ("The text into which all offsets point.", "text/plain")}, problems=("not_found", "conflict", "gone"),
    ),
    Route(
        "PUT", "/api/documents/{id}", documents.replace, "Replace a document's content", Scope.DOCUMENTS,
        {202: ("Stored; an ingest job reads it. Until that is complete the content before is found.",
               DocumentAccepted)},
        body=DocumentSource, upload=True, parameters=(IDEMPOTENCY,),
        problems=("malformed_request", "too_large", "invalid_request", "idempotency_mismatch", "not_found", "conflict",
                  "unsupported_media_type", *LIMIT_PROBLEMS),
    ),
    Route(
        "PATCH", "/api/documents/{id}", documents.change, "Change a document's title or metadata", Scope.DOCUMENTS,
        {200: ("The document; searches show and filter by it at once.", DocumentView)}, body=DocumentPatch,
        problems=("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "not_found",
                  "request_timeout"),
    ),
    Route(
        "DELETE", "/api/documents/{id}", documents.delete, "Delete a document, also from search and its log",
        Scope.DOCUMENTS,
        {200: ("Record, file, text, chunks and vectors are removed, and what the log of searches says of it.",
               DocumentDeleted)},
        problems=("not_found",),
    ),
    Route(
        "GET", "/api/usage", usage.usage, "What was used: tokens and cost by day, model, type, prompt, user, key",
        Scope.USAGE,
        {200: ("One page, by day, then in `order`. `Accept: text/csv`: all rows.", Page(UsageRow))},
        parameters=(
            _q("from", "first UTC day: `YYYY-MM-DD`, or an RFC 3339 time in it; default: 29 days before `to`",
               Day),
            _q("to", "last UTC day, included; default: today. At most 400 days in all", Day),
            _q("groupBy", "some of `day`, `model`, `type`, `prompt`, `user`, `key`, `tenant`, with commas between; "
               "default `day`; empty: one row of totals", Groups),
            _q("model", "only calls of this model"), _q("type", "only jobs of this type"),
            _q("prompt", "only jobs of this prompt: `name`, or `name@version`; empty: of none"),
            _q("user", "only jobs of this end user; empty: of none"),
            _q("key", "only jobs of this API key (its id)", id_of("key")),
            _q("tenant", "with the scope `admin`: another tenant, or `*` for all",
               Annotated[str, Meta(pattern=f"^(ten_{ULID}|\\*)$")]),
            _q("order", "`name` (default): by the members of `groupBy`, so that pages meet while calls are booked; "
               "`tokens`: most first, for the largest", Order),
            _q("limit", "1 to 10000, default 1000", whole(1, 10_000)), LIST[1],
            _h("Accept", "`text/csv`: all rows as RFC 4180, without pages"),
        ),
        problems=("invalid_request", "not_found"),
    ),
    Route(
        "GET", "/api/limits", usage.limits, "Every limit that applies, how it stands, and which binds",
        Scope.USAGE,
        {200: ("All of one instant.", LimitsView)},
        parameters=(_q("user", "an end user: those of `perUser` too"),
                    _q("prompt", "`name` or `name@version`: those of `perPrompt` too")),
    ),
    *PROMPT_ROUTES,
    *SEARCH_ROUTES,
    *WEBHOOK_ROUTES,
    Route(
        "POST", "/api/admin/tenants", admin.create_tenant, "Create a tenant", Scope.ADMIN,
        {201: ("The tenant.", TenantView)}, body=NewTenant, parameters=(IDEMPOTENCY,),
        problems=("malformed_request", "invalid_request", "idempotency_mismatch"),
    ),
    Route(
        "GET", "/api/admin/tenants", admin.list_tenants, "List tenants", Scope.ADMIN,
        {200: ("One page.", Page(TenantView))}, parameters=list_of("ten"), problems=("invalid_request",),
    ),
    Route(
        "GET", "/api/admin/tenants/{tenantId}", admin.show_tenant, "Read a tenant", Scope.ADMIN,
        {200: ("The tenant.", TenantView)}, problems=("not_found",),
    ),
    Route(
        "PATCH", "/api/admin/tenants/{tenantId}", admin.change_tenant,
        "Change a tenant; `limits` is a JSON merge patch", Scope.ADMIN,
        {200: ("The tenant as it is now.", TenantView)}, body=TenantPatch,
        problems=("malformed_request", "invalid_request", "not_found", "conflict"),
    ),
    Route(
        "DELETE", "/api/admin/tenants/{tenantId}", erasure.delete_tenant, "Delete a tenant and everything it has",
        Scope.ADMIN,
        {202: ("Its keys have ended; a `tenant-erasure` job erases the rest, and its result is the receipt. Again "
               "while it is under way: the same job.", JobView)},
        problems=("not_found", "conflict"),
    ),
    Route(
        "POST", "/api/admin/tenants/{tenantId}/keys", admin.create_key, "Create an API key", Scope.ADMIN,
        {201: ("The key; its secret is shown this once.", KeyView)}, body=NewKey, parameters=(IDEMPOTENCY,),
        problems=("malformed_request", "invalid_request", "not_found", "conflict", "idempotency_mismatch"),
    ),
    Route(
        "GET", "/api/admin/tenants/{tenantId}/keys", admin.list_keys, "List a tenant's keys", Scope.ADMIN,
        {200: ("One page, without secrets.", Page(KeyView))}, parameters=list_of("key"), problems=("not_found",),
    ),
    Route(
        "GET", "/api/admin/tenants/{tenantId}/keys/{keyId}", admin.show_key, "Read a key", Scope.ADMIN,
        {200: ("The key, without its secret.", KeyView)}, problems=("not_found",),
    ),
    Route(
        "PATCH", "/api/admin/tenants/{tenantId}/keys/{keyId}", admin.change_key,
        "Change a key; `limits` is a JSON merge patch", Scope.ADMIN,
        {200: ("The key as it is now, without its secret.", KeyView)}, body=KeyPatch,
        problems=("malformed_request", "invalid_request", "not_found", "conflict"),
    ),
    Route(
        "POST", "/api/admin/tenants/{tenantId}/keys/{keyId}/rotate", admin.rotate_key,
        "Give a key a new secret; the one so far lives on for a while", Scope.ADMIN,
        {200: ("The key; its new secret is shown this once.", KeyView)}, body=Rotation, may_lack_body=True,
        parameters=(IDEMPOTENCY,),
        problems=("malformed_request", "invalid_request", "not_found", "conflict", "idempotency_mismatch"),
    ),
    Route(
        "DELETE", "/api/admin/tenants/{tenantId}/keys/{keyId}", admin.revoke_key, "Revoke a key", Scope.ADMIN,
        {204: ("The key no longer works, in any process.", None)}, problems=("not_found", "conflict"),
    ),
    Route(
        "GET", "/api/admin/audit", admin.audit_log, "Who changed which tenant, key or prompt, newest first",
        Scope.ADMIN,
        {200: ("One page; with filters it may be short though there are more.", Page(AuditEntry))},
        parameters=(
            LIST[0], msgspec.structs.replace(LIST[1], kind=EntryPlace),
            _q("tenant", "the tenant that was changed (`shared`: prompts that all have)"),
            _q("action", "for example `key.revoked`", Action), _q("key", "the key that was changed", id_of("key")),
            _q("resource", "the prompt that was changed"),
            _q("actor", "id of the key that changed it, or `system`"),
        ),
        problems=("invalid_request",),
    ),
    Route(
        "GET", "/api/admin/tenants/{tenantId}/limits", usage.tenant_limits, "How a tenant's limits stand", Scope.ADMIN,
        {200: ("All of one instant.", LimitsView)},
        parameters=(_q("key", "the id of one of its keys: that key's too", id_of("key")), _q("user", "an end user"),
                    _q("prompt", "`name` or `name@version`")),
        problems=("not_found", "invalid_request"),
    ),
    Route(
        "POST", "/api/admin/books/check", books.check, "Whether counters, usage and jobs are what the ledger says",
        Scope.ADMIN, {200: ("What differs, by tenant; exact while calls are booked.", BooksReport)},
        body=books.WhichBooks, may_lack_body=True,
        problems=("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "not_found"),
    ),
    Route(
        "POST", "/api/admin/books/rebuild", books.rebuild, "Make counters, reservations and usage anew from the ledger",
        Scope.ADMIN, {200: ("What differed before; `ok` when nothing does any more.", BooksReport)},
        body=books.WhichBooks, may_lack_body=True,
        problems=("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "not_found"),
    ),
    Route(
        "GET", "/api/admin/diagnosis", diagnosis.diagnose, "Whether the installation is sound, and what mends it",
        Scope.ADMIN, {200: ("What was found, also where something fails.", Diagnosis)},
    ),
    Route("GET", "/healthz", ops.health, "The process is up", None, {200: ("It is.", None)}),
    Route(
        "GET", "/readyz", ops.ready, "A job would run", None,
        {200: ("Redis is durable and answers, a worker is alive.", None), 503: ("Not so; the body says what.", None)},
    ),
    Route("GET", "/metrics", ops.metrics, "Prometheus metrics", None, {200: ("Metrics.", "text/plain")}),
    Route(
        "GET", "/metrics/sd", ops.service_discovery, "Live workers, as Prometheus's `http_sd_configs` reads them", None,
        {200: ("One entry for each worker.", list[ops.TargetGroup])},
    ),
    Route("GET", "/openapi.json", ops.openapi, "This contract as OpenAPI 3.1", None, {200: ("OpenAPI.", None)}),
    Route("GET", "/docs", ops.docs, "This contract to read", None, {200: ("A page.", "text/html")}),
    Route(
        "GET", "/problems/{code}", problem_page, "What a problem code means", None, {200: ("A page.", "text/html")},
        problems=("not_found",),
    ),
)  # fmt: skip


def guarded(route: Route) -> Handler:
    """The handler with its authentication and scope in front."""
    scope = route.scope
    if scope is None:
        return route.handler

    async def handler(request: web.Request) -> web.StreamResponse:
        if route.ticket and "ticket" in request.query:
            principal = await redeem(request)
        elif route.path == SOCKET_PATH and "Authorization" not in request.headers:
            refuse_key_in_address(request)
            return await route.handler(request)  # its first frame has the key
        else:
            principal = await authenticate(request)
        request[PRINCIPAL] = principal
        note(tenant=principal.tenant)
        require(principal, scope)
        return await route.handler(request)

    return handler
