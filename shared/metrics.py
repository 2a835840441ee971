"""Metrics of this process, each once. Names are prefix, thing, unit; labels come from closed sets, never from ids. What
all processes have in common is in Redis, and `shared.fleet` reads it."""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from shared.version import our_version

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

# Bounds that the GenAI semantic conventions advise for each of their metrics.
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WAIT = (0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400)
_RUN = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 150, 300, 600, 1_800, 3_600)

BUILD: Final = Info("errand_build", "What runs here.", registry=REGISTRY)
BUILD.info({"version": our_version()})

# -- HTTP ------------------------------------------------------------------------------------------------------------

HTTP_REQUESTS = Counter("errand_http_requests", "Requests answered.", ["method", "route", "status"], registry=REGISTRY)
HTTP_SECONDS = Histogram(
    "errand_http_request_seconds", "Time to answer a request; for streams, to their end.", ["route"],
    buckets=_FAST, registry=REGISTRY,
)  # fmt: skip
STREAMS_OPEN = Gauge(
    "errand_streams_open", "Clients that read events just now; a WebSocket counts as one.", ["transport"],
    registry=REGISTRY,
)  # fmt: skip
STREAMS_OPENED = Counter(
    "errand_streams_opened", "Streams that were begun; resumed: the client had seen a part of it before.",
    ["transport", "resumed"], registry=REGISTRY,
)  # fmt: skip
STREAM_GAPS = Counter(
    "errand_stream_gaps", "Readers who were told that events are gone, or that they were too slow.", registry=REGISTRY
)

# -- jobs ------------------------------------------------------------------------------------------------------------

JOBS_ADMITTED = Counter("errand_jobs_admitted", "Jobs taken in.", ["type", "priority"], registry=REGISTRY)
JOBS_REFUSED = Counter("errand_jobs_refused", "Jobs refused at the door.", ["code"], registry=REGISTRY)
JOBS_CLAIMED = Counter("errand_jobs_claimed", "Jobs that a worker took.", ["lane"], registry=REGISTRY)
PICKUP_SECONDS = Histogram(
    "errand_job_pickup_seconds",
    "From a job being ready to its claim.",
    ["lane"],
    buckets=_WAIT,
    registry=REGISTRY,
)
ATTEMPTS_SETTLED = Counter(
    "errand_attempts_settled", "Attempts that ended, by outcome and error code.", ["type", "outcome", "code"],
    registry=REGISTRY,
)  # fmt: skip
ATTEMPT_SECONDS = Histogram(
    "errand_attempt_seconds", "Run time of attempts, however they ended.", ["type"], buckets=_RUN,
    registry=REGISTRY,
)  # fmt: skip
JOB_SECONDS = Histogram(
    "errand_job_seconds", "From a job's submission to its final state by a worker.", ["type", "outcome"], buckets=_WAIT,
    registry=REGISTRY,
)  # fmt: skip
LEASES_LOST = Counter("errand_leases_lost", "Leases that this worker found lost.", registry=REGISTRY)
JOBS_REAPED = Counter(
    "errand_jobs_reaped",
    "Jobs taken from a worker whose lease ran out, expired before their start, or cancelled since nobody listened.",
    ["reason", "status"], registry=REGISTRY,
)  # fmt: skip
SLOTS_BUSY = Gauge("errand_worker_slots_busy", "Jobs that this worker runs just now.", ["lane"], registry=REGISTRY)
SLOTS = Gauge("errand_worker_slots", "Jobs that this worker can run at a time.", ["lane"], registry=REGISTRY)
LOOP_BLOCKED = Counter("errand_event_loop_blocked", "Times that the event loop stood still.", registry=REGISTRY)
LOOP_LAG = Histogram(
    "errand_event_loop_lag_seconds", "How late a worker's event loop comes to what is due.", buckets=_FAST,
    registry=REGISTRY,
)  # fmt: skip

TASKS = Gauge(
    "errand_asyncio_tasks",
    "Tasks of the event loop just now: a number that grows without end is a leak.",
    registry=REGISTRY,
)

# -- the model -------------------------------------------------------------------------------------------------------

