"""Tenants, their API keys, and who changed them. Scope `admin`."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from api.acting import actor_of, idem_of
from api.auth import forget
from api.keys import API_KEYS, AUDIT, PRINCIPALS, TENANTS
from api.wire import (
    answer,
    invalid,
    page_answer,
    page_of,
    page_size,
    query,
    read_body,
    read_json,
)
from shared.audit import Action
from shared.codec import decode_body
from shared.tenants import KeyPatch, NewKey, NewTenant, Rotation, TenantPatch

_AUDIT_ID: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")
# Filters of the audit log, and the fields that they look at.
_FILTERS: Final = {"tenant": "tenant", "action": "action", "key": "key", "actor": "actor", "resource": "resource"}


def _headers(location: str, replayed: bool) -> dict[str, str]:
    return {"Location": location, **({"Idempotent-Replayed": "true"} if replayed else {})}


async def create_tenant(request: web.Request) -> web.Response:
    """POST /api/admin/tenants."""
    query(request, ())
    new, body = await read_json(request, NewTenant)
    idem_key, idem_body = idem_of(request, body)
    view, replayed = await request.app[TENANTS].create_tenant(
        new, by=actor_of(request), idem_key=idem_key, idem_body=idem_body
    )
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


async def change_tenant(request: web.Request) -> web.Response:
    """PATCH /api/admin/tenants/{tenantId}."""
    query(request, ())
    patch, _ = await read_json(request, TenantPatch)
    tenant = request.match_info["tenantId"]
    return answer(await request.app[TENANTS].change_tenant(tenant, patch, by=actor_of(request)))


async def create_key(request: web.Request) -> web.Response:
    """POST /api/admin/tenants/{tenantId}/keys."""
    query(request, ())
    new, body = await read_json(request, NewKey)
    tenant = request.match_info["tenantId"]
    idem_key, idem_body = idem_of(request, body)
    view, replayed = await request.app[API_KEYS].create_key(
        tenant, new, by=actor_of(request), idem_key=idem_key, idem_body=idem_body
    )
    location = f"/api/admin/tenants/{tenant}/keys/{view.key_id}"
    return answer(view, status=201, headers=_headers(location, replayed))


async def list_keys(request: web.Request) -> web.Response:
    """GET /api/admin/tenants/{tenantId}/keys."""
    limit, after = page_of(query(request, ("limit", "after")), "key")
    rows, more = await request.app[API_KEYS].list_keys(request.match_info["tenantId"], limit=limit, after=after)
    return page_answer(request, rows, rows[-1].key_id if more else None)


async def show_key(request: web.Request) -> web.Response:
    """GET /api/admin/tenants/{tenantId}/keys/{keyId}."""
    query(request, ())
    return answer(await request.app[API_KEYS].key(request.match_info["tenantId"], request.match_info["keyId"]))


async def change_key(request: web.Request) -> web.Response:
    """PATCH /api/admin/tenants/{tenantId}/keys/{keyId}."""
    query(request, ())
    patch, _ = await read_json(request, KeyPatch)
    tenant, key_id = request.match_info["tenantId"], request.match_info["keyId"]
    view = await request.app[API_KEYS].change_key(tenant, key_id, patch, by=actor_of(request))
    forget(request.app[PRINCIPALS], key_id)
    return answer(view)


async def rotate_key(request: web.Request) -> web.Response:
    """POST /api/admin/tenants/{tenantId}/keys/{keyId}/rotate."""
    query(request, ())
    body = await read_body(request) if request.body_exists else b""
    rotation = decode_body(body, Rotation) if body.strip() else Rotation()
    tenant, key_id = request.match_info["tenantId"], request.match_info["keyId"]
    idem_key, idem_body = idem_of(request, body)
    view, replayed = await request.app[API_KEYS].rotate(
        tenant,
        key_id,
        rotation.overlap_seconds * 1000,
        by=actor_of(request),
        idem_key=idem_key,
        idem_body=idem_body,
    )
    forget(request.app[PRINCIPALS], key_id)
    return answer(view, headers={"Idempotent-Replayed": "true"} if replayed else None)


async def revoke_key(request: web.Request) -> web.Response:
    """DELETE /api/admin/tenants/{tenantId}/keys/{keyId}."""
    query(request, ())
    key_id = request.match_info["keyId"]
    await request.app[API_KEYS].revoke(request.match_info["tenantId"], key_id, by=actor_of(request))
    forget(request.app[PRINCIPALS], key_id)
    return web.Response(status=204)


async def audit_log(request: web.Request) -> web.Response:
    """GET /api/admin/audit."""
    parameters = query(request, ("limit", "after", *_FILTERS))
    after = parameters.get("after")
    if after is not None and not _AUDIT_ID.fullmatch(after):
        raise invalid("?after", "is no cursor of this list")
    action = parameters.get("action")
    if action is not None and action not in list(Action):
        raise invalid("?action", f"must be one of {', '.join(Action)}")
    rows, cursor = await request.app[AUDIT].entries(
        limit=page_size(parameters),
        after=after,
        wanted={field: parameters[name] for name, field in _FILTERS.items() if name in parameters},
    )
    return page_answer(request, rows, cursor)
