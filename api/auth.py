"""Who calls: the key of a request, kept in memory for a moment, and its scopes."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from api.keys import ACCESS, JOBS, PRINCIPALS, TICKETS
from shared.clock import monotonic_s
from shared.errors import RefusedError
from shared.ids import hash_secret, is_id
from shared.stores.access import Principal
from shared.stores.tickets import is_over
from shared.tenants import Scope

# A revoked key is forgotten at once by notice (api.live), and by this bound without it.
CACHE_S: Final = 2.0
MAX_CACHED: Final = 10_000
_QUERY_NAMES: Final = frozenset({"key", "api_key", "apikey", "api-key", "access_token", "authorization"})


async def authenticate(request: web.Request) -> Principal:
    """The caller. Raises RefusedError `unauthenticated`, or `malformed_request` for a key in the query string."""
    refuse_key_in_address(request)
    header = request.headers.get("Authorization")
    if header is None:
        raise RefusedError("unauthenticated", "There is no Authorization header; send `Authorization: Bearer ek_…`.")
    return await principal_of(request, header)


def refuse_key_in_address(request: web.Request) -> None:
    """Raises RefusedError `malformed_request` for a key in the query string."""
    for name, value in request.query.items():
        # The id of a key is no secret: usage is filtered by it.
        if (name.lower() in _QUERY_NAMES and not is_id("key", value)) or value.startswith("ek_"):
            raise RefusedError(
                "malformed_request",
                "A key in the address ends up in logs; send it as `Authorization: Bearer ek_…`.",
            )


async def redeem(request: web.Request) -> Principal:
    """Who reads a job's stream with `?ticket=`. Raises RefusedError `unauthenticated`."""
    refuse_key_in_address(request)
    job_id = request.match_info.get("id") or request.match_info["jobId"]
    principal = await request.app[TICKETS].redeem(request.query["ticket"], job_id)
    if principal is None:
        raise RefusedError("unauthenticated", "This ticket is not valid for this job; its stream-ticket gives one.")
    if is_over(await request.app[JOBS].view(principal.tenant, job_id)):
        raise RefusedError("unauthenticated", "This ticket has ended: its job ended more than five minutes ago.")
    return principal


async def principal_of(request: web.Request, header: str) -> Principal:
    """Whose key an Authorization header presents. Raises RefusedError `unauthenticated`."""
    scheme, _, presented = header.partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise RefusedError("unauthenticated", "The Authorization header must read `Bearer ek_…`.")
    presented = presented.strip()
    cache = request.app[PRINCIPALS]
    digest = hash_secret(presented)
    known = cache.get(digest)
    if known and known[0] > monotonic_s():
        return known[1]
    found = await request.app[ACCESS].authenticate(presented)
    if found is None:
        cache.pop(digest, None)
        raise RefusedError("unauthenticated", "This key is not valid: unknown, revoked or expired.")
    if len(cache) >= MAX_CACHED:
        cache.clear()
    kept_s = CACHE_S if found.left_ms is None else min(CACHE_S, found.left_ms / 1000)
    cache[digest] = (monotonic_s() + kept_s, found.principal)
    return found.principal


def require(principal: Principal, scope: Scope) -> None:
    """Raises RefusedError `scope_missing` when the key lacks the scope."""
    if scope not in principal.scopes:
        raise RefusedError("scope_missing", f"This call needs the scope {scope.value!r}, which the key has not.")


def forget(cache: dict[str, tuple[float, Principal]], key_id: str) -> None:
    """Drops a key that was changed or revoked from a process's memory."""
    for digest in [digest for digest, (_, principal) in cache.items() if principal.key_id == key_id]:
        del cache[digest]
