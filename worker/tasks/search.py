"""`search`: the best chunks for a query, and an answer from them with proven citations. All of it goes into the log."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from shared.clock import monotonic_s, rfc3339
from shared.documents import Extracted
from shared.errors import JobError, OverLimit
from shared.jobs import UsageView
from shared.metrics import SEARCH_SECONDS, SEARCH_SOURCES, SEARCH_TOP_SCORE
from shared.search import (
    MAX_CANDIDATES,
    Candidate,
    Quotes,
    Scores,
    SearchRecord,
    SearchRequest,
    SearchResult,
    Source,
    Timings,
)
from shared.specs import SearchInput
from worker.context import JobContext
from worker.search.answering import Answered, Cited, answer
from worker.search.rerank import rerank, seconds_of
from worker.search.searcher import Found, Retrieved, Searcher
from worker.search.texts import page_at

LOG_S: Final = 2.0  # that a cancelled search waits for its line in the log
RERANKED: Final = 50  # chunks that a re-ranker sees


class Ranked(msgspec.Struct):
    """A chunk in its final order; `text` is its document's, None where that is gone or was not needed."""

    found: Found
    score: float
    rerank: float | None = None
    extracted: Extracted | None = None
    reason: str | None = None
    rank: int = 0

    @property
    def scores(self) -> Scores:
        """What the score was made of."""
        hit = self.found.hit
        return Scores(
            vector=None if hit.vector is None else round(hit.vector, 4),
            keyword=None if hit.keyword is None else round(hit.keyword, 4),
            rerank=msgspec.UNSET if self.rerank is None else self.rerank,
        )


async def search(spec: SearchInput, context: JobContext) -> SearchResult:
    """Raises JobError: the embedding model's in mode `vector`, the chat model's while it answers."""
    run = _Run(spec, context)
    try:
        result = await run.carry_out()
        run.measure("found" if result.sources else "empty")
        return result
    except (JobError, OverLimit) as error:
        run.measure("failed")
        run.error = error.code if isinstance(error, JobError) else "rate_limited"
        await run.log()
        raise
    except asyncio.CancelledError:
        run.error = "cancelled"
        with suppress(Exception):  # it ends as it is; the log is the lesser matter
            async with asyncio.timeout(LOG_S):
                await asyncio.shield(run.log())
        raise


