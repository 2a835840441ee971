"""The store of the audit log. It only reads: entries are written beside the changes (lib/audit.lua)."""

from __future__ import annotations

from typing import Any, Final

from shared.audit import AuditEntry, audit_entry
from shared.keys import Keys
from shared.redis import Redis

BATCH: Final = 500
MAX_SCANNED: Final = 20_000  # entries that one page looks at for those that a filter wants


class AuditStore:
    """Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def entries(
        self, *, limit: int, after: str | None, wanted: dict[str, str]
    ) -> tuple[list[AuditEntry], str | None]:
        """One page, newest first, and the cursor of the next, None at the end. `wanted` maps stored fields to the value
        that they must have. A page may be short, or empty, when few entries are wanted of many."""
        return await self._entries(self._keys.audit, limit=limit, after=after, wanted=wanted)

    async def history(
        self, owner: str, name: str, *, limit: int, after: str | None
    ) -> tuple[list[AuditEntry], str | None]:
        """The same of a prompt's own entries."""
        return await self._entries(self._keys.prompt_history(owner, name), limit=limit, after=after, wanted={})

    async def _entries(
        self, stream: str, *, limit: int, after: str | None, wanted: dict[str, str]
    ) -> tuple[list[AuditEntry], str | None]:
        found: list[AuditEntry] = []
        scanned = 0
        if after is not None and not after.strip("0-"):
            return found, None  # the first place that there can be: Redis refuses to look before it
        while scanned < MAX_SCANNED:
            batch: list[Any] = await self._client.xrevrange(
                stream, f"({after}" if after else "+", "-", BATCH if wanted else limit + 1
            )
            for raw_id, fields in batch:
                row = {name.decode(): value.decode() for name, value in fields.items()}
                if all(row.get(name) == value for name, value in wanted.items()):
                    if len(found) == limit:
                        return found, found[-1].id
                    found.append(audit_entry(raw_id.decode(), row))
                after = raw_id.decode()
            scanned += len(batch)
            if len(batch) < BATCH and (wanted or len(batch) <= limit):
                return found, None
        return found, after
