"""Tenants and API keys: their limits and how they are shown."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from msgspec import UNSET, Meta, UnsetType

from shared.clock import MOMENT
from shared.jobs import Output
from shared.rules import PRINTABLE, Rule, at_least_one_of, like, needs
from shared.specs import Wire

DEFAULT_TENANT_NAME: Final = "default"
MAX_QUEUED_JOBS: Final = 100_000
MAX_OVERLAP_S: Final = 30 * 86_400
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Scope(StrEnum):
    """What a key may do."""

    JOBS = "jobs"
    DOCUMENTS = "documents"
    SEARCH = "search"
    PROMPTS = "prompts"
    PROMOTE = "promote"  # protected labels of prompts
    USAGE = "usage"
    ADMIN = "admin"


DEFAULT_SCOPES: Final = tuple(scope for scope in Scope if scope is not Scope.ADMIN)


Name = Annotated[str, Meta(min_length=1, max_length=128)]
Scopes = Annotated[list[Scope], Meta(min_length=1)]
Rate = Annotated[int, Meta(ge=1, le=10**12)]
Tokens = Annotated[int, Meta(ge=0, le=10**15)]
Usd = Annotated[float, Meta(ge=0, le=9_000_000)]


class Period(StrEnum):
    """The window of a budget: a UTC day, a UTC month, or all time."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Budget(Wire, frozen=True, omit_defaults=True):
    """What may be spent in a window. Soft limits warn, hard limits end it."""

    RULES: ClassVar[list[Rule]] = [at_least_one_of("softTokens", "hardTokens", "softUsd", "hardUsd")]

    period: Period
    soft_tokens: Tokens | None = None
    hard_tokens: Tokens | None = None
    soft_usd: Usd | None = None
    hard_usd: Usd | None = None

    def __post_init__(self) -> None:
        if all(limit is None for limit in (self.soft_tokens, self.hard_tokens, self.soft_usd, self.hard_usd)):
            raise ValueError("a budget needs at least one of softTokens, hardTokens, softUsd and hardUsd")
        for unit, soft, hard in (
            ("Tokens", self.soft_tokens, self.hard_tokens),
            ("Usd", self.soft_usd, self.hard_usd),
        ):
            if soft is not None and hard is not None and soft > hard:
                raise ValueError(f"soft{unit} must not be above hard{unit}")


Budgets = Annotated[list[Budget], Meta(max_length=16)]
Concurrency = Annotated[int, Meta(ge=1, le=10**9)]
Waiting = Annotated[int, Meta(ge=0, le=10**9)]
Weight = Annotated[float, Meta(ge=0.001, le=1_000)]


# A prompt's name, or one version of it, `name@version`.
PromptKey = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*(@[1-9][0-9]{0,5})?$(?!\n)", max_length=140
    ),
]


class KeyLimits(Wire, frozen=True, omit_defaults=True):
    """Rates and budgets of one key, or of each end user. A burst is what may come at once; by default all that the
    minute allows."""

    RULES: ClassVar[list[Rule]] = [needs("requestsBurst", "requestsPerMinute"), needs("tokensBurst", "tokensPerMinute")]

    requests_per_minute: Rate | None = None
    requests_burst: Rate | None = None
    tokens_per_minute: Rate | None = None
    tokens_burst: Rate | None = None
    budgets: Budgets | None = None

    def __post_init__(self) -> None:
        if self.requests_burst is not None and self.requests_per_minute is None:
            raise ValueError("requestsBurst needs requestsPerMinute")
        if self.tokens_burst is not None and self.tokens_per_minute is None:
            raise ValueError("tokensBurst needs tokensPerMinute")
        periods = [budget.period for budget in self.budgets or ()]
        if len(set(periods)) < len(periods):
            raise ValueError("there may be one budget for each period")


class OnHardLimit(StrEnum):
    """What becomes of a running job at a hard limit."""

    PAUSE = "pause"
    FAIL = "fail"


class Limits(KeyLimits, frozen=True, omit_defaults=True):
    """A tenant's limits; an absent one does not exist (`maxQueuedJobs`: 100,000, `weight`: 1, `onHardLimit`: pause).
    `perUser` holds for each end user (`user` of a job) by itself, `perPrompt` for a prompt `name` or version
    `name@version`."""

    max_concurrent_jobs: Concurrency | None = None
    max_queued_jobs: Waiting | None = None
    weight: Weight | None = None
    per_user: KeyLimits | None = None
    per_prompt: Annotated[dict[PromptKey, KeyLimits], Meta(max_length=1_000)] | None = None
    on_hard_limit: OnHardLimit | None = None


