"""Checking the books, and making them anew. Scope `admin`."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta

from api.keys import BOOKS, TENANTS, USAGE
from api.wire import answer, query, read_body
from shared.codec import decode_body
from shared.specs import Wire


class WhichBooks(Wire, frozen=True):
    """Optional body: one tenant's books; else those of all."""

    tenant_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


async def check(request: web.Request) -> web.Response:
    """POST /api/admin/books/check."""
    return answer(await request.app[BOOKS].check(await _tenants(request)))


async def rebuild(request: web.Request) -> web.Response:
    """POST /api/admin/books/rebuild."""
    return answer(await request.app[BOOKS].rebuild(await _tenants(request)))


async def _tenants(request: web.Request) -> list[str]:
    query(request, ())
    which = WhichBooks()
    if request.body_exists and (body := await read_body(request)).strip():
        which = decode_body(body, WhichBooks)
    if which.tenant_id is None:
        return await request.app[USAGE].all_tenants()
    await request.app[TENANTS].tenant(which.tenant_id)
    return [which.tenant_id]
