"""How every limit of a caller stands, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from shared.clock import rfc3339
from shared.jobs import Output
from shared.policy import NANO

NAMES: Final = {"tokens": "Tokens", "usd": "Usd"}


class RateState(msgspec.Struct, frozen=True):
    """A rate of `requests` or `tokens`; `debt_us` until its bucket is full again."""

    unit: str
    per_minute: int
    burst: int
    debt_us: int


class BudgetState(msgspec.Struct, frozen=True):
    """A budget in one unit: tokens, or nano-USD of `usd`."""

    period: str
    unit: str
    soft: int | None
    hard: int | None
    used: int
    reserved: int


class ScopeState(msgspec.Struct, frozen=True):
    """The limits of a tenant, key, end user or prompt."""

    kind: str
    id: str
    rates: tuple[RateState, ...]
    budgets: tuple[BudgetState, ...]

    @property
    def shown_id(self) -> str:
        """As clients know it: without the tenant of a user or prompt."""
        return self.id.partition(":")[2][2:] if self.kind in ("user", "prompt") else self.id


class LimitsState(msgspec.Struct, frozen=True):
    """All limits that hold for a caller, as they stood at `now_ms`. `running` and `waiting` are the tenant's jobs;
    `fails`: its running jobs fail at a hard limit instead of waiting."""

    now_ms: int
    day_turns_ms: int
    month_turns_ms: int
    waiting: int
    most_waiting: int
    running: int
    most_running: int | None
    fails: bool
    scopes: tuple[ScopeState, ...]


class LimitRow(Output, frozen=True, kw_only=True):
    """One limit and how it stands, in its unit (`requests`, `tokens`, `usd`, `jobs`). `limit` is the hard limit, or the
    soft one where there is no hard one; of a rate, what a minute allows, while `remaining` is what may come at once (of
    `burst`). `resetAt` is when the period turns or the rate is full again, null where time alone changes nothing.
    `binds` marks the limit that has the least share left, a budget before a rate."""

    scope: str
    id: str
    name: str
    unit: str
    period: str | None
    limit: float
    used: float
    reserved: float
    remaining: float
    reset_at: str | None
    soft: float | None
    hard: float | None
    burst: float | None
    binds: bool = False

    @property
    def share(self) -> float:
        """How much of it is left, 0 to 1."""
        whole = self.limit if self.burst is None else self.burst
        return self.remaining / whole if whole > 0 else 0.0


class LimitsView(Output, frozen=True):
    """Every limit that applies; `binding` is the one with the least share left (null without limits that hold anything
    up), `warnings` those whose soft limit is crossed."""

    data: list[LimitRow]
    binding: LimitRow | None
    warnings: list[LimitRow]


def view_of(state: LimitsState) -> LimitsView:
    """The limits as the API shows them."""
    rows = rows_of(state)
    holding = [index for index, row in enumerate(rows) if row.hard is not None]
    binding = None
    if holding:
        least = min(holding, key=lambda index: (rows[index].share, rows[index].period in (None, "minute")))
        rows[least] = binding = msgspec.structs.replace(rows[least], binds=True)
    return LimitsView(data=rows, binding=binding, warnings=[row for row in rows if is_crossed(row)])


def is_crossed(row: LimitRow) -> bool:
    """Whether the soft limit is."""
    return row.soft is not None and row.used >= row.soft


def rows_of(state: LimitsState) -> list[LimitRow]:
    """One row per limit: of jobs, then scope by scope its rates and budgets."""
    tenant = state.scopes[0].id
    rows = []
    if state.most_running is not None:
        rows.append(_of_jobs(tenant, "maxConcurrentJobs", state.most_running, state.running))
    rows.append(_of_jobs(tenant, "maxQueuedJobs", state.most_waiting, state.waiting))
    for scope in state.scopes:
        rows += [_of_rate(scope, rate, state.now_ms) for rate in scope.rates]
        rows += [_of_budget(scope, budget, state) for budget in scope.budgets]
    return rows


def _of_jobs(tenant: str, name: str, most: int, used: int) -> LimitRow:
    return LimitRow(
        scope="tenant", id=tenant, name=name, unit="jobs", period=None, limit=most, used=used, reserved=0,
        remaining=max(0, most - used), reset_at=None, soft=None, hard=most, burst=None,
    )  # fmt: skip


def _of_rate(scope: ScopeState, rate: RateState, now_ms: int) -> LimitRow:
    # As `rate_standing` in lib/limits.lua: a whole one is there as soon as it is there.
    used = math.ceil(rate.debt_us * rate.per_minute / 60_000_000 - 0.000001)
    return LimitRow(
        scope=scope.kind, id=scope.shown_id, name=f"{rate.unit}PerMinute", unit=rate.unit, period="minute",
        limit=rate.per_minute, used=used, reserved=0, remaining=max(0, rate.burst - used),
        reset_at=rfc3339(now_ms + math.ceil(rate.debt_us / 1000)), soft=None, hard=rate.per_minute, burst=rate.burst,
    )  # fmt: skip


def _of_budget(scope: ScopeState, budget: BudgetState, state: LimitsState) -> LimitRow:
    def shown(value: int) -> float:
        return value / NANO if budget.unit == "usd" else value

    limit = budget.hard if budget.hard is not None else budget.soft or 0
    turns = {"day": state.day_turns_ms, "month": state.month_turns_ms}.get(budget.period)
    return LimitRow(
        scope=scope.kind,
        id=scope.shown_id,
        name=("soft" if budget.hard is None else "hard") + NAMES[budget.unit],
        unit=budget.unit,
        period=budget.period,
        limit=shown(limit),
        used=shown(budget.used),
        reserved=shown(budget.reserved),
        remaining=shown(max(0, limit - budget.used - budget.reserved)),
        reset_at=None if turns is None else rfc3339(turns),
        soft=None if budget.soft is None else shown(budget.soft),
        hard=None if budget.hard is None else shown(budget.hard),
        burst=None,
    )


class LimitHit(Output, frozen=True, kw_only=True):
    """A limit that a job would meet. `effect`: `refused` (it is not taken in), `waits` (it starts, or goes on, later),
    `pauses` (until the budget is raised or its period turns), `fails`, or `stops` (at its own `tokenBudget`)."""

    scope: str
    id: str | UnsetType = UNSET
    limit: str
    unit: str
    period: str | UnsetType = UNSET
    value: float
    used: float | UnsetType = UNSET
    remaining: float | UnsetType = UNSET
    effect: str


def hits(state: LimitsState, tokens: int, cost_usd: float | None) -> list[LimitHit]:
    """The limits that a job would meet that uses so much."""
    return [
        LimitHit(
            scope=row.scope, id=row.id, limit=row.name, unit=row.unit, period=row.period or UNSET, value=row.limit,
            used=row.used, remaining=row.remaining, effect=effect,
        )
        for row in rows_of(state)
        if row.hard is not None and (effect := _effect(row, tokens, cost_usd, fails=state.fails)) is not None
    ]  # fmt: skip


def _effect(row: LimitRow, tokens: int, cost_usd: float | None, *, fails: bool) -> str | None:
    match row.unit:
        case "requests":
            return "refused" if row.remaining < 1 else None
        case "jobs" if row.used >= row.limit:
            return "refused" if row.name == "maxQueuedJobs" else "waits"
        case "jobs":
            return None
    if row.period == "minute":
        return "waits" if tokens > row.remaining else None
    if row.used >= row.limit:
        return "refused"
    needed = tokens if row.unit == "tokens" else cost_usd or 0
    if needed <= row.remaining:
        return None
    return "fails" if fails else "pauses"


def state_of(reply: Sequence[Any]) -> LimitsState:
    """From what `limits.lua` returns."""
    now, day, month, waiting, bound, running, most, fails = (part.decode() for part in reply[:8])
    limit = int(float(most))
    return LimitsState(
        int(now),
        int(day),
        int(month),
        int(waiting),
        int(bound),
        int(running),
        limit if limit >= 0 else None,
        fails == "1",
        tuple(
            ScopeState(
                kind.decode(),
                scope_id.decode(),
                tuple(RateState(rate[0].decode(), int(rate[1]), int(rate[2]), int(rate[3])) for rate in rates),
                tuple(_budget(budget) for budget in budgets),
            )
            for kind, scope_id, rates, budgets in reply[8]
        ),
    )


def _budget(values: list[bytes]) -> BudgetState:
    period, unit, soft, hard, used, reserved = (value.decode() for value in values)
    return BudgetState(period, unit, int(soft) if soft else None, int(hard) if hard else None, int(used), int(reserved))
