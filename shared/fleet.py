"""Metrics of what all processes have in common: the queues, the workers, Redis. Each API process reads them from Redis
when it is scraped, so all of them say the same: take `max by`, not `sum`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class Family(NamedTuple):
    """One metric: its name as scraped without `_total`, its kind (`gauge` or `counter`), labels, what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    says: str


FAMILIES: Final[tuple[Family, ...]] = (
    Family("errand_queue_jobs", "gauge", ("lane", "priority"), "Jobs that are ready to run."),
    Family("errand_queue_oldest_seconds", "gauge", ("lane", "priority"),
           "How long the oldest of them has been ready; 0 without any."),
    Family("errand_jobs_running", "gauge", ("lane",), "Jobs that a worker has."),
    Family("errand_jobs_delayed", "gauge", ("lane",),
           "Jobs that are due later: scheduled, in backoff, over a token rate."),
    Family("errand_jobs_paused", "gauge", (), "Jobs that wait for a budget."),
    Family("errand_jobs_kept", "gauge", (), "Jobs that have ended and are kept until their retention is over."),
    Family("errand_tenants_parked", "gauge", ("lane",), "Tenants with ready jobs that run as many as they may."),
    Family("errand_tenants_rated", "gauge", ("lane",), "Tenants with ready jobs that are over their token rate."),
    Family("errand_fleet_workers", "gauge", ("lane",), "Live workers."),
    Family("errand_fleet_slots", "gauge", ("lane",),
           "Jobs that they can run at a time; a worker on both lanes counts on each."),
    Family("errand_webhooks_pending", "gauge", (), "Deliveries to webhooks that are due or will be tried again."),
    Family("errand_webhooks_oldest_seconds", "gauge", (), "How long ago the event of the oldest was; 0 without any."),
    Family("errand_blobs_to_delete", "gauge", (), "Blobs that nobody needs any more and that are not yet deleted."),
    Family("errand_redis_up", "gauge", (), "1 when Redis answered this scrape."),
    Family("errand_redis_durable", "gauge", (),
           "1 when Redis keeps what it acknowledges, 0 when a setting is known to lose it."),
    Family("errand_redis_persistence_ok", "gauge", (), "1 when the last write and rewrite of its files went well."),
    Family("errand_redis_memory_bytes", "gauge", (), "Memory that Redis uses for data."),
    Family("errand_redis_memory_max_bytes", "gauge", (), "What it may use; the host's memory where no bound is set."),
    Family("errand_redis_memory_fragmentation_ratio", "gauge", (), "Memory of its process for each byte of data."),
    Family("errand_redis_clients", "gauge", (), "Connections to Redis."),
    Family("errand_redis_clients_max", "gauge", (), "Connections that it takes."),
    Family("errand_redis_keys", "gauge", (), "Keys in our database."),
    Family("errand_redis_replicas", "gauge", (), "Replicas that follow it."),
    Family("errand_redis_uptime_seconds", "gauge", (), "How long it runs."),
    Family("errand_redis_commands", "counter", (), "Commands that it has carried out."),
    Family("errand_redis_evicted_keys", "counter", (),
           "Keys that it threw away for want of memory: there must be none."),
)  # fmt: skip

Samples = dict[str, list[tuple[tuple[str, ...], float]]]


class FleetCollector:
    """Hands Prometheus's client the figures of the last reading; without one only that Redis is away."""

    def __init__(self) -> None:
        self.samples: Samples | None = None

    def collect(self) -> Iterator[Metric]:
        """As the client library calls it."""
        samples: Samples = self.samples if self.samples is not None else {"errand_redis_up": [((), 0.0)]}
        for family in FAMILIES:
            if family.name not in samples:
                continue
            kind = GaugeMetricFamily if family.kind == "gauge" else CounterMetricFamily
            metric = kind(family.name, family.says, labels=family.labels)
            for labels, value in samples[family.name]:
                metric.add_metric(labels, value)
            yield metric
