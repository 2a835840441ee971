"""The one middleware: request id, errors as problems, one canonical log line and the metrics of each request."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from api.cors import preflight
from api.keys import DOORS, PRINCIPAL, REQUEST_ID
from api.problems import from_http_exception, problem_answer
from api.wire import trace_of
from shared import semconv, tracing
from shared.clock import monotonic_s
from shared.errors import BlobsUnavailableError, RefusedError
from shared.ids import random_part
from shared.log import get_logger
from shared.metrics import HTTP_REQUESTS, HTTP_SECONDS, REDIS_OUTAGES
from shared.redis import OUTAGE
from shared.scope import SCOPE, Scope

log = get_logger()

UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SECRET: Final = re.compile(r"(?<![A-Za-z0-9])(?:ek_|sk-)")  # a key in the wrong header

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Runs a handler; whatever it raises becomes an answer."""
    started = monotonic_s()
    request_id = request.headers.get("X-Request-Id", "")
    if not _SANE_ID.fullmatch(request_id) or _SECRET.search(request_id):
        request_id = f"req_{random_part()}"
    request[REQUEST_ID] = request_id
    trace, route, span = trace_of(request), route_of(request), None
    if tracing.is_on() and route not in UNTRACED:
        name, attributes = semconv.http_server(semconv.method_of(request.method), route, request.scheme, request_id)
        span = tracing.begin(name, "server", attributes, parent=trace)
    # One connection's requests share a context: what is bound here must be undone.
    bound = SCOPE.set(Scope({"request_id": request_id}, trace if span is None else span.trace))
    status, reason = 499, None
    try:
        try:
            with request.app[DOORS].passing(request):
                response = preflight(request) or await handler(request)
        except RefusedError as error:
            reason = error.code
            response = problem_answer(error, request_id)
        except web.HTTPException as error:
            refusal = from_http_exception(error, request.path)
            reason = refusal.code
            response = problem_answer(refusal, request_id)
        except OUTAGE as error:
            REDIS_OUTAGES.labels("api").inc()
            reason = f"redis: {type(error).__name__}: {error}"
            refusal = RefusedError("unavailable", "Redis cannot be reached just now; nothing was lost.")
            response = problem_answer(refusal, request_id)
        except BlobsUnavailableError as error:
            reason = type(error).__name__
            if request.writer.output_size > 0:
                raise ConnectionResetError("the answer had begun") from None
            response = problem_answer(RefusedError("unavailable", error.message), request_id)
        except ConnectionError:
            raise
        except Exception as error:
            reason = type(error).__name__
            log.exception("request.crashed")
            if request.writer.output_size > 0:
                raise ConnectionResetError("the answer had begun") from None
            refusal = RefusedError("internal", f"A defect of ours; the log has it under {request_id}.")
            response = problem_answer(refusal, request_id)
        status = response.status
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
        return response
    except ConnectionError:
        reason = "the client went away"
        raise
    finally:
        seconds = monotonic_s() - started
        method = semconv.method_of(request.method)
        HTTP_REQUESTS.labels(method, route, str(status)).inc()
        HTTP_SECONDS.labels(route).observe(seconds)
        principal = request.get(PRINCIPAL)
        log.info(
            "request.finished",
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 1),
            tenant=principal.tenant if principal else None,
            key=principal.key_id if principal else None,
            # Codes and types only: details of a refusal quote what the client sent.
            **({"reason": reason[:200]} if reason else {}),
        )
        if span is not None:
            span.set({semconv.HTTP_STATUS: status, semconv.TENANT: principal.tenant if principal else None})
            span.end(str(status) if status >= 500 else None)
        SCOPE.reset(bound)


def route_of(request: web.Request) -> str:
    """The template of a request's path: for metrics, logs and spans, which must not show the path itself."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unknown"
