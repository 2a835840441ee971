"""Refusals and faults as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from shared.errors import RefusedError
from shared.jobs import Output
from shared.problems import PROBLEMS

BY_STATUS = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    412: "precondition_failed",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}


class FieldError(Output, frozen=True):
    """What is wrong at one JSON path."""

    path: str
    message: str


class Problem(Output, frozen=True):
    """An error as the API shows it. What a limit says (429 `rate_limited`, 402 `budget_exhausted`) stands in the last
    members: whose limit it is, in which unit and period, and when it has room again."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    errors: list[FieldError] | msgspec.UnsetType = msgspec.UNSET
    scope: str | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    unit: str | msgspec.UnsetType = msgspec.UNSET
    period: str | msgspec.UnsetType = msgspec.UNSET
    limit: float | msgspec.UnsetType = msgspec.UNSET
    used: float | msgspec.UnsetType = msgspec.UNSET
    reserved: float | msgspec.UnsetType = msgspec.UNSET
    remaining: float | msgspec.UnsetType = msgspec.UNSET
    frees_at: str | msgspec.UnsetType | None = msgspec.UNSET


def problem_of(error: RefusedError, request_id: str) -> Problem:
    """A refusal as a problem object."""
    kind = PROBLEMS[error.code]
    return Problem(
        type=f"/problems/{error.code}",
        title=kind.title,
        status=kind.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        retryable=kind.retryable,
        errors=[FieldError(path=path, message=message) for path, message in error.errors] or msgspec.UNSET,
        **error.members,
    )


def problem_answer(error: RefusedError, request_id: str) -> web.Response:
    """A refusal as an answer."""
    headers = dict(error.headers)
    if error.code == "unauthenticated":
        headers.setdefault("WWW-Authenticate", 'Bearer realm="errand"')
    problem = problem_of(error, request_id)
    if problem.status in (429, 503):
        headers.setdefault("Retry-After", "1")
    return web.Response(
        body=msgspec.json.encode(problem),
        status=problem.status,
        headers=headers,
        content_type="application/problem+json",
    )


def from_status(status: int) -> RefusedError:
    """The refusal for a bare status code."""
    code = BY_STATUS.get(status, "internal" if status >= 500 else "malformed_request")
    return RefusedError(code, PROBLEMS[code].explanation)


def from_http_exception(error: web.HTTPException, path: str) -> RefusedError:
    """One of aiohttp's own refusals as ours."""
    code = from_status(error.status).code
    headers: Mapping[str, Any] = error.headers
    kept = {"Allow": str(headers["Allow"])} if "Allow" in headers else {}
    detail = f"There is nothing at {path}." if code == "not_found" else PROBLEMS[code].explanation
    if code == "method_not_allowed":
        detail = f"{path} takes {kept.get('Allow', 'other methods')}."
    return RefusedError(code, detail, headers=kept)


async def problem_page(request: web.Request) -> web.Response:
    """GET /problems/{code}: what the code means."""
    code = request.match_info["code"]
    kind = PROBLEMS.get(code)
    if kind is None:
        raise RefusedError("not_found", f"There is no problem code {code[:64]!r}.")
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(kind.title)}</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;"
        "color:#1c2430;background:#fff}code{background:#f0f2f5;padding:.1em .3em;border-radius:3px}"
        "@media(prefers-color-scheme:dark){body{color:#e6e9ee;background:#14181d}code{background:#262c34}}</style>"
        f"<h1>{html.escape(kind.title)}</h1><p><code>{code}</code> · HTTP {kind.status} · "
        f"{'a later retry may help' if kind.retryable else 'a retry as it is will not help'}</p>"
        f"<p>{html.escape(kind.explanation)}</p>"
    )
    return web.Response(text=text, content_type="text/html")
