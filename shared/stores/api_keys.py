"""The store of tenants' API keys: how they are made, shown, changed, rotated and ended."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from shared.audit import SYSTEM, Action, Actor, Changes, entry, told
from shared.clock import rfc3339
from shared.errors import RefusedError
from shared.ids import hash_secret, new_api_key, new_secret
from shared.keys import Keys
from shared.redis import Redis, redis_now_ms
from shared.stores.jobs import mismatch
from shared.stores.records import Fields, RecordsStore, being_deleted, overtaken
from shared.stores.tenant_records import expiry_ms, key_fields, key_view, limit_fields, patched
from shared.stores.tenants import MAX_TRIES, no_tenant
from shared.tenants import DEFAULT_SCOPES, KeyLimits, KeyPatch, KeyView, NewKey, Scope


class ApiKeysStore(RecordsStore):
    """API keys, as administrators see them. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        super().__init__(client, keys.prefix)
        self.keys = keys

    async def create_key(
        self,
        tenant: str,
        new: NewKey,
        *,
        by: Actor = SYSTEM,
        idem_key: str | None = None,
        idem_body: str | None = None,
    ) -> tuple[KeyView, bool]:
        """A new key with its secret, or a replay without it. Raises RefusedError `not_found` for an unknown
        tenant, `conflict` for one that is being deleted."""
        now_ms = await redis_now_ms(self.client)
        key_id, full = new_api_key(now_ms)
        scopes = list(dict.fromkeys(new.scopes or DEFAULT_SCOPES))
        expires_ms = expiry_ms(new.expires_at, now_ms)
        fields = key_fields(tenant, _secret_of(full), scopes, new.name, expires_ms, new.limits)
        expires_at = None if expires_ms is None else rfc3339(expires_ms)
        made = told(name=new.name, scopes=scopes, expiresAt=expires_at, limits=new.limits)
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
            raise no_tenant(tenant)
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
        if await self.get(self.keys.tenant(tenant)) is None:
            raise no_tenant(tenant)
        ids, more = await self.page(self.keys.api_keys(tenant), limit=limit, after=after)
        rows = [await self.get(self.keys.api_key(key_id)) for key_id in ids]
        now_ms = await redis_now_ms(self.client)
        return [key_view(row, now_ms) for row in rows if row], more

    async def change_key(self, tenant: str, key_id: str, patch: KeyPatch, *, by: Actor = SYSTEM) -> KeyView:
        """Changes a key, as `TenantsStore.change_tenant`. Raises RefusedError `not_found`, `invalid_request`, and
        `conflict` when the admin key would expire or lose a scope, and while the tenant is being deleted."""
        for _ in range(MAX_TRIES):
            try:
                row = await self._key(tenant, key_id)
            except RefusedError:
                if await self._is_being_deleted(tenant):  # its keys went first
                    raise being_deleted(tenant) from None
                raise
            now_ms = await redis_now_ms(self.client)
            changed = _changed(row, patch, now_ms)
            if not changed.details:
                return key_view(row, now_ms)
            outcome = await self.scripts.run(
                "change",
                [self.keys.api_key(key_id), self.keys.tenant(tenant)],
                id=key_id,
                tenant=tenant,
                expected={name: row.get(name, "") for name in ("name", "scopes", "expires_ms", "limits")},
                fields=changed.fields,
                limits=changed.has_new_limits,
                keeps_admin=changed.keeps_admin,
                audit=entry(by, Action.KEY_CHANGED, tenant, key_id, changed.details),
            )
            match outcome:
                case b"ok":
                    after = {**row, **changed.fields}
                    return key_view({name: value for name, value in after.items() if value != ""}, now_ms)
                case b"none":
                    raise _no_key(key_id)
                case b"deleting":
                    raise being_deleted(tenant)
                case b"admin":
                    raise _admin_key("expire or lose a scope")
        raise overtaken()

    async def _is_being_deleted(self, tenant: str) -> bool:
        return bool(await self.client.pipe.execute("HEXISTS", self.keys.tenant(tenant), "deleting"))

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
        """The key with a new secret, or a replay without it; the secret so far lives on for `overlap_ms`. A newest
        secret that nobody has used is replaced, and the one before it keeps its time; with 0 both end.

        Raises RefusedError `not_found`, `idempotency_mismatch`, and `conflict` for the admin key, for one that has
        expired, and while the tenant is being deleted."""
        secret = new_secret()
        record = self.keys.api_key(key_id)

        def audit(**changes: Any) -> Any:
            return entry(
                by, Action.KEY_ROTATED, tenant, key_id, {name: (None, value) for name, value in changes.items()}
            )

        match [
            part.decode()
            for part in await self.scripts.run(
                "rotate",
                [record, self.keys.tenant(tenant), idem_key or record + ":-"],
                id=key_id,
                tenant=tenant,
                hash=hash_secret(secret),
                overlap_ms=overlap_ms,
                audit=audit(overlapSeconds=overlap_ms // 1000),
                audit_replaced=audit(unusedSecretReplaced=True),
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
            case ["deleting"]:
                raise being_deleted(tenant)
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


class _Changed(msgspec.Struct, frozen=True):
    """What a patch makes of a key's record. `keeps_admin`: the admin key may be changed so."""

    fields: Fields
    details: Changes
    has_new_limits: bool
    keeps_admin: bool


def _changed(row: Fields, patch: KeyPatch, now_ms: int) -> _Changed:
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
    return _Changed(
        fields,
        {**changes, **limits_change},
        has_new_limits=bool(limits_change),
        keeps_admin=not fields.get("expires_ms") and set(scopes) == set(Scope),
    )


def _secret_of(full: str) -> str:
    return full.rpartition("_")[2]


def _times(before: str | None, after: str) -> tuple[str | None, str | None]:
    return (rfc3339(int(before)) if before else None, rfc3339(int(after)) if after else None)


def _no_key(key_id: str) -> RefusedError:
    return RefusedError("not_found", f"The tenant has no key {key_id[:64]!r}.")


def _admin_key(what: str) -> RefusedError:
    return RefusedError(
        "conflict",
        f"This is the admin key of this installation: it cannot {what} here. ERRAND_ADMIN_KEY, or else the file "
        "admin.key in the data directory, sets it; set another there and start the API again.",
    )
