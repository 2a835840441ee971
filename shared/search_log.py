"""The log of searches as it is stored: what filters and figures read of a search, and what an erasure leaves of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from shared.jobs import Output
from shared.search import (
    MAX_CANDIDATES,
    Candidate,
    ChunkFeedback,
    Feedback,
    LoggedSearch,
    Mode,
    SearchRecord,
    Timings,
)

Judged = Literal["good", "bad", "any"]
JUDGED: Final = ("good", "bad", "any")


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What filters and figures need of a search; a record is some twenty times as long. `ranked` are the chunks that
    were kept, best first; `collections` are those that were asked, and those that it looked through."""

    query: str
    user: str | None
    mode: Mode
    collections: list[str]
    kept: int
    best_score: float | None
    failed: bool
    ranked: list[str]
    timings: Timings


class Line(msgspec.Struct, frozen=True):
    """A search without its candidates and texts, and what was said of it."""

    search_id: str
    head: Head
    feedback: Feedback


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of the log; None filters nothing. `max_score`: the best score is at most that, or there is none."""

    user: str | None = None
    collection: str | None = None
    mode: Mode | None = None
    no_result: bool | None = None
    max_score: float | None = None
    feedback: Judged | None = None
    q: str | None = None


class FeedbackGiven(Output, frozen=True):
    """What was noted, and all that was said of the search."""

    search_id: str
    created_at: str
    feedback: Feedback


class SearchErased(Output, frozen=True):
    """The receipt of an erasure: the search, and the job behind it, whose texts are gone too."""

    search_id: str
    job_id: str
    erased_at: str


class SearchesErased(Output, frozen=True):
    """How many searches were erased."""

    erased: int


def head_of(record: SearchRecord) -> Head:
    """The head of a record. An erased chunk keeps its place."""
    asked = [*(record.collections or ()), *(index.collection for index in record.indexes)]
    kept = sorted((one for one in record.candidates if one.kept), key=lambda one: one.rank)
    return Head(
        query=record.query,
        user=record.user,
        mode=record.mode,
        collections=list(dict.fromkeys(asked)),
        kept=record.kept,
        best_score=record.best_score,
        failed=record.error is not msgspec.UNSET,
        ranked=[one.chunk_id or f"erased:{one.rank}" for one in kept],
        timings=record.timings,
    )


def bounded(record: SearchRecord) -> SearchRecord:
    """The record with no more candidates than the log keeps."""
    if len(record.candidates) <= MAX_CANDIDATES:
        return record
    return msgspec.structs.replace(record, candidates=record.candidates[:MAX_CANDIDATES])


def documents_of(record: SearchRecord) -> list[str]:
    """The documents that a record refers to, each once."""
    cited = record.answer.citations if record.answer is not None else []
    found = [one.document_id for one in record.candidates if one.document_id is not None]
    return list(dict.fromkeys([*found, *(citation.document_id for citation in cited)]))


def chunks_of(record: SearchRecord, document_id: str) -> list[str]:
    """The chunks of a document that a record refers to."""
    return [one.chunk_id for one in record.candidates if one.document_id == document_id and one.chunk_id is not None]


def without(record: SearchRecord, documents: Collection[str]) -> SearchRecord:
    """The record without what concerns these documents. When one of them was among the sources, the answer goes as
    well: it may quote it."""
    touched = any(one.kept and one.document_id in documents for one in record.candidates) or any(
        citation.document_id in documents for citation in (record.answer.citations if record.answer else ())
    )
    return msgspec.structs.replace(
        record,
        candidates=[_blank(one) if one.document_id in documents else one for one in record.candidates],
        answer=None if touched else record.answer,
    )


def _blank(candidate: Candidate) -> Candidate:
    return msgspec.structs.replace(
        candidate, document_id=None, chunk_id=None, title=None, start=0, end=0, page=msgspec.UNSET, erased=True
    )


def feedback_of(helpful: int, not_helpful: int, votes: Mapping[str, Mapping[str, int]]) -> Feedback:
    """Feedback from its stored counters: `votes` maps a chunk to `r` and `n`, relevant and not."""
    chunks = [
        ChunkFeedback(chunk_id=chunk, relevant=of["r"], not_relevant=of["n"]) for chunk, of in sorted(votes.items())
    ]
    return Feedback(helpful=helpful, not_helpful=not_helpful, chunks=chunks)


def logged(record: SearchRecord, feedback: Feedback) -> LoggedSearch:
    """A record with its feedback."""
    members: dict[str, Any] = msgspec.structs.asdict(record)
    return LoggedSearch(**members, feedback=feedback)


def fits(line: Line, wanted: Wanted) -> bool:
    """Whether a search passes the filters. `bad`: it was called not helpful, or a chunk of it not relevant."""
    head, best = line.head, line.head.best_score
    return (
        (wanted.user is None or head.user == wanted.user)
        and (wanted.collection is None or wanted.collection in head.collections)
        and (wanted.mode is None or head.mode is wanted.mode)
        and (wanted.no_result is None or (head.kept == 0) is wanted.no_result)
        and (wanted.max_score is None or best is None or best <= wanted.max_score)
        and (wanted.q is None or wanted.q.casefold() in head.query.casefold())
        and (wanted.feedback is None or wanted.feedback in said_of(line.feedback))
    )


def said_of(feedback: Feedback) -> Iterable[Judged]:
    """Which filters on feedback it passes."""
    if feedback.helpful or any(chunk.relevant for chunk in feedback.chunks):
        yield "good"
    if feedback.not_helpful or any(chunk.not_relevant for chunk in feedback.chunks):
        yield "bad"
    if feedback.helpful or feedback.not_helpful or any(one.relevant or one.not_relevant for one in feedback.chunks):
        yield "any"
