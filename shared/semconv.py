"""Names and attributes of spans, each once: the semantic conventions of OpenTelemetry for HTTP, messaging and GenAI
(opentelemetry.io/docs/specs/semconv), and ours, which begin with `errand.`.

Left out on purpose, though the conventions name them: the path and query of a URL (ids and tickets stand there), the
client's address and agent, ids that a model gave its tool calls, messages and outputs.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from shared.tracing import OTHER, plain_name

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY"})
FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
# `gen_ai.provider.name` by the host of the base URL; what only speaks like OpenAI is `openai`, as the conventions say.
PROVIDERS: Final = {
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "amazonaws.com": "aws.bedrock",
    "anthropic.com": "anthropic",
    "cohere.com": "cohere",
    "deepseek.com": "deepseek",
    "googleapis.com": "gcp.gemini",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}

HTTP_STATUS: Final = "http.response.status_code"
REQUEST_ID: Final = "errand.request.id"
TENANT: Final = "errand.tenant"
MESSAGE_ID: Final = "messaging.message.id"
OUTCOME: Final = "errand.job.outcome"

Attributes = dict[str, Any]


def method_of(text: str) -> str:
    """A request's method; those that nobody knows are one."""
    return text if text in METHODS else OTHER


def http_server(method: str, route: str, scheme: str, request_id: str) -> tuple[str, Attributes]:
    """The span of one request; `route` is the template."""
    attributes = {"http.request.method": method, "http.route": route, "url.scheme": scheme, REQUEST_ID: request_id}
    return f"{method} {route}", attributes


def job_sent(lane: str, kind: str) -> tuple[str, Attributes]:
    """The span of a job being taken in."""
    return f"send {lane}", {**_messaging("send", lane), "errand.job.type": kind}


def job_processed(
    lane: str, kind: str, *, job_id: str, tenant: str, attempt: int, run: int, waited_ms: int, request_id: str
) -> tuple[str, Attributes]:
    """The span of one attempt, until it is settled."""
    return f"process {lane}", {
        **_messaging("process", lane),
        MESSAGE_ID: job_id,
        TENANT: tenant,
        REQUEST_ID: request_id or None,
        "errand.job.type": kind,
        "errand.job.attempt": attempt,
        "errand.job.run": run,
        "errand.job.waited_ms": waited_ms,
    }


def _messaging(operation: str, lane: str) -> Attributes:
    return {
        "messaging.system": "errand",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": lane,
    }


def provider_of(base_url: str) -> str:
    """`gen_ai.provider.name` of the API at this address."""
    host = urlsplit(base_url).hostname or ""
    return next((name for domain, name in PROVIDERS.items() if f".{host}".endswith(f".{domain}")), "openai")


def server_of(base_url: str) -> Attributes:
    """What all calls to one model API have in common."""
    where = urlsplit(base_url)
    host = where.hostname or ""
    return {
        "gen_ai.provider.name": provider_of(base_url),
        "server.address": host,
        "server.port": where.port or (443 if where.scheme == "https" else 80),
    }


def model_call(operation: str, model: str, server: Attributes) -> tuple[str, Attributes]:
    """The span of one request to a model; `operation` is `chat` or `embeddings`."""
    shown = plain_name(model)
    return f"{operation} {shown}", {**server, "gen_ai.operation.name": operation, "gen_ai.request.model": shown}


def model_usage(input_tokens: int, output_tokens: int | None) -> Attributes:
    """What a call has used; of embeddings there is no output."""
    return {"gen_ai.usage.input_tokens": input_tokens, "gen_ai.usage.output_tokens": output_tokens}


def model_answer(model: str, finish_reason: str) -> Attributes:
    """What the model said of its answer."""
    reason = finish_reason if finish_reason in FINISH_REASONS else OTHER
    return {"gen_ai.response.model": plain_name(model), "gen_ai.response.finish_reasons": (reason,)}


def tool_call(name: str) -> tuple[str, Attributes]:
    """The span of one tool being carried out."""
    shown = plain_name(name)
    return f"execute_tool {shown}", {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": shown,
        "gen_ai.tool.type": "function",
    }
