"""The one middleware: request id, errors as problems, one canonical log line and the metrics of each request."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from api.cors import preflight
from api.keys import PRINCIPAL, REQUEST_ID
from api.problems import from_http_exception, problem_answer
from shared.clock import monotonic_s
from shared.errors import BlobsUnavailableError, RefusedError
from shared.ids import random_part
from shared.log import get_logger
from shared.metrics import HTTP_REQUESTS, HTTP_SECONDS, REDIS_OUTAGES
from shared.redis import OUTAGE

log = get_logger()

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Runs a handler; whatever it raises becomes an answer."""
    started = monotonic_s()
    request_id = request.headers.get("X-Request-Id", "")
    if not _SANE_ID.fullmatch(request_id):
        request_id = f"req_{random_part()}"
    request[REQUEST_ID] = request_id
    structlog.contextvars.bind_contextvars(request_id=request_id)
    status, reason = 499, None
    try:
        try:
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
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "unknown"
        HTTP_REQUESTS.labels(request.method, route, str(status)).inc()
        HTTP_SECONDS.labels(route).observe(seconds)
        principal = request.get(PRINCIPAL)
        log.info(
            "request.finished",
            method=request.method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 1),
            tenant=principal.tenant if principal else None,
            key=principal.key_id if principal else None,
            # Codes and types only: details of a refusal quote what the client sent.
            **({"reason": reason[:200]} if reason else {}),
        )
        structlog.contextvars.unbind_contextvars("request_id")
