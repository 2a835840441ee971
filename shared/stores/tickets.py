"""Stream tickets: what a browser's EventSource puts into its address, since it cannot send a header.

A ticket names the key that asked for it and proves, with a secret that only this installation knows, that it is for one
job. Nothing is stored of it; it ends with its key, or five minutes after its job.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final

from shared.jobs import JobRow
from shared.keys import Keys
from shared.redis import Redis, shielded
from shared.stores.access import AccessStore, Principal
from shared.tenants import Scope

AFTER_END_MS: Final = 5 * 60_000  # the contract: until 5 min after the job's end
_TICKET: Final = re.compile(r"st_([0-9A-HJKMNP-TV-Z]{26})_([0-9a-f]{64})")


class TicketsStore:
    """Issues and checks tickets. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys, access: AccessStore) -> None:
        self._client = client
        self._keys = keys
        self._access = access
        self._secret: bytes | None = None

    async def issue(self, principal: Principal, job_id: str) -> str:
        """The ticket of this key for this job, which the caller has found to be its tenant's."""
        return f"st_{principal.key_id.removeprefix('key_')}_{await self._proof(principal.key_id, job_id)}"

    async def redeem(self, ticket: str, job_id: str) -> Principal | None:
        """Who reads the job with this ticket; None when it is not valid. Whether its time is over, `is_over` says."""
        match = _TICKET.fullmatch(ticket)
        if match is None:
            return None
        key_id = f"key_{match[1]}"
        if not hmac.compare_digest(match[2], await self._proof(key_id, job_id)):
            return None
        tenant = await self._access.tenant_of(key_id)
        return Principal(tenant, key_id, frozenset({Scope.JOBS})) if tenant is not None else None

    async def _proof(self, key_id: str, job_id: str) -> str:
        if self._secret is None:
            await shielded(self._client.set(self._keys.ticket_secret, secrets.token_hex(32), nx=True))
            self._secret = await shielded(self._client.get(self._keys.ticket_secret))
        assert self._secret is not None
        return hmac.new(self._secret, f"{key_id} {job_id}".encode(), hashlib.sha256).hexdigest()


def ends_ms(row: JobRow, retry_max_ms: int) -> int:
    """When a job's tickets end: five minutes after it. While it runs, an estimate by its time-outs and attempts; what
    counts is its end."""
    if row.is_final:
        return row.number("finished_ms") + AFTER_END_MS
    attempts = max(1, row.number("max_attempts") - row.number("attempt") + 1)
    start_ms = max(row.now_ms, row.number("expires_ms"))
    return start_ms + attempts * (row.number("timeout_ms") + retry_max_ms) + AFTER_END_MS


def is_over(row: JobRow) -> bool:
    """Whether the job ended so long ago that its tickets have ended too."""
    return row.is_final and row.now_ms > row.number("finished_ms") + AFTER_END_MS
