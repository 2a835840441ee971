"""How the caller's limits stand, in the headers of every answer: rates as they are, warnings while a soft limit is
crossed."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from aiohttp import web

from api.keys import LIMITS, PRINCIPAL, STANDING
from shared.clock import monotonic_s
from shared.limits import Standing, limit_headers
from shared.redis import OUTAGE
from shared.stores.limits import LimitsStore

CACHE_S: Final = 1.0  # answers that count nothing may show it so late
MAX_CACHED: Final = 10_000
REFUSALS: Final = frozenset({402, 429})


class Standings:
    """How the limits of the keys that call stand, kept for a moment."""

    def __init__(self, store: LimitsStore) -> None:
        self.store = store
        self._known: dict[tuple[str, str], tuple[float, Standing | None]] = {}

    async def of(self, tenant: str, key: str, *, fresh: bool = False) -> Standing | None:
        """Those of a key and its tenant. Raises a member of OUTAGE."""
        known = self._known.get((tenant, key))
        if known is not None and known[0] > monotonic_s() and not fresh:
            return known[1]
        standing = await self.store.standing(tenant, key)
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known[tenant, key] = (monotonic_s() + CACHE_S, standing)
        return standing


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """To every answer to somebody with a key, before it begins."""
    principal = request.get(PRINCIPAL)
    if principal is None:
        return
    standing = request.get(STANDING)
    if standing is None:
        with suppress(*OUTAGE):  # then the answer says so itself
            standings = request.app[LIMITS]
            standing = await standings.of(principal.tenant, principal.key_id, fresh=response.status in REFUSALS)
    for name, value in limit_headers(standing).items():
        response.headers.setdefault(name, value)
