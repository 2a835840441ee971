"""The store of tenants and their API keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from shared.audit import SYSTEM, Action, Actor, Changes, entry
from shared.clock import monotonic_s, rfc3339
from shared.errors import ConfigurationError, RefusedError
from shared.ids import hash_secret, new_api_key, new_id, new_secret, parse_api_key, same_secret, secret_mark
from shared.keys import Keys
from shared.redis import OUTAGE, Redis, redis_now_ms
from shared.stores.jobs import mismatch
from shared.stores.records import Fields, RecordsStore
from shared.stores.tenant_records import (
    expiry_ms,
    key_fields,
    key_view,
    limit_fields,
    patched,
    tenant_fields,
    tenant_view,
)
from shared.tenants import (
    DEFAULT_SCOPES,
    DEFAULT_TENANT_NAME,
    KeyLimits,
    KeyPatch,
    KeyView,
    Limits,
    NewKey,
    NewTenant,
    Scope,
    TenantPatch,
    TenantView,
)

# The tenant of the admin key. Its id is fixed, so that every process finds it without asking.
DEFAULT_TENANT = "ten_00000000000000000000000000"


USED_S: Final = 10.0  # a process notes the use of a key at most so often
MAX_USED: Final = 10_000
MAX_TRIES: Final = 50  # of a change that others overtake

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


class TenantsStore(RecordsStore):
    """Tenants and keys. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        super().__init__(client, keys.prefix)
        self.keys = keys
        self._used: dict[str, float] = {}

    async def create_tenant(
        self,
        new: NewTenant,
        *,
        by: Actor = SYSTEM,
        idem_key: str | None = None,
        idem_body: str | None = None,
    ) -> tuple[TenantView, bool]:
        """A new tenant, and whether this answer is a replay."""
        tenant = new_id("ten", await redis_now_ms(self.client))
        created = await self.create(
            key=self.keys.tenant(tenant),
            index=self.keys.tenants,
            record_id=tenant,
            fields=tenant_fields(new),
            idem_key=idem_key,
            idem_body=idem_body,
            audit=entry(by, Action.TENANT_CREATED, tenant, changes=_made(name=new.name, limits=new.limits)),
        )
        if created is None:
            raise RefusedError("conflict", "The tenant's id is taken; send the request again.")
        view = TenantView(tenant_id=created.id, name=new.name, limits=new.limits, created_at=rfc3339(created.now_ms))
        return view, created.replayed

    async def tenant(self, tenant: str) -> TenantView:
        """A tenant. Raises RefusedError `not_found`."""
        return tenant_view(await self._tenant(tenant))

    async def _tenant(self, tenant: str) -> Fields:
        row = await self.get(self.keys.tenant(tenant))
        if row is None:
            raise _no_tenant(tenant)
        return row

    async def change_tenant(self, tenant: str, patch: TenantPatch, *, by: Actor = SYSTEM) -> TenantView:
        """Changes a tenant; of two changes at the same time, one is made after the other. Raises RefusedError
        `not_found`, `invalid_request`."""
        for _ in range(MAX_TRIES):
            row = await self._tenant(tenant)
            fields: Fields = {}
            changes: dict[str, tuple[Any, Any]] = {}
            if patch.name is not UNSET and patch.name != row["name"]:
                fields["name"] = patch.name
                changes["name"] = (row["name"], patch.name)
            limits_change: Changes = {}
            if patch.limits is not UNSET:
                limits, limits_change = patched(row["limits"], patch.limits, Limits)
                if limits_change:
                    fields |= limit_fields(limits)
            if not fields:
                return tenant_view(row)
            outcome = await self.scripts.run(
                "change",
                [self.keys.tenant(tenant)] * 2,
                tenant=tenant,
                expected={name: row.get(name, "") for name in ("name", "limits")},
                fields=fields,
                limits=bool(limits_change),
                audit=entry(by, Action.TENANT_CHANGED, tenant, changes={**changes, **limits_change}),
            )
            if outcome == b"ok":
                return tenant_view({**row, **fields})
            if outcome == b"none":
                raise _no_tenant(tenant)
        raise _overtaken()

    async def tenants(self, *, limit: int, after: str | None) -> tuple[list[TenantView], bool]:
        """One page of tenants, newest first, and whether there are more."""
        ids, more = await self.page(self.keys.tenants, limit=limit, after=after)
        rows = [await self.get(self.keys.tenant(tenant)) for tenant in ids]
        return [tenant_view(row) for row in rows if row], more

    async def create_key(
        self,
        tenant: str,
        new: NewKey,
        *,
        by: Actor = SYSTEM,
        idem_key: str | None = None,
        idem_body: str | None = None,
    ) -> tuple[KeyView, bool]:
        """A new key with its secret, or a replay without it. Raises RefusedError `not_found` for an unknown tenant."""
        now_ms = await redis_now_ms(self.client)
        key_id, full = new_api_key(now_ms)
        scopes = list(dict.fromkeys(new.scopes or DEFAULT_SCOPES))
        expires_ms = expiry_ms(new.expires_at, now_ms)
        fields = key_fields(tenant, _secret_of(full), scopes, new.name, expires_ms, new.limits)
        expires_at = None if expires_ms is None else rfc3339(expires_ms)
        made = _made(name=new.name, scopes=scopes, expiresAt=expires_at, limits=new.limits)
        created = await self.create(
            key=self.keys.api_key(key_id),
            index=self.keys.api_keys(tenant),
            record_id=key_id,
            fields=fields,
            idem_key=idem_key,
            idem_body=idem_body,
            parent=self.keys.tenant(tenant),
            audit=entry(by, Action.KEY_CREATED, tenant, key_id, made),
        )
        if created is None:
            raise _no_tenant(tenant)
        row = await self.get(self.keys.api_key(created.id)) or {
            **fields,
            "id": created.id,
            "created_ms": str(now_ms),
        }
        view = key_view(row, now_ms)
        return (view, True) if created.replayed else (msgspec.structs.replace(view, key=full), False)

    async def key(self, tenant: str, key_id: str) -> KeyView:
        """A key of a tenant, without its secret. Raises RefusedError `not_found`."""
        return key_view(await self._key(tenant, key_id), await redis_now_ms(self.client))

    async def _key(self, tenant: str, key_id: str) -> Fields:
        row = await self.get(self.keys.api_key(key_id))
        if row is None or row["tenant"] != tenant:
            raise _no_key(key_id)
        return row

    async def list_keys(self, tenant: str, *, limit: int, after: str | None) -> tuple[list[KeyView], bool]:
        """One page of a tenant's keys, newest first, and whether there are more."""
        await self._tenant(tenant)
        ids, more = await self.page(self.keys.api_keys(tenant), limit=limit, after=after)
        rows = [await self.get(self.keys.api_key(key_id)) for key_id in ids]
        now_ms = await redis_now_ms(self.client)
        return [key_view(row, now_ms) for row in rows if row], more

    async def change_key(self, tenant: str, key_id: str, patch: KeyPatch, *, by: Actor = SYSTEM) -> KeyView:
        """Changes a key, as `change_tenant`. Raises RefusedError `not_found`, `invalid_request`, and `conflict` when
        the admin key would expire or lose a scope."""
        for _ in range(MAX_TRIES):
            row = await self._key(tenant, key_id)
            now_ms = await redis_now_ms(self.client)
            fields: Fields = {}
            changes: dict[str, tuple[Any, Any]] = {}
            scopes = list(Scope)
            if patch.name is not UNSET:
                fields["name"] = patch.name or ""
                changes["name"] = (row.get("name"), patch.name)
            if patch.scopes is not UNSET:
                scopes = list(dict.fromkeys(patch.scopes))
                fields["scopes"] = ",".join(scopes)
                changes["scopes"] = (row["scopes"].split(","), [scope.value for scope in scopes])
            if patch.expires_at is not UNSET:
                expires_ms = expiry_ms(patch.expires_at, now_ms)
                fields["expires_ms"] = "" if expires_ms is None else str(expires_ms)
                changes["expiresAt"] = _times(row.get("expires_ms"), fields["expires_ms"])
            changes = {member: (old, new) for member, (old, new) in changes.items() if old != new}
            limits_change: Changes = {}
            if patch.limits is not UNSET:
                limits, limits_change = patched(row.get("limits", "{}"), patch.limits, KeyLimits)
                fields |= limit_fields(limits)
            if not changes and not limits_change:
                return key_view(row, now_ms)
            outcome = await self.scripts.run(
                "change",
                [self.keys.api_key(key_id), self.keys.tenant(tenant)],
                id=key_id,
                tenant=tenant,
                expected={name: row.get(name, "") for name in ("name", "scopes", "expires_ms", "limits")},
                fields=fields,
                limits=bool(limits_change),
                keeps_admin=not fields.get("expires_ms") and set(scopes) == set(Scope),
                audit=entry(by, Action.KEY_CHANGED, tenant, key_id, {**changes, **limits_change}),
            )
            if outcome == b"none":
                raise _no_key(key_id)
            if outcome == b"admin":
                raise _admin_key("expire or lose a scope")
            if outcome == b"ok":
                after = {**row, **fields}
                return key_view({name: value for name, value in after.items() if value != ""}, now_ms)
        raise _overtaken()

    async def rotate(
        self,
        tenant: str,
        key_id: str,
        overlap_ms: int,
        *,
        by: Actor = SYSTEM,
        idem_key: str | None = None,
        idem_body: str | None = None,
    ) -> tuple[KeyView, bool]:
        """The key with a new secret, or a replay without it; the secret so far lives on for `overlap_ms`. Raises
        RefusedError `not_found`, `idempotency_mismatch`, and `conflict` for the admin key and one that has expired."""
        secret = new_secret()
        record = self.keys.api_key(key_id)
        changes: Changes = {"overlapSeconds": (None, overlap_ms // 1000)}
        match [
            part.decode()
            for part in await self.scripts.run(
                "rotate",
                [record, self.keys.tenant(tenant), idem_key or record + ":-"],
                id=key_id,
                tenant=tenant,
                hash=hash_secret(secret),
                overlap_ms=overlap_ms,
                audit=entry(by, Action.KEY_ROTATED, tenant, key_id, changes),
                idem_body=idem_body if idem_key else None,
            )
        ]:
            case ["ok", replayed]:
                view = await self.key(tenant, key_id)
                if replayed == "1":
                    return view, True
                return msgspec.structs.replace(view, key=f"ek_{key_id.removeprefix('key_')}_{secret}"), False
            case ["admin"]:
                raise _admin_key("be rotated")
            case ["expired"]:
                raise RefusedError("conflict", "The key has expired; give it another `expiresAt` first.")
            case ["mismatch"]:
                raise mismatch()
            case _:
                raise _no_key(key_id)

    async def revoke(self, tenant: str, key_id: str, *, by: Actor = SYSTEM) -> None:
        """Ends a key at once, in every process. Raises RefusedError `not_found`, and `conflict` for the admin key."""
        outcome = await self.scripts.run(
            "revoke",
            [self.keys.api_key(key_id), self.keys.api_keys(tenant), self.keys.tenant(tenant)],
            id=key_id,
            tenant=tenant,
            audit=entry(by, Action.KEY_REVOKED, tenant, key_id),
        )
        if outcome == b"none":
            raise _no_key(key_id)
        if outcome == b"admin":
            raise _admin_key("be revoked")

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
        if not same_secret(secret, row["hash"]):
            if not same_secret(secret, row.get("old_hash", "")):
                return None
            ends.append(int(row["old_until_ms"]))
        left_ms = min(ends) - await redis_now_ms(self.client) if ends else None
        if left_ms is not None and left_ms <= 0:
            return None
        await self._note_use(key_id)
        scopes = frozenset(row["scopes"].split(","))
        return Authenticated(Principal(row["tenant"], key_id, scopes, secret_mark(hash_secret(secret))), left_ms)

    async def _note_use(self, key_id: str) -> None:
        now_s = monotonic_s()
        if self._used.get(key_id, -USED_S) > now_s - USED_S:
            return
        if len(self._used) >= MAX_USED:
            self._used.clear()
        self._used[key_id] = now_s
        try:
            await self.scripts.run("used", [self.keys.api_key(key_id)])
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

    async def ensure_admin(self, admin_key: str) -> None:
        """Makes the tenant `default` and the admin key, which has every scope. Idempotent.

        Raises ConfigurationError when `admin_key` has not the form of a key, or is one of another tenant.
        """
        parsed = parse_api_key(admin_key)
        if parsed is None:
            raise ConfigurationError("The admin key must have the form ek_<ULID>_<base62 secret of at least 20>.")
        key_id, secret = parsed
        default = NewTenant(name=DEFAULT_TENANT_NAME)
        await self.create(
            key=self.keys.tenant(DEFAULT_TENANT),
            index=self.keys.tenants,
            record_id=DEFAULT_TENANT,
            fields=tenant_fields(default),
            audit=entry(SYSTEM, Action.TENANT_CREATED, DEFAULT_TENANT, changes=_made(name=default.name)),
        )
        scopes = list(Scope)
        record, index = self.keys.api_key(key_id), self.keys.api_keys(DEFAULT_TENANT)
        fields = key_fields(DEFAULT_TENANT, secret, scopes, "admin", None, KeyLimits())
        await self.create(
            key=record,
            index=index,
            record_id=key_id,
            fields=fields,
            audit=entry(SYSTEM, Action.KEY_CREATED, DEFAULT_TENANT, key_id, _made(name="admin", scopes=scopes)),
        )
        # A replaced admin key ends with the first start of its successor.
        outcome = await self.scripts.run(
            "instate",
            [record, index, self.keys.tenant(DEFAULT_TENANT)],
            id=key_id,
            tenant=DEFAULT_TENANT,
            hash=fields["hash"],
            scopes=fields["scopes"],
            rotated=entry(SYSTEM, Action.KEY_ROTATED, DEFAULT_TENANT, key_id, {"overlapSeconds": (None, 0)}),
            revoked=entry(SYSTEM, Action.KEY_REVOKED, DEFAULT_TENANT, changes={"replacedBy": (None, key_id)}),
        )
        if outcome == b"foreign":
            raise ConfigurationError(
                "The admin key (ERRAND_ADMIN_KEY, or admin.key) is a key of another tenant already."
            )


_LIFE: Final = ("id", "expires_ms", "hash", "old_hash", "old_until_ms")


def _secret_of(full: str) -> str:
    return full.rpartition("_")[2]


def _made(**members: Any) -> Changes:
    """What is told of something new: the members that say something."""
    told = {name: msgspec.to_builtins(value) for name, value in members.items()}
    return {name: (None, value) for name, value in told.items() if value}


def _times(before: str | None, after: str) -> tuple[str | None, str | None]:
    return (rfc3339(int(before)) if before else None, rfc3339(int(after)) if after else None)


def _no_tenant(tenant: str) -> RefusedError:
    return RefusedError("not_found", f"There is no tenant {tenant[:64]!r}.")


def _no_key(key_id: str) -> RefusedError:
    return RefusedError("not_found", f"There is no key {key_id[:64]!r}.")


def _admin_key(what: str) -> RefusedError:
    return RefusedError(
        "conflict",
        f"This is the admin key of this installation: it cannot {what} here. ERRAND_ADMIN_KEY, or else the file "
        "admin.key in the data directory, sets it; set another there and start the API again.",
    )


def _overtaken() -> RefusedError:
    return RefusedError("conflict", "Others changed it again and again meanwhile; read it, and send the change again.")
