"""Calls to any OpenAI-compatible model. Completions are always streamed: a cancel closes the connection at once.

The SDK makes the request; its answer is read raw and decoded with msgspec, which costs a fraction of the SDK's
typed stream. Retries are ours (`worker.model.discipline`), never the SDK's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
import openai

from shared.clock import monotonic_s
from shared.errors import ConfigurationError, JobError, UpstreamRefused, UpstreamUnavailable
from shared.scope import outgoing
from shared.semconv import model_answer, model_call, model_usage, server_of
from shared.settings import Settings
from shared.tracing import Span, is_on
from worker.model.calls import ChatCall, Completion, Embedded, EmbeddingCall, Progress
from worker.model.discipline import Discipline
from worker.model.failures import classify, never_connected, of_http
from worker.model.health import Health
from worker.model.measures import Measures
from worker.model.stream import Assembler
from worker.model.vectors import decode_vectors
from worker.turnstile import Turnstile

T = TypeVar("T")

MAX_LINE_BYTES: Final = 8 * 1024 * 1024  # of one event of the model's stream
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024  # of an answer with vectors
MAX_ANSWER_CHARACTERS: Final = 8_000_000  # of one answer in words: two million tokens
MAX_ERROR_BYTES: Final = 64 * 1024  # of what comes with an error; the rest is not read
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
# The SDK hands out its answer unparsed; a contract test watches that it still does. Its generated method for this
# endpoint would walk through all messages once more and cost half as much again.
RAW: Final = {"X-Stainless-Raw-Response": "stream"}
CALLS_PER_TURN: Final = 1  # that begin in one turn of the event loop: each is half a millisecond of the SDK
MAX_CONNECTIONS: Final = 10_000  # the slots of the worker bound them
KEEP_ALIVE_S: Final = 30.0  # a TLS handshake is most of the time to a first token; the SDK's 5 s forgets too soon


class Pacer(Protocol):
    """What holds a model's text back when nobody can take it."""

    @property
    def is_full(self) -> bool:
        """Whether to wait."""
        ...

    async def room(self) -> None:
        """Waits."""
        ...


