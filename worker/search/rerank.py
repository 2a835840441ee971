"""Re-ranking what a search has found, as an option: a second, closer look at its best candidates.

It never costs a search its result. A re-ranker that is slow, away, refuses, or answers nonsense leaves the order as it
was, with a warning. What passes through is not of its making: a lost lease, a cancellation, Redis out of reach, and the
limits of the job and its tenant. Those hold for this call of a model as for any other: the job waits (OverLimit) or
ends (BudgetExhausted), since an order that depends on what was left of a budget would be one nobody could rely on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from shared.clock import monotonic_s
from shared.errors import (
    BadOutput,
    BudgetExhausted,
    JobError,
    LeaseLostError,
    NeedsInput,
    OverLimit,
    UpstreamRateLimited,
    UpstreamUnavailable,
)
from shared.log import get_logger
from shared.metrics import RERANK_SECONDS
from shared.redis import OUTAGE
from shared.settings import Settings
from shared.tracing import Span
from worker.context import JobContext
from worker.search.rerank_http import HttpReranker
from worker.search.rerank_model import ModelReranker
from worker.search.rerank_scores import Outcome, RerankError, bad_answer

log = get_logger()

SECONDS: Final = {"http": 2.0, "model": 8.0}  # unless ERRAND_RERANK_SECONDS says otherwise
KEPT: Final = "The sources stand in the order in which the search found them."
PASSED_ON: Final = (LeaseLostError, OverLimit, NeedsInput, BudgetExhausted, *OUTAGE)


class Reranker(Protocol):
    """Rates texts against a query. `name` begins with its kind, `http` or `model`, and is kept in the search log."""

    @property
    def name(self) -> str:
        """Its kind, and after a colon its model where that is its own."""
        ...

    async def rank(self, query: str, texts: Sequence[str], context: JobContext) -> list[float]:
        """The relevance (0..1) of each text, in the order of the texts. Raises RerankError, JobError, and the rest of
        what `rerank` lets pass."""
        ...

    async def aclose(self) -> None:
        """Closes what it holds open; it may be used again."""
        ...


class Reranked(msgspec.Struct, frozen=True):
    """The relevance (0..1) of each text, or None: the order stays, and `warning` says why. `ms` is what it took."""

    scores: list[float] | None
    warning: str | None
    ms: float


def reranker_of(settings: Settings) -> Reranker | None:
    """The re-ranker of this installation; None when it has none."""
    if settings.rerank == "http":
        return HttpReranker(settings, seconds_of(settings))
    if settings.rerank == "model":
        return ModelReranker(settings)
    return None


def seconds_of(settings: Settings) -> float:
    """How long a search waits for its re-ranker."""
    return SECONDS.get(settings.rerank, 0.0) if settings.rerank_seconds is None else settings.rerank_seconds


async def rerank(reranker: Reranker, query: str, texts: Sequence[str], context: JobContext, seconds: float) -> Reranked:
    """Asks for at most `seconds`. Raises nothing that the re-ranker did or did not do; what it does raise says the
    head of this module."""
    if not texts:
        return Reranked([], None, 0.0)
    kind = "model" if reranker.name.partition(":")[0] == "model" else "http"
    task = asyncio.current_task()
    cancels = task.cancelling() if task is not None else 0
    started_s = monotonic_s()
    scores, failed = None, None
    defect: Exception | None = None
    try:
        with Span("search.rerank", attributes={"errand.search.reranker": kind, "errand.search.texts": len(texts)}):
            async with asyncio.timeout(seconds):
                scores = _checked(await reranker.rank(query, texts, context), len(texts))
    except PASSED_ON:
        raise
    except TimeoutError:
        failed = RerankError(Outcome.TIMEOUT, f"The re-ranker did not answer within {seconds:g} s.", "too slow")
    except RerankError as error:
        failed = error
    except JobError as error:
        failed = _of_model(error)
    except Exception as error:
        failed = RerankError(Outcome.ERROR, "The re-ranker could not be asked.", type(error).__name__)
        defect = error
    if task is not None and task.cancelling() > cancels:
        # The job was cancelled in the moment in which the re-ranker failed: the failure must not outlive it.
        raise asyncio.CancelledError
    seconds_taken = monotonic_s() - started_s
    outcome = Outcome.OK if failed is None else failed.outcome
    RERANK_SECONDS.labels(kind, outcome.value).observe(seconds_taken)
    ms = round(seconds_taken * 1000, 1)
    if failed is None:
        return Reranked(scores, None, ms)
    log.warning(
        "search.rerank_failed",
        job=context.job.job_id,
        kind=kind,
        outcome=outcome.value,
        reason=failed.reason,
        texts=len(texts),
        ms=ms,
        **({"exc_info": defect} if defect is not None else {}),
    )
    return Reranked(None, f"{failed.sentence} {KEPT}", ms)


def _checked(scores: list[float], count: int) -> list[float]:
    if len(scores) != count or not all(math.isfinite(score) and 0 <= score <= 1 for score in scores):
        raise bad_answer("not a relevance for each text")
    return scores


def _of_model(error: JobError) -> RerankError:
    """A failed call of the model. Its own words are not repeated: a provider's error may quote what it was sent."""
    if isinstance(error, BadOutput):
        return RerankError(Outcome.BAD_ANSWER, "The model's ranking makes no sense.", error.code)
    if isinstance(error, UpstreamRateLimited):
        sentence = "The model that re-ranks takes no more requests just now."
    elif isinstance(error, UpstreamUnavailable):
        sentence = "The model that re-ranks cannot be reached."
    else:
        sentence = "The model refused to re-rank."
    return RerankError(Outcome.ERROR, sentence, error.code)
