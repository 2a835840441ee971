"""Limits: who is held back, how often, and why."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.panels import Dashboard, Panel, Query, Row
from scripts.dashboards.promql import or_none, rate

WHO: Final = """**Who is it?** Tenants, users and keys are no labels: there are too many of them. These say who:

- `errand usage --group-by user,key --order tokens` for a tenant's key; the admin key sees its own tenant
- `errand limits` and `GET /api/admin/tenants/{tenantId}/limits`: how every limit stands, and which one binds
- the log: `request.finished` with `status=402` or `429` has `tenant` and `key`; `budget.soft_limit` the scope
"""

TENANTS: Final = Dashboard(
    uid="errand-tenants",
    title="Errand: tenants and budgets",
    says="Limits: who is held back, how often, and why.",
    rows=(
        Row(
            "Budgets",
            (
                Panel(
                    title="Hard limits",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="Jobs refused (402) and calls not made. Raise the budget, or wait for its window.",
                    queries=(
                        Query(
                            or_none(rate("errand_budget_refused_total", "scope, period, unit")),
                            "{{scope}} {{period}} {{unit}}",
                        ),
                    ),
                ),
                Panel(
                    title="Soft limits crossed, in an hour",
                    stacked=True,
                    is_rare=True,
                    says="Once per window and scope: who comes near its hard limit.",
                    queries=(
                        Query(
                            or_none("sum by (scope, period, unit) (increase(errand_budget_soft_crossed_total[1h]))"),
                            "{{scope}} {{period}} {{unit}}",
                        ),
                    ),
                ),
                Panel(
                    title="Jobs that wait for a budget",
                    says="They go on when it is raised, or its window turns. They hold no slot.",
                    queries=(Query("max(errand_jobs_paused)", "paused"),),
                ),
            ),
        ),
        Row(
            "Rates and shares",
            (
                Panel(
                    title="Requests refused for a rate",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="429 with Retry-After. They have spent nothing.",
                    queries=(Query(or_none(rate("errand_rate_refused_total", "scope, unit")), "{{scope}} {{unit}}"),),
                ),
                Panel(
                    title="Tenants held back",
                    says="With ready jobs, at their maxConcurrentJobs (parked) or over their token rate (rated).",
                    queries=(
                        Query("max by (lane) (errand_tenants_parked)", "parked {{lane}}"),
                        Query("max by (lane) (errand_tenants_rated)", "rated {{lane}}"),
                    ),
                ),
                Panel(
                    title="Jobs refused, by code",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="All reasons.",
                    queries=(Query(or_none(rate("errand_jobs_refused_total", "code")), "{{code}}"),),
                ),
            ),
        ),
        Row(
            "Spent",
            (
                Panel(
                    title="Cost per hour",
                    unit="currencyUSD",
                    is_rare=True,
                    says="All tenants, by the price list.",
                    queries=(Query(f"3600 * ({or_none(rate('errand_cost_usd_total'))})", "all"),),
                ),
                Panel(
                    title="Tokens per minute",
                    says="All tenants.",
                    queries=(
                        Query(
                            f"60 * {rate('gen_ai_client_token_usage_sum', 'gen_ai_token_type')}",
                            "{{gen_ai_token_type}}",
                        ),
                    ),
                ),
                Panel(
                    title="Feedback",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="Judgements of jobs' results.",
                    queries=(Query(or_none(rate("errand_feedback_total", "kind")), "{{kind}}"),),
                ),
                Panel(title="Who", kind="text", says="Where names are found.", text=WHO, width=16, height=6),
                Panel(
                    title="Experiments ended by a guardrail",
                    is_rare=True,
                    height=6,
                    says="In an hour; `errand experiments` and the audit log say which.",
                    queries=(
                        Query(
                            or_none("sum by (metric, action) (increase(errand_prompt_guardrails_total[1h]))"),
                            "{{metric}} {{action}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
