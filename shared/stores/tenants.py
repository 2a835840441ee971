"""The store of tenants and their API keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from shared.clock import parse_rfc3339, rfc3339
from shared.errors import ConfigurationError, RefusedError
from shared.ids import hash_secret, new_api_key, new_id, parse_api_key, same_secret
from shared.keys import Keys
from shared.policy import encode_policy
from shared.redis import Redis, redis_now_ms
from shared.stores.records import Fields, RecordsStore
from shared.tenants import (
    DEFAULT_SCOPES,
    DEFAULT_TENANT_NAME,
    KeyView,
    Limits,
    NewKey,
    NewTenant,
    Scope,
    TenantView,
)

# The tenant of the admin key. Its id is fixed, so that every process finds it without asking.
DEFAULT_TENANT = "ten_00000000000000000000000000"


class Principal(msgspec.Struct, frozen=True):
    """Who calls: the tenant, the key, and what the key may do."""

    tenant: str
    key_id: str
    scopes: frozenset[str]


class TenantsStore(RecordsStore):
    """Tenants and keys. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        super().__init__(client, keys.prefix)
        self.keys = keys

    async def create_tenant(
        self, new: NewTenant, *, idem_key: str | None = None, idem_body: str | None = None
    ) -> tuple[TenantView, bool]:
        """A new tenant, and whether this answer is a replay."""
        tenant = new_id("ten", await redis_now_ms(self.client))
        created = await self.create(
            key=self.keys.tenant(tenant),
            index=self.keys.tenants,
            record_id=tenant,
            fields=_tenant_fields(new),
            idem_key=idem_key,
            idem_body=idem_body,
        )
        if created is None:
            raise RefusedError("conflict", "The tenant's id is taken; send the request again.")
        view = TenantView(tenant_id=created.id, name=new.name, limits=new.limits, created_at=rfc3339(created.now_ms))
        return view, created.replayed

    async def tenant(self, tenant: str) -> TenantView:
        """A tenant. Raises RefusedError `not_found`."""
        row = await self.get(self.keys.tenant(tenant))
        if row is None:
            raise RefusedError("not_found", f"There is no tenant {tenant[:64]!r}.")
        return _tenant_view(row)

    async def tenants(self, *, limit: int, after: str | None) -> tuple[list[TenantView], bool]:
        """One page of tenants, newest first, and whether there are more."""
        ids, more = await self.page(self.keys.tenants, limit=limit, after=after)
        rows = [await self.get(self.keys.tenant(tenant)) for tenant in ids]
        return [_tenant_view(row) for row in rows if row], more

    async def create_key(
        self, tenant: str, new: NewKey, *, idem_key: str | None = None, idem_body: str | None = None
    ) -> tuple[KeyView, bool]:
        """A new key with its secret, or a replay without it. Raises RefusedError `not_found` for an unknown tenant."""
        now_ms = await redis_now_ms(self.client)
        key_id, full = new_api_key(now_ms)
        scopes = list(dict.fromkeys(new.scopes or DEFAULT_SCOPES))
        fields = _key_fields(tenant, full, scopes, new.name, new.expires_at, now_ms)
        created = await self.create(
            key=self.keys.api_key(key_id),
            index=self.keys.api_keys(tenant),
            record_id=key_id,
            fields=fields,
            idem_key=idem_key,
            idem_body=idem_body,
            parent=self.keys.tenant(tenant),
        )
        if created is None:
            raise RefusedError("not_found", f"There is no tenant {tenant[:64]!r}.")
        row = await self.get(self.keys.api_key(created.id)) or {
            **fields,
            "id": created.id,
            "created_ms": str(now_ms),
        }
        view = _key_view(row)
        return (view, True) if created.replayed else (msgspec.structs.replace(view, key=full), False)

    async def key(self, tenant: str, key_id: str) -> KeyView:
        """A key of a tenant, without its secret. Raises RefusedError `not_found`."""
        row = await self.get(self.keys.api_key(key_id))
        if row is None or row["tenant"] != tenant:
            raise RefusedError("not_found", f"There is no key {key_id[:64]!r}.")
        return _key_view(row)

    async def list_keys(self, tenant: str, *, limit: int, after: str | None) -> tuple[list[KeyView], bool]:
        """One page of a tenant's keys, newest first, and whether there are more."""
        await self.tenant(tenant)
        ids, more = await self.page(self.keys.api_keys(tenant), limit=limit, after=after)
        rows = [await self.get(self.keys.api_key(key_id)) for key_id in ids]
        return [_key_view(row) for row in rows if row], more

    async def revoke(self, tenant: str, key_id: str) -> None:
        """Ends a key at once, in every process. Raises RefusedError `not_found`."""
        await self.key(tenant, key_id)
        await self.client.delete(self.keys.api_key(key_id))
        await self.client.zrem(self.keys.api_keys(tenant), key_id)
        await self.client.publish(self.keys.revoked_channel, key_id)

    async def authenticate(self, presented: str) -> Principal | None:
        """Who holds this key; None when it is unknown, wrong or expired."""
        parsed = parse_api_key(presented)
        if parsed is None:
            return None
        key_id, secret = parsed
        row = await self.get(self.keys.api_key(key_id))
        if row is None or not same_secret(secret, row["hash"]):
            return None
        if "expires_ms" in row and int(row["expires_ms"]) <= await redis_now_ms(self.client):
            return None
        return Principal(row["tenant"], key_id, frozenset(row["scopes"].split(",")))

    async def tenant_of(self, key_id: str) -> str | None:
        """Whose key this is; None when it is revoked or has expired."""
        row = await self.get(self.keys.api_key(key_id))
        return row["tenant"] if row is not None and not await self.ended([key_id]) else None

    async def ended(self, key_ids: Sequence[str]) -> list[str]:
        """Those of the keys that are revoked or have expired."""
        if not key_ids:
            return []
        now_ms = await redis_now_ms(self.client)
        ended = []
        for start in range(0, len(key_ids), 200):
            batch = key_ids[start : start + 200]
            rows = await asyncio.gather(
                *(self.client.pipe.execute("HMGET", self.keys.api_key(key), "id", "expires_ms") for key in batch)
            )
            for key_id, (known, expires_ms) in zip(batch, rows, strict=True):
                if known is None or (expires_ms and int(expires_ms) <= now_ms):
                    ended.append(key_id)
        return ended

    async def ensure_admin(self, admin_key: str) -> None:
        """Makes the tenant `default` and the admin key, which has every scope. Idempotent.

        Raises ConfigurationError when `admin_key` has not the form of a key.
        """
        parsed = parse_api_key(admin_key)
        if parsed is None:
            raise ConfigurationError("The admin key must have the form ek_<ULID>_<base62 secret of at least 20>.")
        key_id, _ = parsed
        await self.create(
            key=self.keys.tenant(DEFAULT_TENANT),
            index=self.keys.tenants,
            record_id=DEFAULT_TENANT,
            fields=_tenant_fields(NewTenant(name=DEFAULT_TENANT_NAME)),
        )
        fields = _key_fields(DEFAULT_TENANT, admin_key, list(Scope), "admin", None, 0)
        record = self.keys.api_key(key_id)
        created = await self.create(
            key=record, index=self.keys.api_keys(DEFAULT_TENANT), record_id=key_id, fields=fields
        )
        if created is None:
            await self.client.hset(record, mapping={"hash": fields["hash"], "scopes": fields["scopes"]})  # type: ignore[misc]
        # A replaced admin key ends with the first start of its successor.
        tenant = self.keys.tenant(DEFAULT_TENANT)
        before: Any = await self.client.hget(tenant, "admin_key")  # type: ignore[misc]
        await self.client.hset(tenant, "admin_key", key_id)  # type: ignore[misc]
        if before is not None and before.decode() != key_id:
            old = before.decode()
            await self.client.delete(self.keys.api_key(old))
            await self.client.zrem(self.keys.api_keys(DEFAULT_TENANT), old)
            await self.client.publish(self.keys.revoked_channel, old)


