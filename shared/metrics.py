"""Metrics, each once. Names are prefix, thing, unit; labels come from closed sets, never from ids."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY: Final = CollectorRegistry()

# GenAI semantic conventions, `gen_ai.client.operation.duration` and `gen_ai.client.token.usage`.
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

HTTP_REQUESTS = Counter("errand_http_requests", "Requests answered.", ["method", "route", "status"], registry=REGISTRY)
HTTP_SECONDS = Histogram(
    "errand_http_request_seconds", "Time to answer a request; for streams, to their end.", ["route"],
    buckets=_FAST, registry=REGISTRY,
)  # fmt: skip
STREAMS_OPEN = Gauge("errand_streams_open", "Event streams being read just now.", registry=REGISTRY)
JOBS_ADMITTED = Counter("errand_jobs_admitted", "Jobs taken in.", ["type", "priority"], registry=REGISTRY)
JOBS_REFUSED = Counter("errand_jobs_refused", "Jobs refused at the door.", ["code"], registry=REGISTRY)
GUARDRAILS = Counter(
    "errand_prompt_guardrails",
    "Experiments that a guardrail has ended.",
    ["metric", "action"],
    registry=REGISTRY,
)
FEEDBACK = Counter("errand_feedback", "Judgements of jobs' results.", ["kind"], registry=REGISTRY)
REDIS_OUTAGES = Counter("errand_redis_outages", "Calls that found Redis out of reach.", ["side"], registry=REGISTRY)

JOBS_CLAIMED = Counter("errand_jobs_claimed", "Jobs that a worker took.", ["lane"], registry=REGISTRY)
PICKUP_SECONDS = Histogram(
    "errand_job_pickup_seconds",
    "From a job being ready to its claim.",
    ["lane"],
    buckets=_FAST,
    registry=REGISTRY,
)
ATTEMPTS_SETTLED = Counter(
    "errand_attempts_settled", "Attempts that ended, by outcome and error code.", ["type", "outcome", "code"],
    registry=REGISTRY,
)  # fmt: skip
ATTEMPT_SECONDS = Histogram(
    "errand_attempt_seconds", "Run time of attempts, however they ended.", ["type"], buckets=_DURATION,
    registry=REGISTRY,
)  # fmt: skip
SLOTS_BUSY = Gauge("errand_worker_slots_busy", "Jobs that this worker runs just now.", ["lane"], registry=REGISTRY)
SLOTS = Gauge("errand_worker_slots", "Jobs that this worker can run at a time.", ["lane"], registry=REGISTRY)
LEASES_LOST = Counter("errand_leases_lost", "Leases that this worker found lost.", registry=REGISTRY)
JOBS_REAPED = Counter(
    "errand_jobs_reaped", "Jobs taken back from lost workers, or expired.", ["status"], registry=REGISTRY
)
SOFT_LIMITS = Counter(
    "errand_budget_soft_crossed", "Soft limits of budgets that were crossed, once per window.",
    ["scope", "period", "unit"], registry=REGISTRY,
)  # fmt: skip
LIMIT_WAITS = Counter(
    "errand_limit_waits", "Looks at a limit that found no room for a model call.", ["kind"], registry=REGISTRY
)
LOOP_BLOCKED = Counter("errand_event_loop_blocked", "Times that the event loop stood still.", registry=REGISTRY)
BREAKERS_OPENED = Counter(
    "errand_model_breakers_opened", "Times that a model was left alone, having failed too often in a row.",
    registry=REGISTRY,
)  # fmt: skip
MODEL_SECONDS = Histogram(
    "gen_ai_client_operation_duration_seconds", "Time of model calls.", ["operation", "outcome"], buckets=_DURATION,
    registry=REGISTRY,
)  # fmt: skip
MODEL_TOKENS = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of model calls.",
    ["operation", "kind"],
    buckets=_TOKENS,
    registry=REGISTRY,
)
RERANK_SECONDS = Histogram(
    "errand_rerank_seconds", "Time of re-ranking a search, by what came of it.", ["kind", "outcome"], buckets=_FAST,
    registry=REGISTRY,
)  # fmt: skip
CITATIONS = Counter(
    "errand_citations",
    "Quotes of the model, by whether they stand in the text.",
    ["verified"],
    registry=REGISTRY,
)
