"""A re-ranker behind HTTP: a cross-encoder of a provider, or of a server of one's own.

The forms, as their makers document them:

- Cohere v1 and v2 (docs.cohere.com/reference/rerank), Jina (api.jina.ai/redoc) and vLLM (vllm/entrypoints/pooling/
  scoring/protocol.py): `{model, query, documents, top_n}` → `{"results": [{"index", "relevance_score"}]}`. Jina sends
  the documents back unless `return_documents` is false; vLLM always does, and refuses a text that is longer than its
  model reads unless `truncate_prompt_tokens` is -1.
- Text Embeddings Inference (router/src/http/types.rs): `{query, texts, raw_scores, truncate}` → `[{"index", "score"}]`,
  at most 32 texts at a time (`--max-client-batch-size`): more is refused with 413, or 422.

The URL is the operator's alone: no redirect is followed, and nothing of an answer is shown or logged but its status.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from shared.clock import monotonic_s
from shared.errors import CircuitOpen
from shared.scope import outgoing
from shared.settings import Settings
from worker.context import JobContext
from worker.model.breaker import Breaker
from worker.search.rerank_scores import Outcome, RerankError, bad_answer, by_index, relevance

Shape = Literal["cohere", "jina", "tei", "vllm"]

TEI_TEXTS: Final = 32  # of one request
KEEP_ALIVE_S: Final = 30.0
ANSWER_BYTES: Final = 64 * 1024  # of an answer; and all that was sent may come back, each character as `\uXXXX`
ESCAPED: Final = 6
MALFORMED: Final = frozenset({400, 422})  # how servers refuse a request of another form
USER_AGENT: Final = "Errand/0.1 (+rerank)"


class _Scored(msgspec.Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Results(msgspec.Struct):
    results: list[_Scored]


_decode = msgspec.json.Decoder(list[_Scored] | _Results).decode


class HttpReranker:
    """The re-ranker at `ERRAND_RERANK_URL`. Its connections are kept between searches, within one event loop."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        """`seconds` is what an answer may take; a call that is given up after half of it counts as a failure."""
        self.name = f"http:{settings.rerank_model}" if settings.rerank_model else "http"
        self._url = settings.rerank_url
        self._model = settings.rerank_model
        self._most = settings.rerank_characters
        self._seconds = seconds
        self._shapes = shapes_of(settings)  # that are yet to be tried; one, once it is known
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        if settings.rerank_api_key:
            self._headers["Authorization"] = f"Bearer {settings.rerank_api_key}"
        self._proxy, self._proxy_headers = proxy_of(settings.rerank_url)
        if self._proxy_headers and settings.rerank_url.startswith("http:"):
            self._headers |= self._proxy_headers  # without TLS there is no CONNECT that could carry them
        self._breaker = Breaker(
            "re-ranker", failures=settings.model_breaker_failures, open_s=settings.model_breaker_seconds
        )
        self._open: aiohttp.ClientSession | None = None

    async def rank(self, query: str, texts: Sequence[str], context: JobContext) -> list[float]:
        """The relevance (0..1) of each text. Raises RerankError."""
        try:
            probe = self._breaker.enter()
        except CircuitOpen:
            sentence = "The re-ranker failed too often in a row and is left alone for a while."
            raise RerankError(Outcome.ERROR, sentence, "left alone") from None
        started_s = monotonic_s()
        try:
            scores = await self._rank(query, [text[: self._most] for text in texts])
        except RerankError as error:
            if error.is_down:
                self._breaker.failed(probe=probe)
            else:
                self._breaker.succeeded()  # it answered, if not as it should
            raise
        except asyncio.CancelledError:
            # Whether its time was over or the job was cancelled cannot be told here; how long it was silent can.
            if monotonic_s() - started_s >= self._seconds / 2:
                self._breaker.failed(probe=probe)
            else:
                self._breaker.gave_up(probe=probe)
            raise
        except BaseException:
            self._breaker.gave_up(probe=probe)
            raise
        self._breaker.succeeded()
        return scores

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._open is not None:
            await self._open.close()
            self._open = None

    async def _rank(self, query: str, texts: list[str]) -> list[float]:
        """In the form that the server takes; where that is not known, the likeliest first."""
        refused: RerankError | None = None
        for shape in self._shapes:
            try:
                scores = await self._shaped(shape, query, texts)
            except _MalformedError as error:
                refused = refused or error
                continue
            self._shapes = (shape,)
            return relevance(scores)
        assert refused is not None
        raise refused

    async def _shaped(self, shape: Shape, query: str, texts: list[str]) -> list[float]:
        step = TEI_TEXTS if shape == "tei" else len(texts)
        parts = [texts[start : start + step] for start in range(0, len(texts), step)]
        if len(parts) == 1:
            return await self._ask(shape, query, texts)
        asked = [asyncio.create_task(self._ask(shape, query, part), name="rerank") for part in parts]
        try:
            found = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
        return [score for part in found for score in part]

    async def _ask(self, shape: Shape, query: str, texts: list[str]) -> list[float]:
        """One request: the scores as they came, in the order of the texts."""
        body = msgspec.json.encode(self._body(shape, query, texts))
        try:
            try:
                content = await self._post(body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                content = await self._post(body)  # a connection that was kept for too long: once more, on a new one
        except aiohttp.ClientConnectorError as error:
            raise RerankError(
                Outcome.ERROR, "The re-ranker cannot be reached.", type(error).__name__, is_down=True
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            sentence = "The connection to the re-ranker broke."
            raise RerankError(Outcome.ERROR, sentence, type(error).__name__, is_down=True) from None
        try:
            answer = _decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad_answer("not the JSON that was asked for") from None
        scored = answer if isinstance(answer, list) else answer.results
        return by_index(((one.index, _score(one)) for one in scored), len(texts))

    def _body(self, shape: Shape, query: str, texts: list[str]) -> dict[str, Any]:
        if shape == "tei":
            return {"query": query, "texts": texts, "raw_scores": False, "truncate": True}
        body: dict[str, Any] = {"query": query, "documents": texts, "top_n": len(texts)}
        if self._model:
            body["model"] = self._model
        if shape == "jina":
            body["return_documents"] = False
        elif shape == "vllm":
            body["truncate_prompt_tokens"] = -1
        return body

    async def _post(self, body: bytes) -> bytes:
        """The body of a good answer. Raises RerankError for another status, and what aiohttp raises."""
        async with self._session().post(
            self._url,
            data=body,
            headers={**self._headers, **outgoing()},
            allow_redirects=False,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
        ) as response:
            if response.status != 200:
                raise _refusal(response.status)
            most = ANSWER_BYTES + ESCAPED * len(body)
            content = bytearray()
            async for piece in response.content.iter_any():
                content += piece
                if len(content) > most:
                    raise bad_answer("larger than an answer can be")
            return bytes(content)

    def _session(self) -> aiohttp.ClientSession:
        if self._open is None or self._open.closed:
            self._open = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # nothing packed was asked for
                trust_env=False,  # it would read ~/.netrc, too, and refuse our key beside what stands there
                timeout=aiohttp.ClientTimeout(total=None),  # whoever asks has one
            )
        return self._open


class _MalformedError(RerankError):
    """The server takes requests of another form, or found something else wrong with this one."""


def _refusal(status: int) -> RerankError:
    reason = f"status {status}"
    if status in MALFORMED:
        return _MalformedError(Outcome.ERROR, f"The re-ranker refused the request ({status}).", reason)
    if status == 429:
        return RerankError(Outcome.ERROR, "The re-ranker takes no more requests just now (429).", reason)
    if status >= 500:
        return RerankError(Outcome.ERROR, f"The re-ranker failed ({status}).", reason, is_down=True)
    return RerankError(Outcome.ERROR, f"The re-ranker refused the request ({status}).", reason)


def _score(one: _Scored) -> float:
    score = one.score if one.relevance_score is None else one.relevance_score
    if score is None:
        raise bad_answer("a score missing")
    return score


def shapes_of(settings: Settings) -> tuple[Shape, ...]:
    """The forms to try, the likeliest first: the one that is set, or what the URL tells. A server that is not known by
    its name may be any; one that needs no model's name is Text Embeddings Inference, whose path has no version."""
    if settings.rerank_shape != "auto":
        return (settings.rerank_shape,)
    where = urlsplit(settings.rerank_url)
    host = f".{where.hostname or ''}"
    if host.endswith((".cohere.com", ".cohere.ai")):
        return ("cohere",)
    if host.endswith(".jina.ai"):
        return ("jina",)
    if not settings.rerank_model and where.path.strip("/") == "rerank":
        return ("tei", "vllm", "cohere")
    return ("vllm", "cohere", "tei")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def proxy_of(url: str) -> tuple[str | None, dict[str, str] | None]:
    """The proxy that the environment names for a URL, without its password, and the header that holds that."""
    where = urlsplit(url)
    host = where.hostname or ""
    proxy = getproxies().get(where.scheme)
    if proxy is None or is_loopback(host) or proxy_bypass(host):
        return None, None
    by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    plain = urlunsplit((by.scheme, by.netloc.rpartition("@")[2], by.path, "", ""))
    if by.username is None:
        return plain, None
    pair = f"{unquote(by.username)}:{unquote(by.password or '')}"
    return plain, {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
