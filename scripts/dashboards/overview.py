"""Is it well? What to look at first."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.panels import RATE, Dashboard, Panel, Query, Row
from scripts.dashboards.promql import or_none, quantiles, rate, share

ENDED: Final = rate("errand_job_seconds_count")

UNSTREAMED: Final = 'route!~".*stream.*|/api/ws|/metrics.*|/healthz|/readyz"'

OVERVIEW: Final = Dashboard(
    uid="errand-overview",
    title="Errand: overview",
    says="Is it well? What to look at first.",
    rows=(
        Row(
            "Now",
            (
                Panel(
                    title="Jobs ended per second",
                    kind="stat",
                    width=4,
                    height=4,
                    unit="ops",
                    says="Brought to a final state by workers.",
                    queries=(Query(or_none(ENDED)),),
                ),
                Panel(
                    title="Jobs that failed",
                    kind="stat",
                    width=4,
                    height=4,
                    unit="percentunit",
                    warn=0.05,
                    bad=0.2,
                    says="Share of those that ended. See the dashboard of jobs for the error codes.",
                    queries=(Query(share(rate("errand_job_seconds_count", where='outcome="failed"'), or_none(ENDED))),),
                ),
                Panel(
                    title="Requests that failed",
                    kind="stat",
                    width=4,
                    height=4,
                    unit="percentunit",
                    warn=0.005,
                    bad=0.02,
                    says="Share of answers with a status from 500. A 503 says that Redis or the workers are away.",
                    queries=(
                        Query(
                            share(
                                rate("errand_http_requests_total", where='status=~"5.."'),
                                or_none(rate("errand_http_requests_total")),
                            )
                        ),
                    ),
                ),
                Panel(
                    title="Longest wait, interactive",
                    kind="stat",
                    width=4,
                    height=4,
                    unit="s",
                    warn=2,
                    bad=10,
                    says="Age of the oldest job that is ready. Above 10 s chats are refused: start interactive workers.",
                    queries=(Query('max(errand_queue_oldest_seconds{lane="interactive"})'),),
                ),
                Panel(
                    title="Live workers",
                    kind="stat",
                    width=4,
                    height=4,
                    says="By lane. A worker on both lanes counts on each.",
                    queries=(Query("max by (lane) (errand_fleet_workers)", "{{lane}}"),),
                ),
                Panel(
                    title="Redis",
                    kind="stat",
                    width=4,
                    height=4,
                    says="1: it answers, and keeps what it acknowledges.",
                    queries=(Query("max(errand_redis_up)", "up"), Query("min(errand_redis_durable)", "durable")),
                ),
            ),
        ),
        Row(
            "What comes in",
            (
                Panel(
                    title="Requests by status",
                    unit="reqps",
                    stacked=True,
                    says="All API processes. 4xx are the clients': 429 and 402 are limits.",
                    queries=(Query(rate("errand_http_requests_total", "status"), "{{status}}"),),
                ),
                Panel(
                    title="Time to answer",
                    unit="s",
                    says="Requests that are no streams.",
                    queries=quantiles("errand_http_request_seconds", "", where=UNSTREAMED, shares=(0.5, 0.95, 0.99)),
                ),
                Panel(
                    title="Open streams",
                    stacked=True,
                    says="Clients that read events just now.",
                    queries=(Query("sum by (transport) (errand_streams_open)", "{{transport}}"),),
                ),
                Panel(
                    title="Jobs taken in, by type",
                    unit="ops",
                    stacked=True,
                    says="Searches and chats are jobs too.",
                    queries=(Query(rate("errand_jobs_admitted_total", "type"), "{{type}}"),),
                ),
                Panel(
                    title="Jobs refused, by code",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="At the door: limits, full queues, bad input. They have spent nothing.",
                    queries=(Query(or_none(rate("errand_jobs_refused_total", "code")), "{{code}}"),),
                ),
                Panel(
                    title="Webhooks",
                    unit="ops",
                    stacked=True,
                    is_rare=True,
                    says="Requests to webhooks, by what came of them. `retry` is tried again for three days.",
                    queries=(Query(or_none(rate("errand_webhook_attempts_total", "outcome")), "{{outcome}}"),),
                ),
            ),
        ),
        Row(
            "What is done",
            (
                Panel(
                    title="Jobs that are ready",
                    says="They wait for a slot. More workers, if this stays up.",
                    queries=(Query("max by (lane, priority) (errand_queue_jobs)", "{{lane}} {{priority}}"),),
                ),
                Panel(
                    title="Slots in use",
                    unit="percentunit",
                    bad=1.0,
                    says="Of what live workers can run at a time. At 1 jobs wait: scale the lane.",
                    queries=(
                        Query(
                            "sum by (lane) (errand_worker_slots_busy) / sum by (lane) (errand_worker_slots)", "{{lane}}"
                        ),
                    ),
                ),
                Panel(
                    title="Attempts, by outcome",
                    unit="ops",
                    stacked=True,
                    says="`retry` runs again after its backoff; `lost` had lost its lease; `handback` is a deploy.",
                    queries=(Query(rate("errand_attempts_settled_total", "outcome"), "{{outcome}}"),),
                ),
            ),
        ),
        Row(
            "Redis",
            (
                Panel(
                    title="Memory",
                    unit="bytes",
                    says="Of data, and what it may use. Full means: nothing is accepted.",
                    queries=(
                        Query("max(errand_redis_memory_bytes)", "used"),
                        Query("max(errand_redis_memory_max_bytes)", "at most"),
                    ),
                ),
                Panel(
                    title="Time of scripts",
                    unit="s",
                    says="As workers and API see it, the disk's fsync included. A slow disk is seen here first.",
                    queries=quantiles("errand_redis_script_seconds", "", shares=(0.5, 0.95, 0.99)),
                ),
                Panel(
                    title="Commands and connections",
                    says="Of the server.",
                    queries=(
                        Query(f"max(rate(errand_redis_commands_total[{RATE}]))", "commands per second"),
                        Query("max(errand_redis_clients)", "connections"),
                    ),
                ),
            ),
        ),
        Row(
            "Processes",
            (
                Panel(
                    title="CPU",
                    unit="percentunit",
                    bad=0.95,
                    says="Of one core, for each process: an event loop cannot use more than one.",
                    queries=(Query(f"rate(process_cpu_seconds_total[{RATE}])", "{{job}} {{instance}}"),),
                ),
                Panel(
                    title="Memory of processes",
                    unit="bytes",
                    says="Resident. Workers hold search indexes.",
                    queries=(Query("process_resident_memory_bytes", "{{job}} {{instance}}"),),
                ),
                Panel(
                    title="Event loop",
                    unit="s",
                    bad=0.5,
                    says="How late workers come to what is due.",
                    queries=quantiles("errand_event_loop_lag_seconds", "", shares=(0.5, 0.99)),
                ),
            ),
        ),
    ),
)
