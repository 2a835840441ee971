"""The SDK's errors as ours: what may be tried again, and when."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any, Final

import openai

from shared.errors import (
    ContextTooLong,
    JobError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamUnavailable,
)

RETRYABLE_STATUS: Final = frozenset({408, 409, 425})
NOT_CONNECTED: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}  # httpx
    | {"ClientConnectorError", "ConnectionTimeoutError", "InvalidURL"}  # aiohttp
)
HTTP_LIBRARIES: Final = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp"})
# How servers say that the input is too long: OpenAI's code, then vLLM, Ollama and llama.cpp in words.
TOO_LONG: Final = ("context_length_exceeded", "maximum context length", "context window", "exceeds the context")


def classify(error: openai.OpenAIError) -> JobError:
    """The SDK's error as ours."""
    if isinstance(error, openai.APIStatusError):
        text = f"the model answered {error.status_code}: {error.message}"
        if error.status_code == 429:
            if error.code == "insufficient_quota":
                return UpstreamRefused(text, status=429)
            return UpstreamRateLimited(text, retry_after_s=retry_after_s(error.response.headers))
        if error.status_code >= 500 or error.status_code in RETRYABLE_STATUS:
            wish_s = retry_after_s(error.response.headers)
            return UpstreamUnavailable(text, status=error.status_code, retry_after_s=wish_s)
        said = f"{error.code} {error.message}".lower()
        if error.status_code in (400, 413) and any(sign in said for sign in TOO_LONG):
            return ContextTooLong(text, status=error.status_code)
        return UpstreamRefused(text, status=error.status_code)
    if isinstance(error, openai.APIConnectionError):
        cause = f": {error.__cause__}" if error.__cause__ else ""
        return UpstreamUnavailable(f"the model cannot be reached{cause}", at_once=never_answered(error))
    return UpstreamUnavailable(f"{type(error).__name__}: {error}")


def of_http(error: BaseException) -> bool:
    """Whether an error is one of the HTTP library's own, which the SDK leaves unwrapped while a raw body is read."""
    return type(error).__module__.partition(".")[0] in HTTP_LIBRARIES


def never_connected(error: openai.OpenAIError) -> bool:
    """Whether the request did not even reach the model. The SDK's error is caused by httpx's; over aiohttp that one is
    caused by aiohttp's, and then only this tells a connection that was not made from one that broke."""
    return bool(_names(error) & NOT_CONNECTED)


def never_answered(error: openai.OpenAIError) -> bool:
    """Whether a connection ended before a byte of the answer: mostly one that was kept alive for too long."""
    return bool(_names(error) & {"ServerDisconnectedError", "RemoteProtocolError"})


def _names(error: BaseException) -> set[str]:
    """The classes of what the SDK's error was caused by, aiohttp's before httpx's."""
    cause = error.__cause__
    if cause is not None and (below := cause.__cause__) is not None and type(below).__module__.startswith("aiohttp"):
        return {kind.__name__ for kind in type(below).__mro__}
    return {type(cause).__name__}


def retry_after_s(headers: Any) -> float | None:
    """The wish of a `retry-after-ms` or `retry-after` header (seconds or an HTTP date), in seconds."""
    try:
        if (millis := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(millis) / 1000)
        if (text := headers.get("retry-after")) is None:
            return None
        try:
            return max(0.0, float(text))
        except ValueError:
            sent = headers.get("date")
            if sent is None:
                return None
            return max(0.0, (parsedate_to_datetime(text) - parsedate_to_datetime(sent)).total_seconds())
    except (ValueError, TypeError):
        return None
