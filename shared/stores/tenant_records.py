"""Records of tenants and API keys: what is stored, what is shown, and how a change is merged into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from shared.audit import Changes, differences
from shared.clock import parse_rfc3339, rfc3339
from shared.codec import explain
from shared.errors import RefusedError
from shared.ids import hash_secret
from shared.policy import encode_policy
from shared.stores.records import Fields
from shared.tenants import Deletion, KeyLimits, KeyLimitsPatch, KeyView, Limits, NewTenant, Scope, TenantView

AnyLimits = TypeVar("AnyLimits", bound=KeyLimits)


def tenant_fields(new: NewTenant) -> Fields:
    """The record of a new tenant."""
    return {"name": new.name, **given(limit_fields(new.limits))}


def limit_fields(limits: KeyLimits) -> Fields:
    """Limits as they are stored: JSON for the API, and beside it what the scripts read; '' for what is not limited."""
    fields = {"limits": _text(limits), "policy": encode_policy(limits) or ""}
    if isinstance(limits, Limits):
        for field, value in (
            ("max_concurrent", limits.max_concurrent_jobs),
            ("max_queued", limits.max_queued_jobs),
            ("weight", limits.weight),
        ):
            fields[field] = "" if value is None else str(value)
    return fields


def given(fields: Fields) -> Fields:
    """The fields that say something."""
    return {name: value for name, value in fields.items() if value != ""}


def _text(limits: KeyLimits) -> str:
    return msgspec.json.encode(limits).decode()


def merge(stored: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396) of a JSON object."""
    merged = dict(stored)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            before = merged.get(name)
            merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
        else:
            merged[name] = value
    return merged


def patched(stored: str, patch: KeyLimitsPatch, kind: type[AnyLimits]) -> tuple[AnyLimits, Changes]:
    """Stored limits with a patch, and what changes by it. Raises RefusedError `invalid_request` with the JSON path when
    the result contradicts itself."""
    before = msgspec.json.decode(stored)
    try:
        merged = msgspec.convert(merge(before, msgspec.to_builtins(patch)), kind)
    except msgspec.ValidationError as error:
        path, message = explain(error)
        path = "$.limits" + path.removeprefix("$")
        raise RefusedError("invalid_request", f"{path}: {message}", errors=((path, message),)) from None
    return merged, differences(before, msgspec.to_builtins(merged), "limits.")


def limits_of(row: Fields, kind: type[AnyLimits]) -> AnyLimits:
    """The limits of a record; those of a key made before there were any are none."""
    return msgspec.json.decode(row.get("limits", "{}"), type=kind)


def tenant_view(row: Fields) -> TenantView:
    """How a tenant is shown."""
    return TenantView(
        tenant_id=row["id"],
        name=row["name"],
        limits=limits_of(row, Limits),
        created_at=rfc3339(int(row["created_ms"])),
        deletion=Deletion(job_id=row["erasure"], since=rfc3339(int(row["deleting"]))) if "deleting" in row else None,
    )


def key_fields(
    tenant: str, secret: str, scopes: Sequence[Scope], name: str | None, expires_ms: int | None, limits: KeyLimits
) -> Fields:
    """The record of a new key."""
    fields = {"tenant": tenant, "hash": hash_secret(secret), "scopes": ",".join(scopes)}
    if name is not None:
        fields["name"] = name
    if expires_ms is not None:
        fields["expires_ms"] = str(expires_ms)
    return {**fields, **given(limit_fields(limits))}


def expiry_ms(expires_at: str | UnsetType | None, now_ms: int) -> int | None:
    """The time at which a key is to expire. Raises RefusedError `invalid_request` when it is none, or has passed."""
    if expires_at is None or expires_at is UNSET:
        return None
    try:
        expires_ms = parse_rfc3339(expires_at)
        if expires_ms <= now_ms:
            raise ValueError("this time has passed")
    except ValueError as error:
        raise RefusedError("invalid_request", f"$.expiresAt: {error}", errors=(("$.expiresAt", str(error)),)) from None
    return expires_ms


def key_view(row: Fields, now_ms: int) -> KeyView:
    """How a key is shown."""
    until_ms = int(row.get("old_until_ms", "0"))
    ends_ms = int(row["expires_ms"]) if "expires_ms" in row else None
    if ends_ms is not None:
        until_ms = min(until_ms, ends_ms)
    return KeyView(
        key_id=row["id"],
        name=row.get("name"),
        scopes=[Scope(scope) for scope in row["scopes"].split(",")],
        limits=limits_of(row, KeyLimits),
        created_at=rfc3339(int(row["created_ms"])),
        expires_at=None if ends_ms is None else rfc3339(ends_ms),
        last_used_at=rfc3339(int(row["used_ms"])) if "used_ms" in row else None,
        previous_expires_at=rfc3339(until_ms) if until_ms > now_ms else UNSET,
    )
