"""Queues, waits, runs, and how they end."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.panels import Dashboard, Panel, Query, Row
from scripts.dashboards.promql import or_none, quantile, quantiles, rate

JOBS: Final = Dashboard(
    uid="errand-jobs",
    title="Errand: jobs",
    says="Queues, waits, runs, and how they end.",
    rows=(
        Row(
            "Waiting",
            (
                Panel(
                    title="Ready jobs",
                    says="By lane and class.",
                    queries=(Query("max by (lane, priority) (errand_queue_jobs)", "{{lane}} {{priority}}"),),
                ),
                Panel(
                    title="Oldest of them",
                    unit="s",
                    says="How long it has been ready. This, not depth, is what users feel.",
                    queries=(Query("max by (lane, priority) (errand_queue_oldest_seconds)", "{{lane}} {{priority}}"),),
                ),
                Panel(
                    title="Ready to claim",
                    unit="s",
                    says="The wait of those that were claimed.",
                    queries=quantiles("errand_job_pickup_seconds", "lane", shares=(0.5, 0.95, 0.99)),
                ),
                Panel(
                    title="Put off",
                    says="Delayed: scheduled, in backoff, over a token rate. Paused: waits for a budget.",
                    queries=(
                        Query("max by (lane) (errand_jobs_delayed)", "delayed {{lane}}"),
                        Query("max(errand_jobs_paused)", "paused"),
                    ),
                ),
                Panel(
                    title="Tenants held back",
                    says="Parked: at their maxConcurrentJobs. Rated: over their token rate. The log's `tenant` says who.",
                    queries=(
                        Query("max by (lane) (errand_tenants_parked)", "parked {{lane}}"),
                        Query("max by (lane) (errand_tenants_rated)", "rated {{lane}}"),
                    ),
                ),
                Panel(
                    title="Claims",
                    unit="ops",
                    says="Jobs that workers took.",
                    queries=(Query(rate("errand_jobs_claimed_total", "lane"), "{{lane}}"),),
                ),
            ),
        ),
        Row(
            "Running",
            (
                Panel(
                    title="Running jobs and slots",
                    says="What runs, and what could at a time.",
                    queries=(
                        Query("max by (lane) (errand_jobs_running)", "running {{lane}}"),
                        Query("max by (lane) (errand_fleet_slots)", "slots {{lane}}"),
                    ),
                ),
                Panel(
                    title="Run time of attempts",
                    unit="s",
                    says="By type, however they ended.",
                    queries=quantiles("errand_attempt_seconds", "type"),
                ),
                Panel(
                    title="From submission to the end",
                    unit="s",
                    says="Waits, retries and all.",
                    queries=quantiles("errand_job_seconds", "type"),
                ),
            ),
        ),
        Row(
            "Ending",
            (
                Panel(
                    title="Jobs by how they ended",
                    unit="ops",
                    stacked=True,
                    says="Final states.",
                    queries=(Query(rate("errand_job_seconds_count", "outcome"), "{{outcome}}"),),
                ),
                Panel(
                    title="Attempts that failed, by error code",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="docs/reference/errors.md says what each means, and which are retried by themselves.",
                    queries=(Query(or_none(rate("errand_attempts_settled_total", "code", 'code!=""')), "{{code}}"),),
                ),
                Panel(
                    title="Workers lost",
                    unit="ops",
                    is_rare=True,
                    says="Leases that ran out: their worker was killed, frozen or cut off. Other reasons beside them.",
                    queries=(
                        Query(or_none(rate("errand_jobs_reaped_total", "reason")), "{{reason}}"),
                        Query(or_none(rate("errand_leases_lost_total")), "found lost by the worker"),
                    ),
                ),
                Panel(
                    title="Kept",
                    says="Jobs that have ended and are kept until their retention is over; blobs to delete.",
                    queries=(Query("max(errand_jobs_kept)", "jobs"), Query("max(errand_blobs_to_delete)", "blobs")),
                ),
                Panel(
                    title="Webhooks: event to first request",
                    unit="s",
                    is_rare=True,
                    says="p95 of deliveries.",
                    queries=(Query(or_none(quantile(0.95, "errand_webhook_first_attempt_seconds")), "p95"),),
                ),
                Panel(
                    title="Streams",
                    unit="ops",
                    says="Begun and resumed; gaps are readers that were too slow.",
                    queries=(
                        Query(
                            rate("errand_streams_opened_total", "transport, resumed"),
                            "{{transport}}, resumed: {{resumed}}",
                        ),
                        Query(or_none(rate("errand_stream_gaps_total")), "gaps"),
                    ),
                ),
            ),
        ),
    ),
)