MODEL_SECONDS = Histogram(
    "gen_ai_client_operation_duration_seconds", "Time of model calls; without an error_type they were answered.",
    ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type"],
    buckets=_DURATION, registry=REGISTRY,
)  # fmt: skip
MODEL_FIRST = Histogram(
    "gen_ai_client_operation_time_to_first_chunk_seconds", "From a call to the first chunk of its answer.",
    ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"], buckets=_FIRST, registry=REGISTRY,
)  # fmt: skip
MODEL_TOKENS = Histogram(
    "gen_ai_client_token_usage", "Tokens of model calls, also of those that were cut.",
    ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_type"],
    buckets=_TOKENS, registry=REGISTRY,
)  # fmt: skip
TOOL_SECONDS = Histogram(
    "gen_ai_execute_tool_duration_seconds", "Time of the tools that agents call.", ["gen_ai_tool_name", "error_type"],
    buckets=_DURATION, registry=REGISTRY,
)  # fmt: skip
COST = Counter(
    "errand_cost_usd", "What model calls cost by the price list, in US dollars.", ["gen_ai_request_model"],
    registry=REGISTRY,
)  # fmt: skip
TOKENS_UNPRICED = Counter("errand_tokens_unpriced", "Tokens of models without a known price.", registry=REGISTRY)
MODEL_RETRIES = Counter(
    "errand_model_retries", "Model calls that were made again within their attempt, by why.", ["code"],
    registry=REGISTRY,
)  # fmt: skip
MODEL_FALLBACKS = Counter("errand_model_fallbacks", "Calls that another model was asked.", registry=REGISTRY)
BREAKERS_OPENED = Counter(
    "errand_model_breakers_opened", "Times that a model was left alone, having failed too often in a row.",
    registry=REGISTRY,
)  # fmt: skip

# -- limits ----------------------------------------------------------------------------------------------------------

SOFT_LIMITS = Counter(
    "errand_budget_soft_crossed", "Soft limits of budgets that were crossed, once per window.",
    ["scope", "period", "unit"], registry=REGISTRY,
)  # fmt: skip
BUDGETS_REFUSED = Counter(
    "errand_budget_refused", "Jobs refused, and calls not made, at the hard limit of a budget.",
    ["scope", "period", "unit"], registry=REGISTRY,
)  # fmt: skip
RATES_REFUSED = Counter(
    "errand_rate_refused", "Requests and jobs refused for a rate.", ["scope", "unit"], registry=REGISTRY
)
LIMIT_WAITS = Counter(
    "errand_limit_waits", "Looks at a limit that found no room for a model call.", ["kind"], registry=REGISTRY
)

# -- documents, search, prompts --------------------------------------------------------------------------------------

SEARCH_SECONDS = Histogram(
    "errand_search_seconds", "Time of searches, their answer included.", ["mode", "outcome"], buckets=_FAST,
    registry=REGISTRY,
)  # fmt: skip
SEARCH_TOP_SCORE = Histogram(
    "errand_search_top_score", "Score of the best candidate of a search, on the calibrated scale.",
    buckets=tuple(n / 10 for n in range(1, 11)), registry=REGISTRY,
)  # fmt: skip
SEARCH_SOURCES = Histogram(
    "errand_search_sources", "Sources that a search was answered with.", buckets=(0, 1, 2, 3, 5, 10, 20, 50),
    registry=REGISTRY,
)  # fmt: skip
REPLICAS = Gauge("errand_search_replicas", "Search indexes that this worker holds in memory.", registry=REGISTRY)
REPLICA_BYTES = Gauge("errand_search_replica_bytes", "What they take.", registry=REGISTRY)
CHUNKS = Counter(
    "errand_ingest_chunks", "Chunks that were indexed, by where their vectors came from.", ["vectors"],
    registry=REGISTRY,
)  # fmt: skip
RERANK_SECONDS = Histogram(
    "errand_rerank_seconds", "Time of re-ranking a search, by what came of it.", ["kind", "outcome"], buckets=_FAST,
    registry=REGISTRY,
)  # fmt: skip
WEBHOOK_ATTEMPTS = Counter(
    "errand_webhook_attempts", "Requests to webhooks, by what came of the delivery.", ["outcome"], registry=REGISTRY
)
WEBHOOK_SECONDS = Histogram(
    "errand_webhook_attempt_seconds", "Time of requests to webhooks.", ["outcome"], buckets=_FAST, registry=REGISTRY
)
WEBHOOK_LATENCY = Histogram(
    "errand_webhook_first_attempt_seconds", "From an event to the first request that tells it.", buckets=_FAST,
    registry=REGISTRY,
)  # fmt: skip
WEBHOOKS_UNDER_WAY = Gauge(
    "errand_webhooks_under_way", "Requests to webhooks that this worker has under way.", registry=REGISTRY
)
WEBHOOKS_REPAIRED = Counter(
    "errand_webhooks_repaired", "Deliveries noted for jobs that a process ended which knows of no webhooks.",
    registry=REGISTRY,
)  # fmt: skip
CITATIONS = Counter(
    "errand_citations",
    "Quotes of the model, by whether they stand in the text.",
    ["verified"],
    registry=REGISTRY,
)
FEEDBACK = Counter("errand_feedback", "Judgements of jobs' results.", ["kind"], registry=REGISTRY)
GUARDRAILS = Counter(
    "errand_prompt_guardrails",
    "Experiments that a guardrail has ended.",
    ["metric", "action"],
    registry=REGISTRY,
)

