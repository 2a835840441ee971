"""Reads and idempotent creation of plain records (tenants, keys, documents): a hash and an index by id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shared.errors import RefusedError
from shared.redis import Redis, Scripts
from shared.stores.jobs import mismatch

Fields = dict[str, str]


class Created(msgspec.Struct, frozen=True):
    """The answer of a creation: when replayed, `id` and `now_ms` are those of the first time."""

    id: str
    now_ms: int
    replayed: bool


def being_deleted(tenant: str) -> RefusedError:
    """Nothing of this tenant is changed any more."""
    return RefusedError(
        "conflict", f"The tenant {tenant[:64]!r} is being deleted: nothing of it can be made or changed any more."
    )


def overtaken() -> RefusedError:
    """A change met others, time and again."""
    return RefusedError("conflict", "Others changed it again and again meanwhile; read it, and send the change again.")


class RecordsStore:
    """What the stores of tenants and documents share."""

    def __init__(self, client: Redis, prefix: str) -> None:
        self.client = client
        self.scripts = Scripts(client, prefix)

    async def create(
        self,
        *,
        key: str,
        index: str,
        record_id: str,
        fields: Mapping[str, Any],
        idem_key: str | None = None,
        idem_body: str | None = None,
        parent: str | None = None,
        audit: Any = None,
    ) -> Created | None:
        """Stores a record once. None when it exists already, or when `parent` does not. `audit` is the
        entry that goes with it (shared.audit.entry).

        Raises RefusedError `idempotency_mismatch`, and `conflict` when `parent` is being deleted.
        """
        keys = [key, index, idem_key or index + ":-"]
        reply = await self.scripts.run(
            "create",
            [*keys, parent] if parent else keys,
            id=record_id,
            fields={name: value for name, value in fields.items() if value is not None},
            idem_body=idem_body if idem_key else None,
            audit=audit,
        )
        parts = [part.decode() for part in reply]
        if parts[0] == "ok":
            return Created(parts[1], int(parts[2]), parts[3] == "1")
        if parts[0] == "mismatch":
            raise mismatch()
        if parts[0] == "deleting":
            raise being_deleted(parts[1])
        return None

    async def get(self, key: str) -> Fields | None:
        """A record's fields, None when there is none."""
        raw: Mapping[bytes, bytes] = await self.client.hgetall(key)  # type: ignore[misc]  # redis-py types both worlds
        return {name.decode(): value.decode() for name, value in raw.items()} or None

    async def page(self, index: str, *, limit: int, after: str | None) -> tuple[list[str], bool]:
        """Ids of an index, newest first, after the cursor; and whether there are more."""
        bound = f"({after}" if after else "+"
        raw: list[bytes] = await self.client.zrevrangebylex(index, bound, "-", 0, limit + 1)
        return [identifier.decode() for identifier in raw[:limit]], len(raw) > limit
