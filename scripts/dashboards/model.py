"""Calls of models: how many, how fast, how dear, and what goes wrong."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.panels import Dashboard, Panel, Query, Row
from scripts.dashboards.promql import or_none, quantile, quantiles, rate, share

CALLS: Final = rate("gen_ai_client_operation_duration_seconds_count")

BY_MODEL: Final = "gen_ai_request_model"

MODEL: Final = Dashboard(
    uid="errand-model",
    title="Errand: model and tokens",
    says="Calls of models: how many, how fast, how dear, and what goes wrong.",
    rows=(
        Row(
            "Calls",
            (
                Panel(
                    title="Calls",
                    unit="ops",
                    stacked=True,
                    says="By operation and model.",
                    queries=(
                        Query(
                            rate(
                                "gen_ai_client_operation_duration_seconds_count", f"gen_ai_operation_name, {BY_MODEL}"
                            ),
                            "{{gen_ai_operation_name}} {{gen_ai_request_model}}",
                        ),
                    ),
                ),
                Panel(
                    title="Calls that failed",
                    unit="percentunit",
                    warn=0.05,
                    bad=0.2,
                    says="Without those that were cancelled. The breaker leaves a model alone after ten in a row.",
                    queries=(
                        Query(
                            share(
                                rate(
                                    "gen_ai_client_operation_duration_seconds_count",
                                    where='error_type!="", error_type!="cancelled"',
                                ),
                                or_none(CALLS),
                            )
                        ),
                    ),
                ),
                Panel(
                    title="By error",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="upstream_rate_limited: raise the model's limits, or lower ERRAND_MODEL_MAX_IN_FLIGHT.",
                    queries=(
                        Query(
                            or_none(
                                rate("gen_ai_client_operation_duration_seconds_count", "error_type", 'error_type!=""')
                            ),
                            "{{error_type}}",
                        ),
                    ),
                ),
                Panel(
                    title="Time to the first chunk",
                    unit="s",
                    says="Of streamed answers, as the worker sees it.",
                    queries=quantiles("gen_ai_client_operation_time_to_first_chunk_seconds", BY_MODEL),
                ),
                Panel(
                    title="Time of calls",
                    unit="s",
                    says="Whole calls.",
                    queries=quantiles("gen_ai_client_operation_duration_seconds", "gen_ai_operation_name"),
                ),
                Panel(
                    title="Repeats, fallbacks, breakers",
                    unit="ops",
                    is_rare=True,
                    says="Calls made again within their attempt; those that another model was asked; models left alone.",
                    queries=(
                        Query(or_none(rate("errand_model_retries_total", "code")), "repeat {{code}}"),
                        Query(or_none(rate("errand_model_fallbacks_total")), "fallback"),
                        Query(or_none(rate("errand_model_breakers_opened_total")), "breaker opened"),
                    ),
                ),
            ),
        ),
        Row(
            "Tokens and money",
            (
                Panel(
                    title="Tokens per second",
                    stacked=True,
                    says="Input with embeddings, and output; cut calls too.",
                    queries=(
                        Query(rate("gen_ai_client_token_usage_sum", "gen_ai_token_type"), "{{gen_ai_token_type}}"),
                    ),
                ),
                Panel(
                    title="Tokens per second, by model",
                    stacked=True,
                    says="Input and output.",
                    queries=(Query(rate("gen_ai_client_token_usage_sum", BY_MODEL), "{{gen_ai_request_model}}"),),
                ),
                Panel(
                    title="Tokens of a call",
                    says="How long they are.",
                    queries=quantiles("gen_ai_client_token_usage", "gen_ai_token_type"),
                ),
                Panel(
                    title="Cost per hour",
                    unit="currencyUSD",
                    stacked=True,
                    is_rare=True,
                    says="By the price list, as it is booked. What has no price is beside it: set ERRAND_PRICES.",
                    queries=(
                        Query(
                            f"3600 * ({or_none(rate('errand_cost_usd_total', BY_MODEL))})", "{{gen_ai_request_model}}"
                        ),
                    ),
                ),
                Panel(
                    title="Tokens without a price",
                    is_rare=True,
                    says="Per second. Budgets in USD refuse such models.",
                    queries=(Query(or_none(rate("errand_tokens_unpriced_total")), "tokens per second"),),
                ),
                Panel(
                    title="Waits for limits",
                    unit="ops",
                    is_rare=True,
                    says="Looks at a limit that found no room for a call. rate, held and spent: docs/usage-and-limits.md.",
                    queries=(Query(or_none(rate("errand_limit_waits_total", "kind")), "{{kind}}"),),
                ),
            ),
        ),
        Row(
            "Tools of agents",
            (
                Panel(
                    title="Calls of tools",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="By tool.",
                    queries=(
                        Query(
                            or_none(rate("gen_ai_execute_tool_duration_seconds_count", "gen_ai_tool_name")),
                            "{{gen_ai_tool_name}}",
                        ),
                    ),
                ),
                Panel(
                    title="Tools that failed",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="The model is told, and goes on; `internal` is a defect of the tool: the worker's log has it.",
                    queries=(
                        Query(
                            or_none(
                                rate(
                                    "gen_ai_execute_tool_duration_seconds_count",
                                    "gen_ai_tool_name, error_type",
                                    'error_type!=""',
                                )
                            ),
                            "{{gen_ai_tool_name}} {{error_type}}",
                        ),
                    ),
                ),
                Panel(
                    title="Time of tools",
                    unit="s",
                    is_rare=True,
                    says="p95.",
                    queries=(
                        Query(
                            or_none(quantile(0.95, "gen_ai_execute_tool_duration_seconds", "gen_ai_tool_name")),
                            "{{gen_ai_tool_name}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