def _tenant_fields(new: NewTenant) -> Fields:
    limits = new.limits
    fields = {"name": new.name, "limits": msgspec.json.encode(limits).decode()}
    # The scripts read these three; the JSON beside them is what the API shows.
    if limits.max_concurrent_jobs is not None:
        fields["max_concurrent"] = str(limits.max_concurrent_jobs)
    if limits.max_queued_jobs is not None:
        fields["max_queued"] = str(limits.max_queued_jobs)
    if limits.weight is not None:
        fields["weight"] = str(limits.weight)
    if (policy := encode_policy(limits)) is not None:
        fields["policy"] = policy
    return fields


def _tenant_view(row: Fields) -> TenantView:
    return TenantView(
        tenant_id=row["id"],
        name=row["name"],
        limits=msgspec.json.decode(row["limits"], type=Limits),
        created_at=rfc3339(int(row["created_ms"])),
    )


def _key_fields(
    tenant: str, full: str, scopes: Sequence[Scope], name: str | None, expires_at: str | None, now_ms: int
) -> Fields:
    secret = full.rpartition("_")[2]
    fields = {"tenant": tenant, "hash": hash_secret(secret), "scopes": ",".join(scopes)}
    if name is not None:
        fields["name"] = name
    if expires_at is not None:
        try:
            expires_ms = parse_rfc3339(expires_at)
        except ValueError as error:
            raise RefusedError(
                "invalid_request", f"$.expiresAt: {error}", errors=(("$.expiresAt", str(error)),)
            ) from None
        if expires_ms <= now_ms:
            text = "this time has passed"
            raise RefusedError("invalid_request", f"$.expiresAt: {text}", errors=(("$.expiresAt", text),))
        fields["expires_ms"] = str(expires_ms)
    return fields


def _key_view(row: Fields) -> KeyView:
    return KeyView(
        key_id=row["id"],
        name=row.get("name"),
        scopes=[Scope(scope) for scope in row["scopes"].split(",")],
        created_at=rfc3339(int(row["created_ms"])),
        expires_at=rfc3339(int(row["expires_ms"])) if "expires_ms" in row else None,
    )
