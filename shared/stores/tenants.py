"""The store of tenants, and of the one that every installation has, with its admin key."""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET

from shared.audit import SYSTEM, Action, Actor, Changes, entry, told
from shared.clock import rfc3339
from shared.errors import ConfigurationError, RefusedError
from shared.ids import new_id, parse_api_key
from shared.keys import Keys
from shared.redis import Redis, redis_now_ms
from shared.stores.records import Fields, RecordsStore, being_deleted, overtaken
from shared.stores.tenant_records import key_fields, limit_fields, patched, tenant_fields, tenant_view
from shared.tenants import DEFAULT_TENANT_NAME, KeyLimits, Limits, NewTenant, Scope, TenantPatch, TenantView

# The tenant of the admin key. Its id is fixed, so that every process finds it without asking.
DEFAULT_TENANT: Final = "ten_00000000000000000000000000"

MAX_TRIES: Final = 50  # of a change that others overtake


class TenantsStore(RecordsStore):
    """Tenants. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        super().__init__(client, keys.prefix)
        self.keys = keys

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
            audit=entry(by, Action.TENANT_CREATED, tenant, changes=told(name=new.name, limits=new.limits)),
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
            raise no_tenant(tenant)
        return row

    async def change_tenant(self, tenant: str, patch: TenantPatch, *, by: Actor = SYSTEM) -> TenantView:
        """Changes a tenant; of two changes at the same time, one is made after the other. Raises RefusedError
        `not_found`, `invalid_request`, and `conflict` for one that is being deleted."""
        for _ in range(MAX_TRIES):
            row = await self._tenant(tenant)
            fields, changes, has_new_limits = _changed(row, patch)
            if not fields and "deleting" not in row:
                return tenant_view(row)
            outcome = await self.scripts.run(
                "change",
                [self.keys.tenant(tenant)] * 2,
                tenant=tenant,
                expected={name: row.get(name, "") for name in ("name", "limits")},
                fields=fields,
                limits=has_new_limits,
                audit=entry(by, Action.TENANT_CHANGED, tenant, changes=changes),
            )
            match outcome:
                case b"ok":
                    return tenant_view({**row, **fields})
                case b"none":
                    raise no_tenant(tenant)
                case b"deleting":
                    raise being_deleted(tenant)
        raise overtaken()

    async def tenants(self, *, limit: int, after: str | None) -> tuple[list[TenantView], bool]:
        """One page of tenants, newest first, and whether there are more."""
        ids, more = await self.page(self.keys.tenants, limit=limit, after=after)
        rows = [await self.get(self.keys.tenant(tenant)) for tenant in ids]
        return [tenant_view(row) for row in rows if row], more

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
            audit=entry(SYSTEM, Action.TENANT_CREATED, DEFAULT_TENANT, changes=told(name=default.name)),
        )
        scopes = list(Scope)
        record, index = self.keys.api_key(key_id), self.keys.api_keys(DEFAULT_TENANT)
        fields = key_fields(DEFAULT_TENANT, secret, scopes, "admin", None, KeyLimits())
        await self.create(
            key=record,
            index=index,
            record_id=key_id,
            fields=fields,
            audit=entry(SYSTEM, Action.KEY_CREATED, DEFAULT_TENANT, key_id, told(name="admin", scopes=scopes)),
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


def _changed(row: Fields, patch: TenantPatch) -> tuple[Fields, Changes, bool]:
    """What a patch makes of a tenant's record: the fields to write, what is told of it, and whether limits change."""
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
    return fields, {**changes, **limits_change}, bool(limits_change)


def no_tenant(tenant: str) -> RefusedError:
    """There is none with this id."""
    return RefusedError("not_found", f"There is no tenant {tenant[:64]!r}.")
