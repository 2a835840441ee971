"""CORS (the Fetch standard, "HTTP-network-or-cache fetch" and "CORS-preflight fetch"): which browser pages may call.

Keys travel in a header, never in a cookie, so credentials are not allowed and need not be.
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web

from api.keys import SETTINGS

REQUEST_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, If-Range, Last-Event-ID, Prefer, "
    "Range, traceparent, tracestate, X-Request-Id"
)
METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
EXPOSED: Final = (
    "Content-Range, ETag, Idempotent-Replayed, Link, Location, Preference-Applied, RateLimit, RateLimit-Policy, "
    "Retry-After, X-Job-Id, X-Request-Id, X-Usage-Warning, retry-after-ms, x-should-retry, "
    "x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    "x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens"
)
PREFLIGHT_S: Final = 7_200  # browsers keep it no longer


def allowed_origin(request: web.Request) -> str | None:
    """The origin that this request comes from, when ERRAND_CORS_ORIGINS names it."""
    origin = request.headers.get(hdrs.ORIGIN)
    allowed = [entry.strip() for entry in request.app[SETTINGS].cors_origins.split(",") if entry.strip()]
    if origin is None or not allowed:
        return None
    if "*" in allowed:
        return "*"
    return origin if origin in allowed else None


def preflight(request: web.Request) -> web.Response | None:
    """The answer to a browser that asks whether it may; None for every other request."""
    if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
        return None
    if allowed_origin(request) is None:
        return None
    return web.Response(
        status=204,
        headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: REQUEST_HEADERS,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
        },
    )


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """To every response, before it begins."""
    if not request.app[SETTINGS].cors_origins:
        return
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    if (origin := allowed_origin(request)) is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
