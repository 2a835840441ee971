"""Calls to any OpenAI-compatible model, always streamed, so that a cancel closes the connection at once.

The SDK makes the request; its answer is read raw and decoded with msgspec, which costs a fraction of the SDK's
typed stream. Retries are ours (`worker.outcome`), never the SDK's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import openai

from shared.clock import monotonic_s
from shared.errors import ConfigurationError, JobError, UpstreamRateLimited, UpstreamRefused, UpstreamUnavailable
from shared.metrics import MODEL_SECONDS, MODEL_TOKENS
from shared.settings import Settings
from shared.stores.events import CallUsage
from worker.turnstile import Turnstile

CHARACTERS_PER_TOKEN: Final = 4  # for estimates only; usage that the provider states wins
MAX_LINE_BYTES: Final = 8 * 1024 * 1024  # of one event of the model's stream
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
# The SDK hands out its answer unparsed; a contract test watches that it still does. Its generated method for this
# endpoint would walk through all messages once more and cost half as much again.
RAW: Final = {"X-Stainless-Raw-Response": "stream"}
CALLS_PER_TURN: Final = 1  # that begin in one turn of the event loop: each is half a millisecond of the SDK
MAX_CONNECTIONS: Final = 10_000  # the slots of the worker bound them
KEEP_ALIVE_S: Final = 30.0  # a TLS handshake is most of the time to a first token; the SDK's 5 s forgets too soon
RETRYABLE_STATUS: Final = frozenset({408, 409, 425})


class ChatCall(msgspec.Struct, frozen=True):
    """One request for a completion. `schema`: the answer must be JSON that fits it; `strict` only for our own."""

    messages: list[dict[str, str]]
    max_tokens: int | None = None
    temperature: float | None = None
    schema: dict[str, Any] | None = None
    strict: bool = False


class Completion(msgspec.Struct, frozen=True):
    """A finished answer."""

    text: str
    finish_reason: str
    usage: CallUsage
    model: str


class Progress:
    """What is known of a call while it runs: what a cut or cancelled call is charged for."""

    def __init__(self, call: ChatCall) -> None:
        self.input_tokens = estimate_tokens(call)
        self.dispatched = False
        self.parts: list[str] = []
        self.stated: CallUsage | None = None

    def usage(self) -> CallUsage:
        """The provider's figure if it came, else ours: the estimated input and one token per content chunk."""
        if self.stated is not None:
            return self.stated
        if not self.dispatched:
            return CallUsage()
        return CallUsage(self.input_tokens, len(self.parts), 0, estimated=True)


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: msgspec.Raw | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def estimate_tokens(call: ChatCall) -> int:
    """The input's tokens before any provider has counted them."""
    characters = sum(len(message["content"]) + 8 for message in call.messages)
    if call.schema is not None:
        characters += len(msgspec.json.encode(call.schema))
    return characters // CHARACTERS_PER_TOKEN + 1


