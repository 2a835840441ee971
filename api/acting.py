"""Who makes a change, for the audit log, and under which idempotency key."""

from __future__ import annotations

from aiohttp import web

from api.keys import PRINCIPAL, REDIS_KEYS, REQUEST_ID
from api.wire import idempotency
from shared.audit import Actor
from shared.keys import Keys


def actor_of(request: web.Request) -> Actor:
    """The key that asks."""
    principal = request[PRINCIPAL]
    return Actor(principal.key_id, principal.tenant, request[REQUEST_ID])


def idem_of(request: web.Request, body: bytes) -> tuple[str | None, str | None]:
    """The Redis key of the request's idempotency key, None without one, and the hash of its body."""
    digest, body_hash = idempotency(request, body)
    keys: Keys = request.app[REDIS_KEYS]
    return (keys.idem(request[PRINCIPAL].tenant, digest) if digest else None), body_hash