TRACE_SPANS = Counter(
    "errand_trace_spans", "Spans begun, exported, and lost to a collector that is away.", ["outcome"], registry=REGISTRY
)

# -- Redis -----------------------------------------------------------------------------------------------------------

REDIS_OUTAGES = Counter("errand_redis_outages", "Calls that found Redis out of reach.", ["side"], registry=REGISTRY)
SCRIPT_SECONDS = Histogram(
    "errand_redis_script_seconds", "Time of a script in Redis as this process saw it.", ["script"],
    buckets=_FAST, registry=REGISTRY,
)  # fmt: skip

# What each label can be, for the generated reference; a test holds every label against it.
LABELS: Final = {
    "method": "a method of HTTP; `_OTHER` for what is none",
    "route": "a path of the URL table, with its parameters' names; `unknown`, `unreadable`",
    "status": "of requests: that of the answer; 499: the client went away before it. Of reaped jobs: what became of it",
    "transport": "`sse`, `websocket`",
    "resumed": "`yes`, `no`",
    "type": "a job type",
    "priority": "`high`, `normal`, `low`",
    "lane": "`interactive`, `batch`",
    "code": "a problem code or an error code of a job; empty for none",
    "outcome": "of attempts and jobs: `complete`, `failed`, `cancelled`, `retry`, `input`, `budget`, `delay`, "
    "`handback`, `lost`; of searches: `found`, `empty`, `failed`; of re-rankings, webhooks and spans what came of it",
    "reason": "`lease`: its worker was lost; `expiry`; `listener`: nobody listened to the chat",
    "gen_ai_operation_name": "`chat`, `embeddings`",
    "gen_ai_provider_name": "by the model's host, as the GenAI conventions name it; `openai` for what is not known",
    "gen_ai_request_model": "the models of the settings, the first 30 others that answered, `other`",
    "gen_ai_token_type": "`input`, `output`",
    "gen_ai_tool_name": "a tool that the operator has given",
    "error_type": "an error code; `cancelled`; empty when all went well",
    "scope": "`tenant`, `key`, `user`, `prompt`",
    "period": "`day`, `month`, `total`",
    "unit": "`tokens`, `usd`, `requests`",
    "kind": "of waits: the kind of limit; of feedback: `good`, `bad`, `neutral`; of re-rankers: `http`, `model`",
    "mode": "`hybrid`, `vector`, `keyword`",
    "vectors": "`bought`, `reused`, `none`",
    "verified": "`yes`, `no`",
    "metric": "a metric of experiments",
    "action": "what a guardrail did",
    "side": "`api`, `worker`",
    "script": "a file of shared/lua",
}


def count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """From now on the gauge counts the tasks of this loop, at each scrape and from whatever thread it comes."""
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
