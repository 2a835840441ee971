"""How fast it answers, how much it finds, and what stands behind it."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.panels import Dashboard, Panel, Query, Row
from scripts.dashboards.promql import or_none, quantile, quantiles, rate, share

SEARCHES: Final = rate("errand_search_seconds_count")

SEARCH: Final = Dashboard(
    uid="errand-search",
    title="Errand: search",
    says="How fast it answers, how much it finds, and what stands behind it.",
    rows=(
        Row(
            "Searches",
            (
                Panel(
                    title="Searches",
                    unit="ops",
                    stacked=True,
                    says="By mode and what came of them.",
                    queries=(Query(rate("errand_search_seconds_count", "mode, outcome"), "{{mode}} {{outcome}}"),),
                ),
                Panel(
                    title="Time",
                    unit="s",
                    says="The answer included, where one was asked for.",
                    queries=quantiles("errand_search_seconds", "mode"),
                ),
                Panel(
                    title="Found nothing",
                    unit="percentunit",
                    warn=0.4,
                    bad=0.7,
                    says="Share of searches without a source above minScore. `errand search gaps` says what they asked for.",
                    queries=(
                        Query(share(rate("errand_search_seconds_count", where='outcome="empty"'), or_none(SEARCHES))),
                    ),
                ),
                Panel(
                    title="Score of the best candidate",
                    unit="none",
                    says="On the calibrated scale. When its median falls, documents or questions have changed.",
                    queries=quantiles("errand_search_top_score", "", shares=(0.1, 0.5, 0.9)),
                ),
                Panel(
                    title="Sources of an answer",
                    unit="none",
                    says="Mean.",
                    queries=(
                        Query(
                            share(rate("errand_search_sources_sum"), or_none(rate("errand_search_sources_count"))),
                            "sources",
                        ),
                    ),
                ),
                Panel(
                    title="Quotes that do not stand in the text",
                    unit="percentunit",
                    warn=0.1,
                    bad=0.3,
                    is_rare=True,
                    says="Of answers and analyses; they are left out. A model that invents shows here.",
                    queries=(
                        Query(
                            share(
                                rate("errand_citations_total", where='verified="no"'),
                                or_none(rate("errand_citations_total")),
                            ),
                            "share",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Behind it",
            (
                Panel(
                    title="Chunks indexed",
                    unit="ops",
                    stacked=True,
                    says="bought: embedded now. reused: a text that the tenant had. none: found by words only.",
                    queries=(Query(rate("errand_ingest_chunks_total", "vectors"), "{{vectors}}"),),
                ),
                Panel(
                    title="Indexes in memory",
                    says="Over all workers.",
                    queries=(Query("sum(errand_search_replicas)", "indexes"),),
                ),
                Panel(
                    title="Their size",
                    unit="bytes",
                    says="By worker; bounded by ERRAND_SEARCH_MEMORY_MB.",
                    queries=(Query("errand_search_replica_bytes", "{{instance}}"),),
                ),
                Panel(
                    title="Re-ranking",
                    unit="s",
                    is_rare=True,
                    says="p95, where there is a re-ranker.",
                    queries=(Query(or_none(quantile(0.95, "errand_rerank_seconds", "kind")), "{{kind}}"),),
                ),
                Panel(
                    title="Re-rankings, by outcome",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="All but `ok` leave the order as it was.",
                    queries=(Query(or_none(rate("errand_rerank_seconds_count", "outcome")), "{{outcome}}"),),
                ),
                Panel(
                    title="Embedding calls",
                    unit="s",
                    says="Time of one request.",
                    queries=quantiles(
                        "gen_ai_client_operation_duration_seconds", "", where='gen_ai_operation_name="embeddings"'
                    ),
                ),
            ),
        ),
    ),
)
