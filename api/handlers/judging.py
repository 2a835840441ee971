"""Before and after a job: what it would use, and what people think of its result."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta

from api.admission import class_ms, model_of
from api.handlers.jobs import check
from api.keys import DOCUMENTS, JOBS, LIMITS, PRICES, PRINCIPAL, SETTINGS
from api.pinning import Chosen
from api.wire import answer, idempotency, query, read_json
from shared.clock import rfc3339
from shared.documents import DocumentStatus
from shared.estimates import Tokens, of_agent, of_analysis, of_chat, of_texts, of_upload
from shared.jobs import Eta, FeedbackView, Output, feedback_of
from shared.limit_rows import LimitHit, hits
from shared.metrics import FEEDBACK
from shared.policy import NANO
from shared.prices import Price
from shared.specs import AgentJob, AnalysisJob, ChatJob, EmbeddingJob, PublicJob, Wire, type_of
from shared.stores.feedback import foresee, give_feedback

CHARACTERS_PER_BYTE = 0.8  # of a file that was not read yet: a guess
GUESSED_CHARACTERS = 20_000  # of a page that is still to be fetched: a guess too


class NewFeedback(Wire, frozen=True):
    """Body of a feedback: `score` from -1 (bad) to 1 (good)."""

    score: Annotated[float, Meta(ge=-1, le=1)]
    comment: Annotated[str, Meta(max_length=4_000)] | None = None


class FeedbackGiven(Output, frozen=True):
    """What was noted, and all feedback of the job."""

    job_id: str
    score: float
    comment: str | None
    created_at: str
    feedback: FeedbackView


class TokenRange(Output, frozen=True):
    """Tokens in all: input, output and embedding."""

    low: int
    expected: int
    high: int


class CostRange(Output, frozen=True):
    """What these tokens cost in US dollars."""

    low: float
    expected: float
    high: float


class Estimate(Output, frozen=True):
    """What a job would probably use, which limits it would meet, and when it would start. `costUsd` is null where no
    price is known, `eta` where nothing is known of the queue."""

    tokens: TokenRange
    cost_usd: CostRange | None
    limits: list[LimitHit]
    eta: Eta | None


async def feedback(request: web.Request) -> web.Response:
    """POST /api/jobs/{id}/feedback."""
    query(request, ())
    given, body = await read_json(request, NewFeedback)
    job_id = request.match_info["id"]
    principal = request[PRINCIPAL]
    digest, body_hash = idempotency(request, body)
    noted = await give_feedback(
        request.app[JOBS],
        principal.tenant,
        job_id,
        score=given.score,
        comment=given.comment,
        key=principal.key_id,
        idem_digest=digest,
        idem_body=body_hash,
    )
    if not noted.replayed:
        FEEDBACK.labels("good" if given.score > 0 else "bad" if given.score < 0 else "neutral").inc()
    return answer(
        FeedbackGiven(
            job_id=job_id,
            score=given.score,
            comment=given.comment,
            created_at=rfc3339(noted.now_ms),
            feedback=feedback_of(noted.count, noted.total_milli),
        ),
        status=201,
        headers={"Idempotent-Replayed": "true"} if noted.replayed else {},
    )


async def estimate(request: web.Request) -> web.Response:
    """POST /api/jobs/estimate."""
    query(request, ())
    job, _ = await read_json(request, PublicJob)
    chosen = await check(request, job)
    settings, principal = request.app[SETTINGS], request[PRINCIPAL]
    whole = (await _tokens(request, job, chosen)).more(chosen.characters if isinstance(job, ChatJob) else 0)
    tokens = whole.within(job.token_budget)
    cost = _cost(tokens, request.app[PRICES].price(model_of(job, settings, chosen.model)))
    outlook = await foresee(request.app[JOBS], principal.tenant, job.LANE, class_ms(job, settings))
    state = await request.app[LIMITS].store.state(
        principal.tenant,
        key=principal.key_id,
        user=job.user,
        prompt=chosen.main.spelled if chosen.main is not None else None,
    )
    limits = hits(state, tokens.expected, cost.expected if cost is not None else None)
    if job.token_budget is not None and whole.expected > job.token_budget:
        stop = LimitHit(scope="job", limit="tokenBudget", unit="tokens", value=job.token_budget, effect="stops")
        limits.insert(0, stop)
    return answer(
        Estimate(
            tokens=TokenRange(low=tokens.low, expected=tokens.expected, high=tokens.high),
            cost_usd=cost,
            limits=limits,
            eta=outlook.view.eta,
        )
    )


def _cost(tokens: Tokens, price: Price | None) -> CostRange | None:
    """What the tokens cost; None where no price is known."""
    if price is None:
        return None
    low, expected, high = (price.cost_nano(read, made, 0) / NANO for read, made in tokens.split)
    return CostRange(low=low, expected=expected, high=high)


async def _tokens(request: web.Request, job: Any, chosen: Chosen) -> Tokens:
    """The tokens of a checked submission."""
    match job:
        case ChatJob():
            return of_chat(job, chosen.most_tokens)
        case AgentJob():
            return of_agent(job, request.app[SETTINGS].context_tokens)
        case AnalysisJob(input=wanted):
            characters = len(wanted.document.text or "") if wanted.document.url is None else GUESSED_CHARACTERS
            if wanted.document.document_id is not None:
                row = await request.app[DOCUMENTS].record(request[PRINCIPAL].tenant, wanted.document.document_id)
                if row["status"] == DocumentStatus.READY:
                    characters = int(row["characters"])
                else:
                    characters = round(int(row["size_bytes"]) * CHARACTERS_PER_BYTE)
            return of_analysis(characters, wanted.tasks, request.app[SETTINGS].chunk_characters)
        case EmbeddingJob(input=wanted) if wanted.document_id is not None:
            row = await request.app[DOCUMENTS].record(request[PRINCIPAL].tenant, wanted.document_id)
            return of_upload(int(row["size_bytes"]))
        case EmbeddingJob(input=wanted):
            return of_texts(wanted)
    raise TypeError(f"no estimate for {type_of(job)}")