class _Run:
    """One search, as far as it has come."""

    def __init__(self, spec: SearchInput, context: JobContext) -> None:
        self.error: str | None = None
        self._id = spec.search_id
        self._min_score = spec.min_score
        self._request = msgspec.convert(spec.request, SearchRequest)
        self._context = context
        self._started_s = monotonic_s()
        self._retrieved = Retrieved([], [], [], 0.0, 0.0)
        self._ranked: list[Ranked] = []
        self._answered: Answered | None = None
        self._reranker: str | None = None
        self._rerank_ms = self._texts_ms = self._answer_ms = 0.0
        self._prompt: str | None = None

    async def carry_out(self) -> SearchResult:
        """The result, which is logged too."""
        request, context = self._request, self._context
        self._retrieved = await Searcher(context, request).retrieve(MAX_CANDIDATES)
        self._ranked = [Ranked(found, round(found.hit.score, 4)) for found in self._retrieved.found]
        await self._rerank()
        sources = await self._sources()
        warnings = self._retrieved.warnings
        shown = {"searchId": self._id, "query": request.q, "sources": sources, "minScore": self._min_score,
                 "mode": request.mode, "reranked": self._reranker is not None, "warnings": warnings}  # fmt: skip
        context.report.event("search.sources", **shown)
        if request.answer and sources:
            started_s = monotonic_s()
            self._prompt = context.job.prompt or None
            cited = [
                Cited(source, kept.extracted.pages if kept.extracted is not None else [])
                for source, kept in zip(sources, [one for one in self._ranked if one.rank], strict=True)
            ]
            try:
                self._answered = await answer(request.q, cited, context, context.report.text)
            finally:
                self._answer_ms = _ms_since(started_s)
        usage = await self.log()
        made = self._answered.answer if self._answered is not None else None
        took_ms = _ms_since(self._started_s)
        context.report.event("search.answer", searchId=self._id, answer=made, usage=usage, tookMs=took_ms)
        return SearchResult(
            search_id=self._id,
            query=request.q,
            answer=made,
            sources=sources,
            min_score=self._min_score,
            mode=request.mode,
            reranked=self._reranker is not None,
            took_ms=took_ms,
            warnings=warnings,
        )

    def measure(self, outcome: str) -> None:
        """Counts the search; what was found of it where it came to that."""
        SEARCH_SECONDS.labels(self._request.mode, outcome).observe(monotonic_s() - self._started_s)
        if outcome != "failed":
            SEARCH_SOURCES.observe(sum(one.rank > 0 for one in self._ranked))
            if self._ranked:
                SEARCH_TOP_SCORE.observe(max(one.score for one in self._ranked))

    async def _rerank(self) -> None:
        """A re-ranker's order in place of ours, where one is asked for and answers."""
        reranker = self._context.deps.reranker
        wanted = self._request.rerank if self._request.rerank is not None else reranker is not None
        if not wanted or not self._ranked:
            return
        if reranker is None:
            self._retrieved.warnings.append("This installation has no re-ranker (ERRAND_RERANK); the order is ours.")
            return
        first = self._ranked[:RERANKED]
        await self._load(first)
        first = [one for one in first if one.extracted is not None]
        if not first:
            return
        texts = [_text(one) for one in first]
        seconds = seconds_of(self._context.deps.settings)
        done = await rerank(reranker, self._request.q, texts, self._context, seconds)
        self._rerank_ms = done.ms
        if done.scores is None:
            self._retrieved.warnings.append(done.warning or "The re-ranker did not answer; the order is ours.")
            return
        self._reranker = reranker.name
        for one, score in zip(first, done.scores, strict=True):
            one.rerank = one.score = round(score, 4)
        gone = [one for one in self._ranked if one.rerank is None]
        self._ranked = sorted(first, key=lambda one: -one.score) + gone

    async def _load(self, wanted: Sequence[Ranked]) -> None:
        """The texts of these; those that are gone have none."""
        started_s = monotonic_s()
        for one in wanted:
            if one.extracted is None:
                one.extracted = await self._context.deps.texts.get(one.found.hit.held.entry.text_blob)
        self._texts_ms += _ms_since(started_s)

    async def _sources(self) -> list[Source]:
        """Those that are kept, best first; all others get a reason."""
        sources: list[Source] = []
        for one in self._ranked:
            if one.score < self._min_score:
                one.reason = "belowMinScore"
            elif len(sources) == self._request.top_k:
                one.reason = "beyondTopK"
            else:
                await self._load([one])
                if one.extracted is None:
                    one.reason = "gone"
                    continue
                one.rank = len(sources) + 1
                sources.append(_source(one))
        return sources

    async def log(self) -> UsageView:
        """Writes the search into the log; what it has used."""
        context = self._context
        usage = await context.deps.searches.usage(context.job.job_id)
        if self._request.log:
            await context.deps.searches.write(
                context.job.tenant, self._record(usage), context.deps.settings.search_log_seconds
            )
        return usage

    def _record(self, usage: UsageView) -> SearchRecord:
        request, job, retrieved = self._request, self._context.job, self._retrieved
        settings = [request.mode, request.top_k, self._min_score, self._reranker,
                    [(used.collection, used.version) for used in retrieved.indexes]]  # fmt: skip
        answered = self._answered
        return SearchRecord(
            search_id=self._id,
            job_id=job.job_id,
            at=rfc3339(job.claimed_ms),
            query=request.q,
            user=request.user,
            collections=request.collections,
            mode=request.mode,
            top_k=request.top_k,
            min_score=self._min_score,
            filter=request.filter,
            rerank=self._reranker,
            indexes=retrieved.indexes,
            settings_hash=hashlib.blake2b(msgspec.json.encode(settings), digest_size=6).hexdigest(),
            candidates=[_candidate(place, one) for place, one in enumerate(self._ranked, 1)],
            kept=sum(one.rank > 0 for one in self._ranked),
            best_score=max((one.score for one in self._ranked), default=None),
            answer=answered.answer if answered is not None else None,
            quotes=answered.quotes if answered is not None else Quotes(0, 0),
            prompt=self._prompt,
            model=job.model if answered is not None else None,
            usage=usage,
            timings=Timings(
                queue_ms=float(job.claimed_ms - job.queued_ms),
                embed_ms=round(retrieved.embed_ms, 2),
                retrieve_ms=round(retrieved.retrieve_ms, 2),
                texts_ms=round(self._texts_ms, 2),
                rerank_ms=round(self._rerank_ms, 2),
                answer_ms=round(self._answer_ms, 2),
                took_ms=_ms_since(self._started_s),
            ),
            error=self.error or msgspec.UNSET,
        )


def _ms_since(started_s: float) -> float:
    return round((monotonic_s() - started_s) * 1000, 2)


def _text(one: Ranked) -> str:
    assert one.extracted is not None
    return one.extracted.text[one.found.start : one.found.end]


def _source(one: Ranked) -> Source:
    found, extracted = one.found, one.extracted
    assert extracted is not None
    held = found.hit.held
    return Source(
        rank=one.rank,
        document_id=held.document_id,
        chunk_id=found.chunk_id,
        collection=found.collection,
        title=held.entry.title,
        text=_text(one),
        score=one.score,
        scores=one.scores,
        start=found.start,
        end=found.end,
        page=page_at(extracted, found.start),
        metadata=held.entry.metadata,
    )


def _candidate(place: int, one: Ranked) -> Candidate:
    found = one.found
    page = page_at(one.extracted, found.start) if one.extracted is not None else msgspec.UNSET
    return Candidate(
        rank=place,
        document_id=found.hit.held.document_id,
        chunk_id=found.chunk_id,
        title=found.hit.held.entry.title,
        score=one.score,
        scores=one.scores,
        start=found.start,
        end=found.end,
        page=page,
        kept=one.rank > 0,
        reason=one.reason or msgspec.UNSET,
    )
