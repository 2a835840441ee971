"""The alerts: symptoms first, each with what shows it, and what must not set it off. docs/runbook.md has a section of the
same name for each."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from scripts.dashboards.panels import RUNBOOK

Series = dict[str, str]
"""A series and its values, as promtool writes them: `0+6x20` begins at 0 and grows by 6 each minute, 20 times."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert. `fires`: series that set it off at minute `at`; `quiet`: some that come near and must not."""

    name: str
    expr: str
    wait: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    says: str
    fires: Series
    quiet: Series
    at: str = "20m"

    @property
    def anchor(self) -> str:
        """Of its section in the runbook."""
        return self.name.lower()


def _ended(failed: str, complete: str) -> Series:
    return {
        'errand_job_seconds_count{outcome="failed", type="chat"}': failed,
        'errand_job_seconds_count{outcome="complete", type="chat"}': complete,
    }


def _answers(bad: str, good: str) -> Series:
    return {
        'errand_http_requests_total{method="GET", route="/api/jobs", status="503"}': bad,
        'errand_http_requests_total{method="GET", route="/api/jobs", status="200"}': good,
    }


def _calls(bad: str, good: str) -> Series:
    return {
        'gen_ai_client_operation_duration_seconds_count{error_type="upstream_unavailable"}': bad,
        'gen_ai_client_operation_duration_seconds_count{error_type=""}': good,
    }


def _ready(lane: str, seconds: str, priority: str = "normal") -> Series:
    return {f'errand_queue_oldest_seconds{{lane="{lane}", priority="{priority}"}}': seconds}


def _errors(window: str) -> str:
    return (
        f'sum(rate(errand_http_requests_total{{status=~"5.."}}[{window}])) '
        f"/ sum(rate(errand_http_requests_total[{window}]))"
    )