class Model:
    """The client of one OpenAI-compatible API."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        host = urlsplit(settings.openai_base_url).hostname or ""
        try:
            self._client = openai.AsyncOpenAI(
                api_key=settings.openai_api_key or "none",
                base_url=settings.openai_base_url,
                max_retries=0,
                timeout=openai.Timeout(None, connect=settings.model_connect_seconds),
                # A model on this machine is never asked through a proxy.
                http_client=_http_client(trust_env=host not in LOOPBACK),
            )
        except (ImportError, ValueError, openai.OpenAIError) as error:
            raise ConfigurationError(f"The client of the model cannot be made: {error}") from None
        self._turnstile = Turnstile(CALLS_PER_TURN)
        # The SDK loads this part at its first use, which takes 100 ms: not in somebody's first answer.
        _ = self._client.chat.completions

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def complete(
        self, model: str, call: ChatCall, progress: Progress, on_text: Callable[[str], None] | None = None
    ) -> Completion:
        """One answer; `on_text` gets each piece as it comes. `progress` tells, also after an error, what was used.

        Raises UpstreamUnavailable, UpstreamRateLimited or UpstreamRefused.
        """
        started, outcome = monotonic_s(), "error"
        try:
            completion = await self._complete(model, call, progress, on_text)
            outcome = "ok"
            return completion
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except JobError as error:
            outcome = error.code
            raise
        finally:
            usage = progress.usage()
            MODEL_SECONDS.labels("chat", outcome).observe(monotonic_s() - started)
            MODEL_TOKENS.labels("chat", "input").observe(usage.input_tokens)
            MODEL_TOKENS.labels("chat", "output").observe(usage.output_tokens)

    async def _complete(
        self, model: str, call: ChatCall, progress: Progress, on_text: Callable[[str], None] | None
    ) -> Completion:
        finish_reason, served_by = "", model
        try:
            await self._turnstile.enter()
            # From here on the model may be working on it, so it is paid for, whatever comes.
            progress.dispatched = True
            async with asyncio.timeout(self._settings.model_first_token_seconds + self._settings.model_connect_seconds):
                response = await self._client.post(
                    "/chat/completions",
                    body=_arguments(model, call),
                    cast_to=object,
                    options={"headers": RAW},
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
            try:
                async for line in self._lines(response):
                    if line == b"[DONE]":
                        finish_reason = finish_reason or "stop"
                        break
                    chunk = _decode_chunk(line)
                    served_by = chunk.model or served_by
                    if chunk.error is not None:
                        raise UpstreamUnavailable(f"the model broke off: {bytes(chunk.error).decode()[:300]}")
                    if chunk.usage is not None and (chunk.usage.prompt_tokens or chunk.usage.completion_tokens):
                        progress.stated = CallUsage(chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0)
                    for choice in chunk.choices or ():
                        if choice.delta is not None and choice.delta.refusal:
                            raise UpstreamRefused(f"the model declined: {choice.delta.refusal[:300]}")
                        if choice.delta is not None and choice.delta.content:
                            progress.parts.append(choice.delta.content)
                            if on_text is not None:
                                on_text(choice.delta.content)
                        finish_reason = choice.finish_reason or finish_reason
            finally:
                # Shielded: a cancel must close the connection, not only forget it.
                await asyncio.shield(response.close())
        except TimeoutError:
            raise UpstreamUnavailable("the model was silent for too long") from None
        except openai.OpenAIError as error:
            if isinstance(error, openai.APIStatusError) or _never_connected(error):
                progress.dispatched = False  # refused at the door, or nobody was there: nothing was made
            raise classify(error) from None
        except msgspec.DecodeError as error:
            raise UpstreamUnavailable(f"the model's stream cannot be read: {error}") from None
        except Exception as error:
            # The SDK leaves errors of its HTTP library (httpx or its successor) unwrapped while a raw body is read, and
            # that one aiohttp's when the model does not speak HTTP.
            if type(error).__module__.partition(".")[0].rstrip("2") in ("httpx", "httpcore", "aiohttp"):
                raise UpstreamUnavailable(f"the connection to the model broke: {type(error).__name__}") from None
            raise
        if not finish_reason:
            raise UpstreamUnavailable("the model's stream was cut before its end")
        if finish_reason == "content_filter":
            raise UpstreamRefused("the model's content filter stopped the answer")
        return Completion("".join(progress.parts), finish_reason, progress.usage(), served_by)

    async def _lines(self, response: Any) -> AsyncIterator[bytes]:
        """The `data:` payloads of a raw event stream. Raises TimeoutError after too long a silence."""
        rest = b""
        silence_s = self._settings.model_first_token_seconds
        pieces = response.iter_bytes().__aiter__()
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    piece = await pieces.__anext__()
            except StopAsyncIteration:
                return
            silence_s = self._settings.model_between_tokens_seconds
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise UpstreamUnavailable("the model sent an endless line")
            for line in lines:
                if line.startswith(b"data:") and (payload := line[5:].strip()):
                    yield payload


def _http_client(*, trust_env: bool) -> Any:
    """The SDK's client over aiohttp, whose parser costs half of what httpx's costs per token of a stream; an SDK that
    comes without it gets httpx."""
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S
    )
    try:
        return openai.DefaultAioHttpClient(trust_env=trust_env, limits=limits)
    except (ImportError, RuntimeError):
        return openai.DefaultAsyncHttpxClient(trust_env=trust_env, limits=limits)


def _arguments(model: str, call: ChatCall) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": model,
        "messages": call.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if call.max_tokens is not None:
        arguments["max_tokens"] = call.max_tokens
    if call.temperature is not None:
        arguments["temperature"] = call.temperature
    if call.schema is not None:
        arguments["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": call.schema, "strict": call.strict},
        }
    return arguments


def classify(error: openai.OpenAIError) -> JobError:
    """The SDK's error as ours: what may be tried again, and when."""
    if isinstance(error, openai.APIStatusError):
        text = f"the model answered {error.status_code}: {error.message}"
        if error.status_code == 429:
            if error.code == "insufficient_quota":
                return UpstreamRefused(text)
            return UpstreamRateLimited(text, retry_after_s=retry_after_s(error.response.headers))
        if error.status_code >= 500 or error.status_code in RETRYABLE_STATUS:
            return UpstreamUnavailable(text, retry_after_s=retry_after_s(error.response.headers))
        return UpstreamRefused(text)
    if isinstance(error, openai.APIConnectionError):
        cause = f": {error.__cause__}" if error.__cause__ else ""
        return UpstreamUnavailable(f"the model cannot be reached{cause}")
    return UpstreamUnavailable(f"{type(error).__name__}: {error}")


def _never_connected(error: openai.OpenAIError) -> bool:
    """Whether the request did not even reach the model. The SDK's error is caused by httpx's; over aiohttp that one is
    caused by aiohttp's, and then only this tells a connection that was not made from one that broke."""
    cause = error.__cause__
    if cause is not None and (below := cause.__cause__) is not None and type(below).__module__.startswith("aiohttp"):
        return any(kind.__name__ in _NOT_CONNECTED for kind in type(below).__mro__)
    return type(cause).__name__ in _NOT_CONNECTED


_NOT_CONNECTED: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"}  # httpx
    | {"ClientConnectorError", "ConnectionTimeoutError", "InvalidURL"}  # aiohttp
)


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
