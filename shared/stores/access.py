"""Who calls: which key a secret belongs to, what it may do, and whether it still stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from shared.clock import monotonic_s
from shared.ids import hash_secret, parse_api_key, same_secret, secret_mark
from shared.keys import Keys
from shared.redis import OUTAGE, Redis, redis_now_ms
from shared.stores.records import RecordsStore

USED_S: Final = 10.0  # a process notes the use of a key at most so often
MAX_USED: Final = 10_000
_LIFE: Final = ("id", "expires_ms", "hash", "old_hash", "old_until_ms")

Presented = tuple[str, str]
"""A key's id and the mark of the secret that was presented ('' for a ticket, which is bound to the key alone)."""


class Principal(msgspec.Struct, frozen=True):
    """Who calls: the tenant, the key, what the key may do, and with which of its secrets it came (its mark, '' for a
    ticket)."""

    tenant: str
    key_id: str
    scopes: frozenset[str]
    secret: str = ""

    @property
    def presented(self) -> Presented:
        """What the call stands and falls with."""
        return self.key_id, self.secret


class Authenticated(msgspec.Struct, frozen=True):
    """Who holds a key, and for how long yet it is sure to be valid (None: until it is revoked)."""

    principal: Principal
    left_ms: int | None


class AccessStore(RecordsStore):
    """API keys, as those who call present them. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        super().__init__(client, keys.prefix)
        self.keys = keys
        self._used: dict[str, float] = {}

    async def authenticate(self, presented: str) -> Authenticated | None:
        """Who holds this key; None when it is unknown, wrong or expired."""
        parsed = parse_api_key(presented)
        if parsed is None:
            return None
        key_id, secret = parsed
        row = await self.get(self.keys.api_key(key_id))
        if row is None:
            return None
        ends = [int(row["expires_ms"])] if "expires_ms" in row else []
        is_newest = same_secret(secret, row["hash"])
        if not is_newest:
            if not same_secret(secret, row.get("old_hash", "")):
                return None
            ends.append(int(row["old_until_ms"]))
        left_ms = min(ends) - await redis_now_ms(self.client) if ends else None
        if left_ms is not None and left_ms <= 0:
            return None
        await self._note_use(key_id, first_of=row["hash"] if is_newest and "unused" in row else None)
        scopes = frozenset(row["scopes"].split(","))
        return Authenticated(Principal(row["tenant"], key_id, scopes, secret_mark(hash_secret(secret))), left_ms)

    async def _note_use(self, key_id: str, *, first_of: str | None = None) -> None:
        """`first_of` is the hash of a secret that was not used before: that is noted at once, since a rotation may
        replace one that nobody has used."""
        now_s = monotonic_s()
        if first_of is None and self._used.get(key_id, -USED_S) > now_s - USED_S:
            return
        if len(self._used) >= MAX_USED:
            self._used.clear()
        self._used[key_id] = now_s
        try:
            await self.scripts.run("used", [self.keys.api_key(key_id)], hash=first_of)
        except OUTAGE:
            self._used.pop(key_id, None)  # it is only told; the request does not fail for it

    async def tenant_of(self, key_id: str) -> str | None:
        """Whose key this is; None when it is revoked or has expired."""
        row = await self.get(self.keys.api_key(key_id))
        return row["tenant"] if row is not None and not await self.ended([(key_id, "")]) else None

    async def ended(self, presented: Sequence[Presented]) -> list[Presented]:
        """Those whose key is revoked or has expired, or whose secret lives no longer."""
        if not presented:
            return []
        now_ms = await redis_now_ms(self.client)
        ended = []
        for start in range(0, len(presented), 200):
            batch = presented[start : start + 200]
            rows = await asyncio.gather(
                *(self.client.pipe.execute("HMGET", self.keys.api_key(key), *_LIFE) for key, _ in batch)
            )
            for one, row in zip(batch, rows, strict=True):
                known, expires_ms, hash_, old_hash, old_until_ms = row
                live = [hash_] if hash_ else []
                if old_hash and int(old_until_ms) > now_ms:
                    live.append(old_hash)
                is_live = not one[1] or one[1] in [secret_mark(found.decode()) for found in live]
                if known is None or (expires_ms and int(expires_ms) <= now_ms) or not is_live:
                    ended.append(one)
        return ended