class KeyLimitsPatch(Wire, frozen=True):
    """Changes of a key's limits, as a JSON merge patch (RFC 7396): a member that is given replaces, `null` removes, a
    list is replaced whole."""

    requests_per_minute: Rate | UnsetType | None = UNSET
    requests_burst: Rate | UnsetType | None = UNSET
    tokens_per_minute: Rate | UnsetType | None = UNSET
    tokens_burst: Rate | UnsetType | None = UNSET
    budgets: Budgets | UnsetType | None = UNSET


class LimitsPatch(KeyLimitsPatch, frozen=True):
    """Changes of a tenant's limits, likewise; `perUser` and `perPrompt` are merged member by member."""

    max_concurrent_jobs: Concurrency | UnsetType | None = UNSET
    max_queued_jobs: Waiting | UnsetType | None = UNSET
    weight: Weight | UnsetType | None = UNSET
    per_user: KeyLimitsPatch | UnsetType | None = UNSET
    per_prompt: Annotated[dict[PromptKey, KeyLimitsPatch | None], Meta(max_length=1_000)] | UnsetType | None = UNSET
    on_hard_limit: OnHardLimit | UnsetType | None = UNSET


def _require_printable(name: str | UnsetType | None) -> None:
    if isinstance(name, str) and _CONTROLS.search(name):
        raise ValueError("`name` must not contain control characters or line breaks")


class NewTenant(Wire, frozen=True):
    """Body of `POST /api/admin/tenants`."""

    RULES: ClassVar[list[Rule]] = [like("name", PRINTABLE)]

    name: Name
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        _require_printable(self.name)


class TenantPatch(Wire, frozen=True):
    """Body of `PATCH /api/admin/tenants/{tenantId}`: what is to change."""

    RULES: ClassVar[list[Rule]] = [like("name", PRINTABLE)]

    name: Name | UnsetType = UNSET
    limits: LimitsPatch | UnsetType = UNSET

    def __post_init__(self) -> None:
        _require_printable(self.name)


class Deletion(Output, frozen=True):
    """A tenant's erasure that has begun: the job that does it, and since when nothing of the tenant may be changed."""

    job_id: str
    since: str


class TenantView(Output, frozen=True):
    """A tenant; `deletion` is null unless it is being deleted."""

    tenant_id: str
    name: str
    limits: Limits
    created_at: str
    deletion: Deletion | None = None


class NewKey(Wire, frozen=True):
    """Body of `POST /api/admin/tenants/{tenantId}/keys`; `expiresAt` is RFC 3339 with a zone."""

    RULES: ClassVar[list[Rule]] = [like("name", PRINTABLE), like("expiresAt", MOMENT, format="date-time")]

    name: Name | None = None
    scopes: Scopes | None = None
    expires_at: str | None = None
    limits: KeyLimits = KeyLimits()

    def __post_init__(self) -> None:
        _require_printable(self.name)


class KeyPatch(Wire, frozen=True):
    """Body of `PATCH /api/admin/tenants/{tenantId}/keys/{keyId}`: what is to change. `null` removes name and expiry."""

    RULES: ClassVar[list[Rule]] = [like("name", PRINTABLE), like("expiresAt", MOMENT, format="date-time")]

    name: Name | UnsetType | None = UNSET
    scopes: Scopes | UnsetType = UNSET
    expires_at: str | UnsetType | None = UNSET
    limits: KeyLimitsPatch | UnsetType = UNSET

    def __post_init__(self) -> None:
        _require_printable(self.name)


class Rotation(Wire, frozen=True):
    """Body of `POST …/keys/{keyId}/rotate`, which may be absent: for how long the secret so far lives beside the new
    one."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=MAX_OVERLAP_S)] = 86_400


class KeyView(Output, frozen=True, kw_only=True):
    """An API key. `key` is the full key, present in the answer to its creation or rotation only; `previousExpiresAt`
    while the secret before it still lives. `lastUsedAt` is exact to ten seconds."""

    key_id: str
    key: str | UnsetType = UNSET
    name: str | None
    scopes: list[Scope]
    limits: KeyLimits
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    previous_expires_at: str | UnsetType = UNSET
