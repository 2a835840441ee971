"""Limits as the scripts read them: one JSON map in the record of a tenant or key, small numbers only.

Members, absent where there is no such limit: `rpm`, `rb`, `tpm`, `tb` (rate per minute and burst of requests and
tokens); `b`, a list of budgets `{p: 'd' | 'm' | 't', st, ht, sn, hn}` (soft and hard, tokens and nano-USD); and of a
tenant `u` (the same for each end user), `pr` (the same by prompt), `fail` (1: running jobs fail at a hard limit).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shared.tenants import Budget, KeyLimits, Limits, OnHardLimit, Period

NANO: Final = 1_000_000_000  # of a dollar
PERIODS: Final = {Period.DAY: "d", Period.MONTH: "m", Period.TOTAL: "t"}


def policy_of(limits: KeyLimits) -> dict[str, Any]:
    """The map; empty when nothing is limited that the books count."""
    found: dict[str, Any] = {}
    if limits.requests_per_minute is not None:
        found["rpm"] = limits.requests_per_minute
        found["rb"] = limits.requests_burst or limits.requests_per_minute
    if limits.tokens_per_minute is not None:
        found["tpm"] = limits.tokens_per_minute
        found["tb"] = limits.tokens_burst or limits.tokens_per_minute
    if limits.budgets:
        found["b"] = [_budget(budget) for budget in limits.budgets]
    if isinstance(limits, Limits):
        if limits.per_user is not None and (each := policy_of(limits.per_user)):
            found["u"] = each
        prompts = {name: policy for name, one in (limits.per_prompt or {}).items() if (policy := policy_of(one))}
        if prompts:
            found["pr"] = prompts
        if limits.on_hard_limit is OnHardLimit.FAIL:
            found["fail"] = 1
    return found


def _budget(budget: Budget) -> dict[str, Any]:
    whole = {
        "p": PERIODS[budget.period],
        "st": budget.soft_tokens,
        "ht": budget.hard_tokens,
        "sn": None if budget.soft_usd is None else round(budget.soft_usd * NANO),
        "hn": None if budget.hard_usd is None else round(budget.hard_usd * NANO),
    }
    return {name: value for name, value in whole.items() if value is not None}


def encode_policy(limits: KeyLimits) -> str | None:
    """The map as it is stored; None when it is empty. JSON text: script arguments carry no bytes."""
    policy = policy_of(limits)
    return msgspec.json.encode(policy).decode() if policy else None
