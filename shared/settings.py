"""Settings: read once from the environment into a frozen Struct, each with its bounds and a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from shared.errors import ConfigurationError
from shared.mcp_servers import parse_servers
from shared.prices import parse_prices

Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]

# Names that the contract gives without the project's prefix.
BARE_NAMES = {
    "port": "PORT",
    "host": "HOST",
    "redis_url": "REDIS_URL",
    "openai_api_key": "OPENAI_API_KEY",
    "openai_base_url": "OPENAI_BASE_URL",
}

# Never shown: not in an error, not in a `repr`.
SECRETS = frozenset(
    {"admin_key", "mcp_servers", "metrics_token", "openai_api_key", "redis_url", "rerank_api_key", "rerank_url"}
)


def _doc(text: str) -> Meta:
    return Meta(description=text)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an operator may set. The environment name is `ERRAND_` + the field's name in capitals,
    except those in BARE_NAMES."""

    host: Annotated[str, _doc("Address on which the API listens.")] = "127.0.0.1"
    port: Annotated[Port, _doc("Port of the API; 0 takes a free one.")] = 8080
    redis_url: Annotated[
        str,
        _doc(
            "Redis, e.g. `redis://host:6379/0`, `unix:///run/redis.sock` or `redis+sentinel://s1,s2,s3/NAME/0`; with "
            "`?replicas=1` a write counts when so many replicas have it. See docs/scaling.md."
        ),
    ] = "redis://127.0.0.1:6379/0"
    openai_api_key: Annotated[str, _doc("Key for the model's API; local servers take any.")] = ""
    openai_base_url: Annotated[str, _doc("Base URL of the OpenAI-compatible API, with its `/v1`.")] = (
        "https://api.openai.com/v1"
    )

    data_dir: Annotated[Path, _doc("Directory of files: blobs, the admin key, the embedded Redis.")] = Path(".errand")
    blobs: Annotated[
        Annotated[str, Meta(pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?)?$")],
        _doc(
            "Where blobs lie: empty for `ERRAND_DATA_DIR/blobs`, or `s3://bucket/prefix` (extra `s3`; key, region and "
            "endpoint come from the usual `AWS_…` variables)."
        ),
    ] = ""
    admin_key: Annotated[str, _doc("The admin key `ek_…`; made at the first start when unset.")] = ""
    redis_prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{0,64}$")],
        _doc("Starts every key, so that several installations can share one Redis."),
    ] = "errand:"
    allow_volatile: Annotated[bool, _doc("Run on a Redis that is known to lose acknowledged writes.")] = False

    default_model: Annotated[str, _doc("Chat model of jobs that name none.")] = "gpt-4o-mini"
    embedding_model: Annotated[str, _doc("Embedding model; empty: new collections are searched by words only.")] = (
        "text-embedding-3-small"
    )
    model_connect_seconds: Annotated[Seconds, _doc("Bound of connecting to the model.")] = 5.0
    model_first_token_seconds: Annotated[Seconds, _doc("Bound of the wait for the first byte of an answer.")] = 120.0
    model_between_tokens_seconds: Annotated[Seconds, _doc("Bound of silence within an answer.")] = 60.0

    model_total_seconds: Annotated[Seconds, _doc("Bound of one model call, from its start to its last token.")] = 600.0
    model_retries: Annotated[
        Annotated[int, Meta(ge=0, le=20)],
        _doc("Repeats of a model call that failed before any of its text was shown, within the same attempt."),
    ] = 2
    model_retry_wait_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=3_600)],
        _doc("Longest wait before such a repeat; a model that wishes for more gets another attempt of the job."),
    ] = 10.0
    model_breaker_failures: Annotated[
        Annotated[int, Meta(ge=1, le=1_000)],
        _doc("A model that has failed so often in a row is not asked for a while; then one call tries it."),
    ] = 10
    model_breaker_seconds: Annotated[Seconds, _doc("How long, at first; doubles with each failed try.")] = 10.0
    model_max_in_flight: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)],
        _doc("Most calls of batch work that one worker has under way at one model; a model's 429s lower it."),
    ] = 128
    embedding_items: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)], _doc("Most texts of one embeddings request.")
    ] = 512
    embedding_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=100_000_000)], _doc("Most tokens, estimated, of one embeddings request.")
    ] = 65_536
    fallback_models: Annotated[
        Annotated[str, Meta(pattern=r"^\s*([^=;,]+=[^=;]+(;[^=;,]+=[^=;]+)*;?)?\s*$")],
        _doc(
            "Models to ask, in order, when one stays out of reach: `gpt-4o=gpt-4.1,gpt-4o-mini;…`; `*` stands for any."
        ),
    ] = ""
    prices: Annotated[
        str,
        _doc(
            "Prices that go before the built-in ones, US dollars per million tokens, a JSON object by model or `*` "
            'pattern: `{"llama3*": {"input": 0.1, "output": 0.2}}`; `null` for unknown. The most specific wins.'
        ),
    ] = ""
    context_tokens: Annotated[
        Annotated[int, Meta(ge=1_000, le=100_000_000)],
        _doc("Tokens that a conversation of an agent may have; beyond, its oldest tool results are folded."),
    ] = 120_000

    log_format: Annotated[
        Literal["auto", "json", "console"], _doc("`auto`: console on a terminal, JSON elsewhere.")
    ] = "auto"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _doc("Least level that is logged.")] = "info"

    traces: Annotated[
        Literal["off", "otlp"],
        _doc(
            "`otlp`: export spans by OpenTelemetry, as OTLP over HTTP (extra `otel`); where to, and how many, say the "
            "usual `OTEL_…` variables. See docs/logs-and-traces.md."
        ),
    ] = "off"

    worker_slots: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)], _doc("Jobs that one worker process runs at a time.")
    ] = 20
    reserved_interactive_slots: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | None,
        _doc("Of these, kept for interactive jobs in a worker that serves both lanes; unset: a quarter."),
    ] = None
    disconnect_grace_seconds: Annotated[
        Annotated[float, Meta(ge=1, le=3_600)],
        _doc("A chat is cancelled, and its model call closed, when nobody has listened for so long."),
    ] = 10.0
    cors_origins: Annotated[
        Annotated[str, Meta(pattern=r"^\s*(\*|https?://[^,/\s]+(\s*,\s*https?://[^,/\s]+)*)?\s*$")],
        _doc("Origins of browser pages that may call the API, with commas between; `*` for any; empty: none."),
    ] = ""
    drain_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=3_600)],
        _doc("After SIGTERM a worker goes on with its jobs for so long, then hands them back."),
    ] = 5.0
    lease_seconds: Annotated[
        Annotated[float, Meta(ge=1, le=300)],
        _doc("A job whose worker has been silent for so long is given to another."),
    ] = 15.0
    aging_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=86_400)],
        _doc("A job is overtaken only by jobs of its tenant queued at most this much per class later."),
    ] = 60.0
    retry_base_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=3_600)],
        _doc("First backoff of an automatic retry; doubles, with jitter."),
    ] = 1.0
    retry_max_seconds: Annotated[Seconds, _doc("Longest backoff of an automatic retry.")] = 300.0
    retention_seconds: Annotated[
        Annotated[float, Meta(ge=1, le=10 * 366 * 86_400)], _doc("How long a job is kept after its end.")
    ] = 7 * 86_400.0
    search_log_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=10 * 366 * 86_400)],
        _doc("How long the log keeps a search, with its candidates, answer and feedback; 0: no log is kept."),
    ] = 30 * 86_400.0
    worker_metrics_port: Annotated[
        Port, _doc("Port on which a worker serves its metrics; 0 takes a free one. `GET /metrics/sd` lists them.")
    ] = 0
    worker_metrics_host: Annotated[
        str, _doc("Address on which a worker serves its metrics; `0.0.0.0` for Prometheus on another host.")
    ] = "127.0.0.1"
    worker_metrics_advertise: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]*$", max_length=253)],
        _doc("Name or address under which Prometheus finds it; unset: that address, or the host's name for `0.0.0.0`."),
    ] = ""
    map_concurrency: Annotated[
        Annotated[int, Meta(ge=1, le=256)], _doc("Model calls that one document analysis makes at a time.")
    ] = 4
    chunk_characters: Annotated[
        Annotated[int, Meta(ge=500, le=1_000_000)],
        _doc("Size of the parts in which a long document is read."),
    ] = 6_000

    max_body_bytes: Annotated[Annotated[int, Meta(ge=1_024, le=1 << 30)], _doc("Largest JSON body.")] = 10 * 1024 * 1024
    max_upload_bytes: Annotated[Annotated[int, Meta(ge=1_024, le=1 << 34)], _doc("Largest uploaded file.")] = (
        50 * 1024 * 1024
    )
    max_batch_bytes: Annotated[
        Annotated[int, Meta(ge=1_024, le=1 << 40)], _doc("Largest uploaded batch file (NDJSON).")
    ] = 4 * 1024 * 1024 * 1024
    body_seconds: Annotated[Seconds, _doc("A request's body must have arrived within this time.")] = 30.0
    header_seconds: Annotated[Seconds, _doc("A request's header must have arrived within this time.")] = 10.0
    send_seconds: Annotated[Seconds, _doc("A client that takes nothing of an answer for so long is let go.")] = 30.0
    idle_seconds: Annotated[Seconds, _doc("A connection between two requests is kept for so long.")] = 75.0
    max_connections: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)],
        _doc("Connections that one API process takes; more are refused with 503."),
    ] = 10_000
    max_connections_per_client: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)],
        _doc(
            "Of these, for one address (IPv6: one /64); loopback and trusted proxies have no such bound. Behind a "
            "trusted proxy: requests under way of one address that it names."
        ),
    ] = 1_000
    trusted_proxies: Annotated[
        str,
        _doc(
            "Addresses or networks (`10.0.0.0/8`, commas between) whose `X-Forwarded-For` is believed; empty: nobody's."
        ),
    ] = ""
    upload_seconds: Annotated[Seconds, _doc("An upload must have arrived within this time.")] = 600.0
    extract_seconds: Annotated[Seconds, _doc("CPU and wall time that reading one document may take.")] = 60.0
    extract_memory_mb: Annotated[
        Annotated[int, Meta(ge=128, le=65_536)], _doc("Memory that reading one document may take.")
    ] = 1_024
    max_document_pages: Annotated[Annotated[int, Meta(ge=1, le=1_000_000)], _doc("Most pages of a document.")] = 5_000
    max_document_characters: Annotated[
        Annotated[int, Meta(ge=1_000, le=1_000_000_000)], _doc("Most characters of a document's text.")
    ] = 20_000_000
    search_characters: Annotated[
        Annotated[int, Meta(ge=10_000, le=100_000_000)],
        _doc("Most characters of documents that one `search_documents` of an agent looks through; also kept indexed."),
    ] = 4_000_000
    search_chunk_characters: Annotated[
        Annotated[int, Meta(ge=200, le=20_000)],
        _doc("Most characters of a chunk in the search index of a new collection."),
    ] = 1_200
    search_document_prefix: Annotated[
        str, _doc("What the embedding model wants before a text to find, e.g. `passage: `; of new collections.")
    ] = ""
    search_query_prefix: Annotated[
        str, _doc("What the embedding model wants before a query, e.g. `query: `; of new collections.")
    ] = ""
    embedding_dimensions: Annotated[
        Annotated[int, Meta(ge=0, le=65_536)], _doc("Dimensions of the vectors of new collections; 0: the model's own.")
    ] = 0
    search_memory_mb: Annotated[
        Annotated[int, Meta(ge=16, le=1_048_576)],
        _doc("Memory for search indexes in one worker; those that were not searched for the longest go first."),
    ] = 1_024
    search_vset_chunks: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000_000)],
        _doc(
            "Chunks from which on the vectors of a collection move to a Redis 8 vector set, where the server has them; "
            "0: never."
        ),
    ] = 300_000
    search_min_score: Annotated[
        Annotated[float, Meta(ge=0, le=1)], _doc("`minScore` of a search that states none, on the calibrated scale.")
    ] = 0.5
    rerank: Annotated[
        Literal["none", "http", "model"],
        _doc("Who takes a second look at what was found: nobody, a server (`ERRAND_RERANK_URL`), or the chat model."),
    ] = "none"
    rerank_url: Annotated[
        Annotated[str, Meta(pattern=r"^(https?://[^\s/?#@]+(/[^\s#]*)?)?$")],
        _doc(
            "Full URL of the re-ranker, e.g. `https://api.cohere.com/v2/rerank`, `https://api.jina.ai/v1/rerank`, "
            "`http://tei:8080/rerank`, `http://vllm:8000/v1/rerank`."
        ),
    ] = ""
    rerank_api_key: Annotated[str, _doc("Its key, sent as a bearer token; servers of your own may need none.")] = ""
    rerank_model: Annotated[
        Annotated[str, Meta(max_length=200)], _doc("Its model, where it has several. Not for `ERRAND_RERANK=model`.")
    ] = ""
    rerank_shape: Annotated[
        Literal["auto", "cohere", "jina", "tei", "vllm"],
        _doc("The form of its requests; `auto` goes by the URL, and by what the server takes."),
    ] = "auto"
    rerank_seconds: Annotated[
        Seconds | None,
        _doc("A search waits so long for its re-ranker, then keeps its order; unset: 2 for `http`, 8 for `model`."),
    ] = None
    rerank_characters: Annotated[
        Annotated[int, Meta(ge=100, le=1_000_000)], _doc("Most characters of a text that the re-ranker gets.")
    ] = 4_000
    search_job_seconds: Annotated[
        Annotated[float, Meta(ge=60, le=10 * 366 * 86_400)],
        _doc("How long the job behind a search is kept; its line in the log has a time of its own."),
    ] = 600.0
    fetch_enabled: Annotated[bool, _doc("Whether agents may use `fetch_url`, and documents be given by URL.")] = False
    fetch_private_hosts: Annotated[
        Annotated[str, Meta(pattern=r"^[^/@?#]*$")],
        _doc("Hosts (`host` or `host:port`, commas between) that may be fetched although their address is private."),
    ] = ""
    fetch_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=600)], _doc("Time that fetching a URL may take, its redirects included.")
    ] = 20.0
    fetch_bytes: Annotated[
        Annotated[int, Meta(ge=1_024, le=1 << 30)], _doc("Largest content that is fetched, packed or unpacked.")
    ] = 5 * 1024 * 1024
    webhooks: Annotated[
        bool,
        _doc("Whether jobs may name a webhook, and workers send what is due. What is due is kept while it is off."),
    ] = True
    webhook_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=120)], _doc("Time that one request to a webhook may take, to the answer's head.")
    ] = 20.0
    webhook_concurrency: Annotated[
        Annotated[int, Meta(ge=2, le=10_000)],
        _doc("Requests to webhooks that one worker has under way; half of them at most of one tenant."),
    ] = 64
    webhook_retention_seconds: Annotated[
        Annotated[float, Meta(ge=60, le=366 * 86_400)],
        _doc("How long a delivery is kept after its end, to be listed and replayed."),
    ] = 7 * 86_400.0
    mcp_servers: Annotated[
        str, _doc("MCP servers whose tools agents may use, a JSON object by name; see docs/agent-tools.md.")
    ] = ""
    metrics_token: Annotated[str, _doc("Bearer token for `/metrics` from other hosts than loopback.")] = ""

    def __repr__(self) -> str:
        values = (
            f"{name}={'…' if name in SECRETS and value else repr(value)}"
            for name in self.__struct_fields__
            for value in (getattr(self, name),)
        )
        return f"Settings({', '.join(values)})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("settings", repr(self))]

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings from the environment. Raises ConfigurationError, which names the variable, when one is bad."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(cls):
            text = environ.get(env_name(field.name))
            if text is None or (text == "" and field.name in BARE_NAMES):
                continue
            try:
                values[field.name] = msgspec.convert(text, field.type, strict=False, dec_hook=_decode_path)
            except msgspec.ValidationError as error:
                shown = "" if field.name in SECRETS else f"={text!r}"
                raise ConfigurationError(f"{env_name(field.name)}{shown} is not valid: {error}") from None
        known = {env_name(field.name) for field in msgspec.structs.fields(cls)} | CLIENT_NAMES
        for name in environ:
            if name.startswith("ERRAND_") and name not in known:
                raise ConfigurationError(f"{name} is not a setting of Errand; see docs/reference/settings.md")
        parse_servers(values.get("mcp_servers", ""))
        parse_prices(values.get("prices", ""))
        if values.get("rerank") == "http" and not values.get("rerank_url"):
            raise ConfigurationError("ERRAND_RERANK=http needs ERRAND_RERANK_URL, the full URL of the re-ranker")
        return cls(**values)


# Read by scripts/errand, by the scripts and by the tests, not by the servers.
CLIENT_NAMES = frozenset({"ERRAND_URL", "ERRAND_KEY", "ERRAND_VENV", "ERRAND_TEST_REDIS8"})


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"a setting of type {kind} cannot be read from the environment")


def env_name(field: str) -> str:
    """The environment variable of a setting."""
    return BARE_NAMES.get(field, f"ERRAND_{field.upper()}")


def describe() -> list[tuple[str, str, str]]:
    """Every setting as (environment name, default, sentence), for the generated reference."""
    hints = get_type_hints(Settings, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(Settings):
        sentence = next(
            meta.description for meta in hints[field.name].__metadata__ if isinstance(meta, Meta) and meta.description
        )
        rows.append((env_name(field.name), str(field.default), sentence))
    return rows
