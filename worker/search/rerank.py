"""Re-ranking: a second look at the best chunks, by an HTTP service or by the chat model. It may be slow, broken or
absent: then the order stays as it was, and the search says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from shared.clock import monotonic_s
from shared.errors import BudgetExhausted, ConfigurationError, JobError
from shared.log import get_logger
from shared.metrics import RERANKS
from shared.prompt_names import RERANK
from shared.settings import Settings
from worker.context import JobContext
from worker.fencing import as_data, fenced
from worker.model.calls import ChatCall
from worker.model.objects import object_schema, parse_object
from worker.search.rerank_http import BadRerankError, HttpReranker

log = get_logger()

TOP: Final = 10  # the model's best grade
SEEN_CHARACTERS: Final = 1_500  # of a passage that the chat model sees


class Reranker(Protocol):
    """Gives each text a relevance from 0 to 1. `seconds` bounds a call; `kind` is http or model."""

    name: str
    kind: str
    seconds: float

    async def rank(self, query: str, texts: Sequence[str], context: JobContext) -> list[float]:
        """A relevance for each text, in their order. Raises whatever went wrong."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


class Reranked(msgspec.Struct, frozen=True):
    """What came of it: relevances, or why the order stays as it was; milliseconds."""

    scores: list[float] | None
    warning: str | None
    ms: float


class ModelReranker:
    """The chat model, which sees all passages in one call and names those that help (listwise)."""

    kind = "model"

    def __init__(self, seconds: float) -> None:
        self.name = "model"
        self.seconds = seconds

    async def rank(self, query: str, texts: Sequence[str], context: JobContext) -> list[float]:
        """See Reranker. A passage that the answer leaves out has 0. Raises JobError, BadRerankError."""
        said = await context.wording.of(RERANK)
        passages = "\n\n".join(f"[{number}] {as_data(text[:SEEN_CHARACTERS])}" for number, text in enumerate(texts, 1))
        entry = object_schema({
            "passage": {"type": "integer", "description": "the number of a passage"},
            "relevance": {"type": "integer", "description": "1 to 10"},
        })  # fmt: skip
        call = ChatCall(
            messages=[
                *said.messages,
                {"role": "user", "content": f"{fenced('passages', passages)}\n\nQuestion: {query}"},
            ],
            schema=object_schema({"ranking": {"type": "array", "items": entry}}),
            strict=True,
            temperature=said.temperature(0.0),
        )
        finished = await context.complete("rerank", call, accept=parse_object)
        return grades(parse_object(finished.text), len(texts))

    async def close(self) -> None:
        """See Reranker."""


def grades(answer: Any, count: int) -> list[float]:
    """Relevances from the model's JSON: what names no passage is passed over, the first grade of each counts. Raises
    BadRerankError when there is nothing to be used."""
    ranking = answer.get("ranking") if isinstance(answer, dict) else None
    if not isinstance(ranking, list):
        raise BadRerankError("the answer has no ranking")
    found: dict[int, float] = {}
    for entry in ranking:
        number, grade = (entry.get("passage"), entry.get("relevance")) if isinstance(entry, dict) else (None, None)
        if isinstance(number, int) and isinstance(grade, int | float) and 1 <= number <= count:
            found.setdefault(number, min(max(float(grade) / TOP, 0.0), 1.0))
    if ranking and not found:
        raise BadRerankError("the answer names none of the passages")
    return [found.get(number, 0.0) for number in range(1, count + 1)]


def reranker_of(settings: Settings) -> Reranker | None:
    """The re-ranker that the settings name; None for none. Raises ConfigurationError."""
    if settings.rerank == "none":
        return None
    if settings.rerank == "model":
        return ModelReranker(settings.rerank_model_seconds)
    if not settings.rerank_url:
        raise ConfigurationError("ERRAND_RERANK=http needs ERRAND_RERANK_URL: the whole address of the endpoint")
    return HttpReranker(settings)


async def rerank(reranker: Reranker, query: str, texts: Sequence[str], context: JobContext) -> Reranked:
    """Relevances within the re-ranker's time, or a warning. Raises LeaseLostError, BudgetExhausted, OverLimit and a
    member of OUTAGE, which are no faults of the re-ranker."""
    started_s = monotonic_s()
    outcome, warning = "ok", None
    scores: list[float] | None = None
    try:
        async with asyncio.timeout(reranker.seconds) as bound:
            scores = await reranker.rank(query, texts, context)
    except TimeoutError:
        if not bound.expired():
            raise
        outcome, warning = "timeout", f"took longer than {reranker.seconds:g} s"
    except BudgetExhausted:
        raise
    except BadRerankError as error:
        outcome, warning = "bad_answer", str(error)
    except JobError as error:
        outcome, warning = ("bad_answer" if error.code == "bad_output" else "error"), error.message
    ms = (monotonic_s() - started_s) * 1000
    RERANKS.labels(reranker.kind, outcome).inc()
    if warning is None:
        return Reranked(scores, None, ms)
    log.warning("search.not_reranked", kind=reranker.kind, outcome=outcome, job=context.job.job_id, ms=round(ms))
    return Reranked(None, f"The re-ranker failed, so the order is ours: {warning}", ms)
