"""Tenants and API keys: their limits and how they are shown."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from msgspec import UNSET, Meta, UnsetType

from shared.jobs import Output
from shared.specs import Wire

DEFAULT_TENANT_NAME: Final = "default"
MAX_QUEUED_JOBS: Final = 100_000


class Scope(StrEnum):
    """What a key may do."""

    JOBS = "jobs"
    DOCUMENTS = "documents"
    SEARCH = "search"
    PROMPTS = "prompts"
    USAGE = "usage"
    ADMIN = "admin"


DEFAULT_SCOPES: Final = tuple(scope for scope in Scope if scope is not Scope.ADMIN)


class Limits(Wire, frozen=True, omit_defaults=True):
    """A tenant's limits; an absent one does not exist (`maxQueuedJobs`: 100,000, `weight`: 1)."""

    max_concurrent_jobs: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    max_queued_jobs: Annotated[int, Meta(ge=0, le=10**9)] | None = None
    weight: Annotated[float, Meta(ge=0.001, le=1_000)] | None = None


class NewTenant(Wire, frozen=True):
    """Body of `POST /api/admin/tenants`."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    limits: Limits = Limits()


class TenantView(Output, frozen=True):
    """A tenant."""

    tenant_id: str
    name: str
    limits: Limits
    created_at: str


class NewKey(Wire, frozen=True):
    """Body of `POST /api/admin/tenants/{tenantId}/keys`; `expiresAt` is RFC 3339 with a zone."""

    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    scopes: Annotated[list[Scope], Meta(min_length=1)] | None = None
    expires_at: str | None = None


class KeyView(Output, frozen=True, kw_only=True):
    """An API key. `key` is the full key, present in the answer to its creation only."""

    key_id: str
    key: str | UnsetType = UNSET
    name: str | None
    scopes: list[Scope]
    created_at: str
    expires_at: str | None