ALERTS: Final = (
    Alert(
        name="ErrandApiDown",
        severity="critical",
        wait="1m",
        expr='up{job="errand-api"} == 0 or absent(up{job="errand-api"})',
        summary="An API process does not answer",
        says="{{ $labels.instance }} could not be scraped for a minute.",
        fires={'up{job="errand-api", instance="a:8080"}': "0x20"},
        quiet={'up{job="errand-api", instance="a:8080"}': "1x20"},
    ),
    Alert(
        name="ErrandRequestsFail",
        severity="critical",
        wait="2m",
        # A fast burn, still going on: the two windows of the SRE workbook's multiwindow alerts.
        expr=f"{_errors('5m')} > 0.05 and {_errors('1h')} > 0.01",
        summary="Requests are answered with 5xx",
        says="{{ $value | humanizePercentage }} of requests in five minutes.",
        fires=_answers("0+6x30", "0+60x30"),
        quiet=_answers("0+1x30", "0+600x30"),
    ),
    Alert(
        name="ErrandNoWorker",
        severity="critical",
        wait="1m",
        expr="max by (lane) (errand_fleet_workers) == 0 and on (lane) "
        "sum by (lane) (max by (lane, priority) (errand_queue_jobs)) > 0",
        summary="Jobs wait on a lane without a worker",
        says="No worker is alive on the lane {{ $labels.lane }}.",
        fires={
            'errand_fleet_workers{lane="batch"}': "0x20",
            'errand_queue_jobs{lane="batch", priority="normal"}': "3x20",
        },
        quiet={
            'errand_fleet_workers{lane="batch"}': "0x20",
            'errand_queue_jobs{lane="batch", priority="normal"}': "0x20",
        },
    ),
    Alert(
        name="ErrandWorkersUnseen",
        severity="warning",
        wait="5m",
        expr='max(errand_fleet_workers) > 0 and on () absent(up{job="errand-workers"} == 1)',
        summary="No worker is scraped, though some are alive",
        says="Alerts on jobs, models and searches are blind meanwhile.",
        fires={'errand_fleet_workers{lane="batch"}': "2x20", 'up{job="errand-workers", instance="w:1"}': "0x20"},
        quiet={'errand_fleet_workers{lane="batch"}': "2x20", 'up{job="errand-workers", instance="w:1"}': "1x20"},
    ),
    Alert(
        name="ErrandInteractiveWaits",
        severity="critical",
        wait="1m",
        expr='max(errand_queue_oldest_seconds{lane="interactive"}) > 5',
        summary="Somebody waits for an answer to begin",
        says="The oldest interactive job has been ready for {{ $value | humanizeDuration }}; at 10 s chats are refused.",
        fires=_ready("interactive", "8x20"),
        quiet=_ready("interactive", "2x20"),
    ),
    Alert(
        name="ErrandBatchWaits",
        severity="warning",
        wait="10m",
        expr='max by (priority) (errand_queue_oldest_seconds{lane="batch", priority!="low"}) > 1800',
        summary="Batch jobs wait for long",
        says="The oldest of class {{ $labels.priority }} has been ready for {{ $value | humanizeDuration }}.",
        fires=_ready("batch", "2400x30"),
        quiet=_ready("batch", "2400x30", "low"),
        at="25m",
    ),
    Alert(
        name="ErrandJobsFail",
        severity="warning",
        wait="5m",
        expr='sum(rate(errand_job_seconds_count{outcome="failed"}[10m])) / sum(rate(errand_job_seconds_count[10m])) > 0.1 '
        "and sum(increase(errand_job_seconds_count[10m])) >= 10",
        summary="Jobs fail",
        says="{{ $value | humanizePercentage }} of the jobs that ended in ten minutes have failed.",
        fires=_ended("0+3x30", "0+10x30"),
        quiet=_ended("0+1x30", "0+60x30"),
    ),
    Alert(
        name="ErrandWorkersDie",
        severity="warning",
        wait="0m",
        expr='sum(increase(errand_jobs_reaped_total{reason="lease"}[10m])) > 5',
        summary="Jobs are taken back from workers that are gone",
        says="{{ $value | humanize }} leases ran out in ten minutes: workers are killed, frozen or cut off.",
        fires={'errand_jobs_reaped_total{reason="lease", status="queued"}': "0+2x30"},
        quiet={'errand_jobs_reaped_total{reason="expiry", status="expired"}': "0+9x30"},
    ),
    Alert(
        name="ErrandLoopBlocked",
        severity="warning",
        wait="0m",
        expr="sum by (instance) (increase(errand_event_loop_blocked_total[15m])) > 3",
        summary="A worker's event loop stands still",
        says="{{ $labels.instance }}; `loop.blocked` in its log says where.",
        fires={'errand_event_loop_blocked_total{instance="w:1"}': "0+1x30"},
        quiet={'errand_event_loop_blocked_total{instance="w:1"}': "0x9 1x20"},
    ),
    Alert(
        name="ErrandModelFails",
        severity="critical",
        wait="3m",
        expr='sum(rate(gen_ai_client_operation_duration_seconds_count{error_type!="", error_type!="cancelled"}[5m])) '
        "/ sum(rate(gen_ai_client_operation_duration_seconds_count[5m])) > 0.2 "
        "and sum(increase(gen_ai_client_operation_duration_seconds_count[5m])) >= 10",
        summary="Calls of the model fail",
        says="{{ $value | humanizePercentage }} of the calls in five minutes.",
        fires=_calls("0+5x30", "0+10x30"),
        quiet=_calls("0+1x30", "0+30x30"),
    ),
    Alert(
        name="ErrandModelLeftAlone",
        severity="warning",
        wait="0m",
        expr="sum(increase(errand_model_breakers_opened_total[10m])) > 0",
        summary="A model is left alone, having failed ten times in a row",
        says="`breaker.opened` in the workers' logs names it. It is tried again by itself.",
        fires={"errand_model_breakers_opened_total": "0x10 1x20"},
        quiet={"errand_model_breakers_opened_total": "1x30"},
        at="15m",
    ),
    Alert(
        name="ErrandModelSlow",
        severity="warning",
        wait="10m",
        expr="histogram_quantile(0.95, sum by (le) "
        "(rate(gen_ai_client_operation_time_to_first_chunk_seconds_bucket[10m]))) > 5",
        summary="The model takes long to begin",
        says="p95 of the first chunk is {{ $value | humanizeDuration }}.",
        fires={
            'gen_ai_client_operation_time_to_first_chunk_seconds_bucket{le="5"}': "0+1x40",
            'gen_ai_client_operation_time_to_first_chunk_seconds_bucket{le="10"}': "0+9x40",
            'gen_ai_client_operation_time_to_first_chunk_seconds_bucket{le="+Inf"}': "0+9x40",
        },
        quiet={
            'gen_ai_client_operation_time_to_first_chunk_seconds_bucket{le="1"}': "0+9x40",
            'gen_ai_client_operation_time_to_first_chunk_seconds_bucket{le="+Inf"}': "0+9x40",
        },
        at="30m",
    ),
    Alert(
        name="ErrandRedisDown",
        severity="critical",
        wait="30s",
        expr="max(errand_redis_up) == 0",
        summary="Redis is out of reach",
        says="No API process reaches it: requests are 503, workers keep what they have.",
        fires={"errand_redis_up": "0x20"},
        quiet={'errand_redis_up{instance="a"}': "0x20", 'errand_redis_up{instance="b"}': "1x20"},
    ),
    Alert(
        name="ErrandRedisNotDurable",
        severity="critical",
        wait="1m",
        expr="min(errand_redis_durable) == 0",
        summary="Redis would lose accepted jobs",
        says="A setting of Redis was changed: GET /readyz names it.",
        fires={"errand_redis_durable": "0x20"},
        quiet={"errand_redis_durable": "1x20"},
    ),
    Alert(
        name="ErrandRedisCannotWrite",
        severity="critical",
        wait="1m",
        expr="min(errand_redis_persistence_ok) == 0",
        summary="Redis cannot write its files",
        says="Its last write, rewrite or snapshot failed: is the disk full?",
        fires={"errand_redis_persistence_ok": "0x20"},
        quiet={"errand_redis_persistence_ok": "1x20"},
    ),
    Alert(
        name="ErrandRedisFull",
        severity="warning",
        wait="5m",
        expr="max(errand_redis_memory_bytes) / max(errand_redis_memory_max_bytes) > 0.8",
        summary="Redis is nearly full",
        says="{{ $value | humanizePercentage }} of its memory; at 100 % all is refused.",
        fires={"errand_redis_memory_bytes": "90x20", "errand_redis_memory_max_bytes": "100x20"},
        quiet={"errand_redis_memory_bytes": "70x20", "errand_redis_memory_max_bytes": "100x20"},
    ),
    Alert(
        name="ErrandRedisEvicts",
        severity="critical",
        wait="0m",
        expr="max(increase(errand_redis_evicted_keys_total[10m])) > 0",
        summary="Redis throws keys away",
        says="Jobs are being lost: set maxmemory-policy noeviction.",
        fires={"errand_redis_evicted_keys_total": "0+1x20"},
        quiet={"errand_redis_evicted_keys_total": "7x20"},
    ),
    Alert(
        name="ErrandRedisClients",
        severity="warning",
        wait="5m",
        expr="max(errand_redis_clients) / max(errand_redis_clients_max) > 0.8",
        summary="Redis runs out of connections",
        says="{{ $value | humanizePercentage }} of its maxclients.",
        fires={"errand_redis_clients": "95x20", "errand_redis_clients_max": "100x20"},
        quiet={"errand_redis_clients": "50x20", "errand_redis_clients_max": "100x20"},
    ),
    Alert(
        name="ErrandJobsPaused",
        severity="warning",
        wait="30m",
        expr="max(errand_jobs_paused) > 0",
        summary="Jobs wait for a budget",
        says="{{ $value | humanize }} jobs have waited for half an hour.",
        fires={"errand_jobs_paused": "4x60"},
        quiet={"errand_jobs_paused": "4x10 0x50"},
        at="45m",
    ),
    Alert(
        name="ErrandSoftLimits",
        severity="info",
        wait="0m",
        expr="sum by (scope, period, unit) (increase(errand_budget_soft_crossed_total[1h])) > 0 "
        # A counter begins with its first count: of that there is no increase.
        "or sum by (scope, period, unit) (errand_budget_soft_crossed_total unless errand_budget_soft_crossed_total offset 1h) > 0",
        summary="A soft limit was crossed",
        says="Of a {{ $labels.scope }}, per {{ $labels.period }}, in {{ $labels.unit }}: `budget.soft_limit` in the log.",
        fires={'errand_budget_soft_crossed_total{scope="tenant", period="day", unit="tokens"}': "_x70 1x20"},
        quiet={'errand_budget_soft_crossed_total{scope="tenant", period="day", unit="tokens"}': "5x90"},
        at="80m",
    ),
    Alert(
        name="ErrandSearchesFail",
        severity="warning",
        wait="5m",
        expr='sum(rate(errand_search_seconds_count{outcome="failed"}[10m])) / sum(rate(errand_search_seconds_count[10m]))'
        " > 0.05 and sum(increase(errand_search_seconds_count[10m])) >= 10",
        summary="Searches fail",
        says="{{ $value | humanizePercentage }} of the searches in ten minutes.",
        fires={
            'errand_search_seconds_count{outcome="failed"}': "0+2x30",
            'errand_search_seconds_count{outcome="found"}': "0+10x30",
        },
        quiet={
            'errand_search_seconds_count{outcome="empty"}': "0+2x30",
            'errand_search_seconds_count{outcome="found"}': "0+10x30",
        },
    ),
    Alert(
        name="ErrandSearchesEmpty",
        severity="info",
        wait="1h",
        expr='sum(rate(errand_search_seconds_count{outcome="empty"}[1h])) / sum(rate(errand_search_seconds_count[1h])) > 0.6',
        summary="Most searches find nothing",
        says="{{ $value | humanizePercentage }} of the searches in an hour.",
        fires={
            'errand_search_seconds_count{outcome="empty"}': "0+9x150",
            'errand_search_seconds_count{outcome="found"}': "0+1x150",
        },
        quiet={
            'errand_search_seconds_count{outcome="empty"}': "0+4x150",
            'errand_search_seconds_count{outcome="found"}': "0+6x150",
        },
        at="140m",
    ),
    Alert(
        name="ErrandWebhooksGivenUp",
        severity="warning",
        wait="0m",
        expr='sum by (outcome) (increase(errand_webhook_attempts_total{outcome=~"failed|gone"}[1h])) > 0 '
        'or sum by (outcome) (errand_webhook_attempts_total{outcome=~"failed|gone"} unless errand_webhook_attempts_total offset 1h) > 0',
        summary="Webhooks were given up",
        says="{{ $value | humanize }} deliveries ended as {{ $labels.outcome }}.",
        fires={'errand_webhook_attempts_total{outcome="failed"}': "_x5 1x20"},
        quiet={'errand_webhook_attempts_total{outcome="retry"}': "0+2x30"},
    ),
    Alert(
        name="ErrandStreamGaps",
        severity="info",
        wait="0m",
        expr="sum(increase(errand_stream_gaps_total[15m])) > 20",
        summary="Readers of streams miss events",
        says="{{ $value | humanize }} times in a quarter of an hour.",
        fires={"errand_stream_gaps_total": "0+3x30"},
        quiet={"errand_stream_gaps_total": "0+1x30"},
    ),
    Alert(
        name="ErrandBlobsPileUp",
        severity="warning",
        wait="30m",
        expr="max(errand_blobs_to_delete) > 1000",
        summary="Blobs are not deleted",
        says="{{ $value | humanize }} blobs that nobody needs wait to be deleted.",
        fires={"errand_blobs_to_delete": "2000x60"},
        quiet={"errand_blobs_to_delete": "2000x10 3x50"},
        at="45m",
    ),
    Alert(
        name="ErrandVersionsMixed",
        severity="warning",
        wait="1h",
        expr="count(count by (version) (errand_build_info)) > 1",
        summary="Two releases run side by side",
        says="For an hour: finish the upgrade, or take it back.",
        fires={'errand_build_info{version="0.1.0"}': "1x150", 'errand_build_info{version="0.2.0"}': "1x150"},
        quiet={
            'errand_build_info{version="0.2.0", instance="a"}': "1x150",
            'errand_build_info{version="0.2.0", instance="b"}': "1x150",
        },
        at="100m",
    ),
)


def rules() -> dict[str, Any]:
    """The rule file of Prometheus."""
    return {
        "groups": [
            {
                "name": "errand",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expr,
                        "for": alert.wait,
                        "labels": {"severity": alert.severity},
                        "annotations": {
                            "summary": alert.summary,
                            "description": alert.says,
                            "runbook_url": f"{RUNBOOK}#{alert.anchor}",
                        },
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }


def unit_tests() -> dict[str, Any]:
    """Tests for `promtool test rules`: each alert fires at its own series, and not at those that come near."""
    tests = [
        {
            "name": f"{alert.name} {'fires' if firing else 'is quiet'}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert.name}", alertstate="firing"}}) or vector(0)',
                    "eval_time": alert.at,
                    "exp_samples": [{"labels": "{}", "value": int(firing)}],
                }
            ],
        }
        for alert in ALERTS
        for firing, series in ((True, alert.fires), (False, alert.quiet))
    ]
    return {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}
