"""A re-ranker behind HTTP. Cohere (v1, v2), Jina and vLLM take `{model, query, documents, top_n}` and answer
`{"results": [{"index", "relevance_score"}]}`; text-embeddings-inference takes `{query, texts, raw_scores, truncate}`
and answers `[{"index", "score"}]`. (docs.cohere.com/reference/rerank, api.jina.ai/redoc, docs.vllm.ai "Re-rank API",
huggingface.github.io/text-embeddings-inference)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from shared.errors import ErrandError
from shared.settings import Settings

if TYPE_CHECKING:
    from worker.context import JobContext

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class BadRerankError(ErrandError):
    """The re-ranker did not answer, or not with a relevance for each text; the message says why, for the client."""


class HttpReranker:
    """The service at `ERRAND_RERANK_URL`, over connections that are kept."""

    kind = "http"

    def __init__(self, settings: Settings) -> None:
        self.name = settings.rerank_model or "http"
        self.seconds = settings.rerank_seconds
        self._url = settings.rerank_url
        self._key = settings.rerank_api_key
        self._model = settings.rerank_model
        self._characters = settings.rerank_characters
        self._is_tei = settings.rerank_shape == "tei"
        self._is_sure = settings.rerank_shape != "auto"
        self._session: aiohttp.ClientSession | None = None

    async def rank(self, query: str, texts: Sequence[str], context: JobContext) -> list[float]:
        """See Reranker. Raises BadRerankError."""
        cut = [text[: self._characters] for text in texts]
        try:
            status, body = await self._post(query, cut)
            if not self._is_sure and status in (400, 422) and not self._is_tei:
                # Asked for the first time: TEI refuses a body without `texts`.
                self._is_tei = True
                again, body_again = await self._post(query, cut)
                if again == 200:
                    status, body = again, body_again
                else:
                    self._is_tei = False
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise BadRerankError(f"it could not be reached ({type(error).__name__})") from None
        if status != 200:
            raise BadRerankError(f"it answered with status {status}")
        self._is_sure = True
        return relevances(body, len(texts))

    async def _post(self, query: str, texts: list[str]) -> tuple[int, bytes]:
        body: dict[str, Any] = {"query": query, "documents": texts, "top_n": len(texts)}
        if self._is_tei:
            body = {"query": query, "texts": texts, "raw_scores": False, "truncate": True}
        elif self._model:
            body["model"] = self._model
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        async with self._connected().post(
            self._url, data=msgspec.json.encode(body), headers=headers, allow_redirects=False
        ) as answer:
            content = bytearray()
            async for piece in answer.content.iter_any():
                content += piece
                if len(content) > MAX_ANSWER_BYTES:
                    raise BadRerankError("its answer is endless")
            return answer.status, bytes(content)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            # A service on this machine is never asked through a proxy. The time is bounded by whoever asks.
            trust_env = urlsplit(self._url).hostname not in LOOPBACK
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar(), trust_env=trust_env
            )
        return self._session

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)


class _Result(msgspec.Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Results(msgspec.Struct):
    results: list[_Result]


_decode: Final = msgspec.json.Decoder(_Results | list[_Result]).decode


def relevances(body: bytes, count: int) -> list[float]:
    """A relevance from 0 to 1 for each text. Scores beyond that are raw ones of the model, and all are then mapped by
    the logistic function. Raises BadRerankError."""
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRerankError("its answer cannot be read") from None
    scores: list[float | None] = [None] * count
    for entry in found if isinstance(found, list) else found.results:
        score = entry.relevance_score if entry.relevance_score is not None else entry.score
        if score is None or not math.isfinite(score):
            raise BadRerankError("its answer has an entry without a score")
        if not 0 <= entry.index < count or scores[entry.index] is not None:
            raise BadRerankError("its answer does not number the texts as they were sent")
        scores[entry.index] = score
    whole = [score for score in scores if score is not None]
    if len(whole) != count:
        raise BadRerankError(f"its answer has {len(whole)} of {count} texts")
    if any(score < 0 or score > 1 for score in whole):
        return [1 / (1 + math.exp(-max(-60.0, min(60.0, score)))) for score in whole]
    return whole