class Model:
    """The client of one OpenAI-compatible API. `discipline` is what this worker knows of its models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.discipline = Discipline(settings)
        self.measures = Measures(settings)
        host = urlsplit(settings.openai_base_url).hostname or ""
        try:
            self._server = server_of(settings.openai_base_url)  # for spans
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
        self.health = Health(self._list)
        self._turnstile = Turnstile(CALLS_PER_TURN)
        # The SDK loads this part at its first use, which takes 100 ms: not in somebody's first answer.
        _ = self._client.chat.completions

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def complete(
        self,
        model: str,
        call: ChatCall,
        progress: Progress,
        on_text: Callable[[str], None] | None = None,
        pacer: Pacer | None = None,
    ) -> Completion:
        """One answer; `on_text` gets each piece as it comes ("" for what is no text), no faster than `pacer` allows.
        `progress` tells, also after an error, what was used.

        Raises UpstreamUnavailable, UpstreamRateLimited or UpstreamRefused.
        """
        return await self._measured("chat", model, progress, self._complete(model, call, progress, on_text, pacer))

    async def embed(self, model: str, call: EmbeddingCall, progress: Progress) -> Embedded:
        """Vectors for texts, in their order. `progress` as for `complete`.

        Raises UpstreamUnavailable, UpstreamRateLimited or UpstreamRefused; BadOutput when the answer does not fit.
        """
        return await self._measured("embeddings", model, progress, self._embed(model, call, progress))

    async def _measured(self, operation: str, model: str, progress: Progress, call: Awaitable[T]) -> T:
        """Runs a call in its span; the rest is `_guarded`."""
        if not is_on():
            return await self._guarded(operation, model, progress, call)
        name, attributes = model_call(operation, model, self._server)
        with Span(name, "client", attributes) as span:
            try:
                result = await self._guarded(operation, model, progress, call)
                if isinstance(result, Completion):
                    span.set(model_answer(result.model, result.finish_reason))
                return result
            finally:
                usage = progress.usage()
                made = usage.output_tokens if operation == "chat" else None
                span.set(model_usage(usage.input_tokens + usage.embedding_tokens, made))

    async def _guarded(self, operation: str, model: str, progress: Progress, call: Awaitable[T]) -> T:
        """Runs a call with its metrics, its total time-out, and the model's circuit breaker."""
        breaker = self.discipline.of(model).breaker
        try:
            is_probe = breaker.enter()
        except BaseException:
            call.close()  # type: ignore[attr-defined]
            raise
        started, error_type = monotonic_s(), "internal"
        try:
            async with asyncio.timeout(self._settings.model_total_seconds):
                result = await self._translated(call, progress)
            error_type = ""
            self.health.answered()
            breaker.succeeded()
            return result
        except asyncio.CancelledError:
            error_type = "cancelled"
            breaker.gave_up(probe=is_probe)
            raise
        except TimeoutError:
            error_type = UpstreamUnavailable.code
            breaker.failed(probe=is_probe)
            late = UpstreamUnavailable(f"the model's answer took longer than {self._settings.model_total_seconds:g} s")
            self.health.failed(late)
            raise late from None
        except JobError as error:
            error_type = error.code
            if isinstance(error, UpstreamUnavailable) and operation == "embeddings" and error.status == 500:
                breaker.gave_up(probe=is_probe)  # perhaps for one of its texts: that tells nothing of the model
                raise
            self.health.failed(error)
            if isinstance(error, UpstreamUnavailable):
                breaker.failed(probe=is_probe)
            else:
                breaker.succeeded()
            raise
        except BaseException:
            breaker.gave_up(probe=is_probe)
            raise
        finally:
            self.measures.ended(operation, model, progress, started, error_type)

    async def _list(self) -> None:
        """Asks for the list of models, which nobody bills, and reads no more than its head. Raises UpstreamUnavailable,
        UpstreamRateLimited or UpstreamRefused."""
        try:
            response: Any = await self._client.get(
                "/models",
                cast_to=object,
                options={"headers": RAW},
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
        except openai.OpenAIError as error:
            raise classify(error) from None
        except ValueError as error:  # for example a user and password in the URL, which the HTTP library refuses
            raise UpstreamUnavailable(f"the address of the model cannot be used: {error}") from None
        except Exception as error:
            if of_http(error):
                raise UpstreamUnavailable(f"the connection to the model broke: {type(error).__name__}") from None
            raise
        await asyncio.shield(response.close())

    async def _translated(self, call: Awaitable[T], progress: Progress) -> T:
        """A call, its errors as ours."""
        try:
            return await call
        except _SilentError:
            raise UpstreamUnavailable("the model was silent for too long") from None
        except openai.OpenAIError as error:
            if isinstance(error, openai.APIStatusError) or never_connected(error):
                progress.dispatched = False  # refused at the door, or nobody was there: nothing was made
            raise classify(error) from None
        except msgspec.DecodeError as error:
            raise UpstreamUnavailable(f"the model's answer cannot be read: {error}") from None
        except Exception as error:
            if of_http(error):
                raise UpstreamUnavailable(f"the connection to the model broke: {type(error).__name__}") from None
            raise

    async def _complete(
        self,
        model: str,
        call: ChatCall,
        progress: Progress,
        on_text: Callable[[str], None] | None,
        pacer: Pacer | None,
    ) -> Completion:
        answer = Assembler(model, progress)
        response = await self._post("/chat/completions", _chat_body(model, call), progress)
        try:
            async for line in self._lines(response):
                if progress.first_s is None:
                    progress.first_s = monotonic_s()
                if line == b"[DONE]":
                    answer.finish_reason = answer.finish_reason or "stop"
                    break
                # Also for thoughts and calls of tools, with no text: whoever counts tokens looks at each chunk.
                for text in answer.take(line) or ("",):
                    if on_text is not None:
                        on_text(text)
                if progress.characters > MAX_ANSWER_CHARACTERS:
                    raise UpstreamUnavailable("the model sent an endless answer")
                if pacer is not None and pacer.is_full:
                    await pacer.room()
        finally:
            # Shielded: a cancel must close the connection, not only forget it.
            await asyncio.shield(response.close())
        if not answer.finish_reason:
            raise UpstreamUnavailable("the model's stream was cut before its end")
        if answer.finish_reason == "content_filter":
            raise UpstreamRefused("the model's content filter stopped the answer")
        progress.is_over = True
        text = "".join(progress.parts)
        return Completion(text, answer.finish_reason, progress.usage(), answer.model, answer.tool_calls())

    async def _embed(self, model: str, call: EmbeddingCall, progress: Progress) -> Embedded:
        response = await self._post("/embeddings", _embedding_body(model, call), progress)
        try:
            pieces = bytearray()
            async for piece in self._pieces(response):
                pieces += piece
                if len(pieces) > MAX_ANSWER_BYTES:
                    raise UpstreamUnavailable("the model sent an endless answer")
        finally:
            await asyncio.shield(response.close())
        return decode_vectors(bytes(pieces), call, progress)

    async def _post(self, path: str, body: dict[str, Any], progress: Progress) -> Any:
        """The head of the answer has come; its body is still to be read."""
        progress.sending()
        await self._turnstile.enter()
        # From here on the model may be working on it, so it is paid for, whatever comes.
        progress.dispatched = True
        try:
            async with asyncio.timeout(self._settings.model_first_token_seconds + self._settings.model_connect_seconds):
                return await self._client.post(
                    path,
                    body=body,
                    cast_to=object,
                    options={"headers": {**RAW, **outgoing()}},
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
        except TimeoutError:
            raise _SilentError from None

    async def _pieces(self, response: Any) -> AsyncIterator[bytes]:
        """An answer's body as it comes. Raises _SilentError after too long a silence."""
        silence_s = self._settings.model_first_token_seconds
        pieces = response.iter_bytes().__aiter__()
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    piece = await pieces.__anext__()
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise _SilentError from None
            silence_s = self._settings.model_between_tokens_seconds
            yield piece

    async def _lines(self, response: Any) -> AsyncIterator[bytes]:
        """The `data:` payloads of a raw event stream."""
        rest = b""
        async for piece in self._pieces(response):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise UpstreamUnavailable("the model sent an endless line")
            for line in lines:
                if line.startswith(b"data:") and (payload := line[5:].strip()):
                    yield payload


class _SilentError(Exception):
    """Nothing came for too long. Not a TimeoutError: that one is the call's total time-out."""


def _http_client(*, trust_env: bool) -> Any:
    """The SDK's client over aiohttp, whose parser costs half of what httpx's costs per token of a stream; an SDK that
    comes without it gets httpx."""
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S
    )
    hooks = {"response": [_bound_error]}
    try:
        return openai.DefaultAioHttpClient(trust_env=trust_env, limits=limits, event_hooks=hooks)
    except (ImportError, RuntimeError):
        return openai.DefaultAsyncHttpxClient(trust_env=trust_env, limits=limits, event_hooks=hooks)


async def _bound_error(response: Any) -> None:
    """Reads the beginning of what comes with an error: the SDK would read all of it, however much that is. That it then
    takes what was read is how its HTTP library works inside; a contract test watches it."""
    if response.status_code < 400:
        return
    content = bytearray()
    try:
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MAX_ERROR_BYTES:
                break
    finally:
        response._content = bytes(content[:MAX_ERROR_BYTES])
        await response.aclose()


def _chat_body(model: str, call: ChatCall) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": call.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if call.max_tokens is not None:
        body["max_tokens"] = call.max_tokens
    if call.temperature is not None:
        body["temperature"] = call.temperature
    if call.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": call.schema, "strict": call.strict},
        }
    if call.tools:
        body["tools"] = call.tools
        if call.no_tools:
            body["tool_choice"] = "none"
    return body


def _embedding_body(model: str, call: EmbeddingCall) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "input": call.texts, "encoding_format": call.encoding}
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    return body
