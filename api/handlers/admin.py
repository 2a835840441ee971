"""Tenants and their API keys. Scope `admin`."""

from __future__ import annotations

from aiohttp import web

from api.keys import PRINCIPAL, REDIS_KEYS, TENANTS
from api.wire import answer, idempotency, page_answer, page_of, query, read_json
from shared.keys import Keys
from shared.tenants import NewKey, NewTenant


def _idem(request: web.Request, body: bytes) -> tuple[str | None, str | None]:
    digest, body_hash = idempotency(request, body)
    keys: Keys = request.app[REDIS_KEYS]
    return (keys.idem(request[PRINCIPAL].tenant, digest) if digest else None), body_hash


def _headers(location: str, replayed: bool) -> dict[str, str]:
    return {"Location": location, **({"Idempotent-Replayed": "true"} if replayed else {})}


async def create_tenant(request: web.Request) -> web.Response:
    """POST /api/admin/tenants."""
    query(request, ())
    new, body = await read_json(request, NewTenant)
    idem_key, idem_body = _idem(request, body)
    view, replayed = await request.app[TENANTS].create_tenant(new, idem_key=idem_key, idem_body=idem_body)
    return answer(view, status=201, headers=_headers(f"/api/admin/tenants/{view.tenant_id}", replayed))


async def list_tenants(request: web.Request) -> web.Response:
    """GET /api/admin/tenants."""
    limit, after = page_of(query(request, ("limit", "after")), "ten")
    rows, more = await request.app[TENANTS].tenants(limit=limit, after=after)
    return page_answer(request, rows, rows[-1].tenant_id if more else None)


async def show_tenant(request: web.Request) -> web.Response:
    """GET /api/admin/tenants/{tenantId}."""
    query(request, ())
    return answer(await request.app[TENANTS].tenant(request.match_info["tenantId"]))


async def create_key(request: web.Request) -> web.Response:
    """POST /api/admin/tenants/{tenantId}/keys."""
    query(request, ())
    new, body = await read_json(request, NewKey)
    tenant = request.match_info["tenantId"]
    idem_key, idem_body = _idem(request, body)
    view, replayed = await request.app[TENANTS].create_key(tenant, new, idem_key=idem_key, idem_body=idem_body)
    location = f"/api/admin/tenants/{tenant}/keys/{view.key_id}"
    return answer(view, status=201, headers=_headers(location, replayed))


async def list_keys(request: web.Request) -> web.Response:
    """GET /api/admin/tenants/{tenantId}/keys."""
    limit, after = page_of(query(request, ("limit", "after")), "key")
    rows, more = await request.app[TENANTS].list_keys(request.match_info["tenantId"], limit=limit, after=after)
    return page_answer(request, rows, rows[-1].key_id if more else None)


async def show_key(request: web.Request) -> web.Response:
    """GET /api/admin/tenants/{tenantId}/keys/{keyId}."""
    query(request, ())
    return answer(await request.app[TENANTS].key(request.match_info["tenantId"], request.match_info["keyId"]))


async def revoke_key(request: web.Request) -> web.Response:
    """DELETE /api/admin/tenants/{tenantId}/keys/{keyId}."""
    query(request, ())
    await request.app[TENANTS].revoke(request.match_info["tenantId"], request.match_info["keyId"])
    return web.Response(status=204)
