"""The part of the URL table that is about search: collections, searches, their log."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from api.handlers import collections, search, search_log
from api.route import IDEMPOTENCY, LIST, Moment, Page, Place, Route, Share, list_of, whole
from api.route import in_header as _h
from api.route import in_query as _q
from shared.collections import CollectionView, Reindex
from shared.jobs import JobView
from shared.search import (
    MAX_COLLECTIONS,
    MAX_TOP_K,
    SEARCH_ID,
    LoggedSearch,
    Mode,
    NewSearchFeedback,
    SearchRequest,
    SearchResult,
)
from shared.search_log import JUDGED, FeedbackGiven, SearchErased, SearchesErased
from shared.search_quality import SearchQuality
from shared.specs import ShortText
from shared.tenants import Scope

RANGE: Final = (
    _q("from", "RFC 3339: searches from then on", Moment),
    _q("to", "RFC 3339: searches before then", Moment),
    _q("collection", "only searches that asked this collection, or looked through it"),
)

LIMITS: Final = ("queue_full", "rate_limited", "budget_exhausted")
MODEL: Final = ("cancelled", "upstream_unavailable", "upstream_refused", "upstream_rate_limited", "timeout",
                "worker_lost")  # fmt: skip
BODY: Final = ("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "request_timeout")
RESUME: Final = _h("Last-Event-ID", "the `id` of the last frame that came: resumes that search, and starts none", Place)
STREAM: Final = _h("Accept", '`text/event-stream`: `event: sources`, frames `{"text"}`, `event: answer`, `[DONE]`')
FOUND: Final = (
    "Sources by `score`, highest first, and the answer from them; null without a source, or with `answer=false`."
)
COLLECTION: Final = "/api/collections/{name}"
NamePlace = Annotated[str, Meta(pattern="^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2,3})?$")]

# Names before `{searchId}`, which would take them for ids.
SEARCH_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST", "/api/search", search.post, "Search documents, and answer from what was found", Scope.SEARCH,
        {200: (FOUND, SearchResult)}, body=SearchRequest, parameters=(IDEMPOTENCY, STREAM, RESUME),
        problems=(*BODY, "idempotency_mismatch", *LIMITS, *MODEL, "not_found", "gone"),
    ),
    Route(
        "GET", "/api/search", search.get, "The same by the address", Scope.SEARCH, {200: (FOUND, SearchResult)},
        parameters=(
            _q("q", "what to look for; not looked at with `Last-Event-ID`",
               Annotated[str, Meta(max_length=4_000, pattern=r"\S")], required=True),
            _q("minScore", "0 to 1: sources below it are left out; by default `ERRAND_SEARCH_MIN_SCORE` (0.5)", Share),
            _q("topK", "most sources, 1 to 50, default 10", whole(1, MAX_TOP_K)),
            _q("collection", "one, or several with commas between; given several times, each is one, commas and all; "
               "default: all", Annotated[list[ShortText], Meta(min_length=1, max_length=MAX_COLLECTIONS)]),
            _q("mode", "`hybrid` (default), `vector` or `keyword`", Mode), _q("answer", "`false`: sources only", bool),
            _q("filter", "on metadata, JSON; `filter.NAME=value` too"),
            _q("rerank", "`true` or `false`; by default as the installation is set", bool),
            _q("version", "of the index, in place of the current one; needs `collection`", whole(1)),
            _q("log", "`false`: leaves no line in the log", bool), _q("user", "your end user", ShortText),
            _q("model", "that answers", ShortText),
            IDEMPOTENCY, STREAM, RESUME,
        ),
        problems=("invalid_request", "idempotency_mismatch", *LIMITS, *MODEL, "not_found", "gone"), is_stream=True,
    ),
    Route(
        "GET", "/api/collections", collections.list_collections, "List collections, by name", Scope.DOCUMENTS,
        {200: ("One page.", Page(CollectionView))},
        parameters=(LIST[0], msgspec.structs.replace(LIST[1], kind=NamePlace)), problems=("invalid_request",),
    ),
    Route(
        "GET", COLLECTION, collections.show, "Read a collection and the versions of its index", Scope.DOCUMENTS,
        {200: ("The collection.", CollectionView)}, problems=("not_found",),
    ),
    Route(
        "POST", f"{COLLECTION}/reindex", collections.reindex,
        "Build a further version of the index, and switch to it when it is whole", Scope.DOCUMENTS,
        {202: ("A `reindex` job does it; searches are answered from the present version until it is done.", JobView)},
        body=Reindex, parameters=(IDEMPOTENCY,),
        problems=(*BODY, "not_found", "idempotency_mismatch", *LIMITS),
    ),
    Route(
        "POST", f"{COLLECTION}/rollback", collections.roll_back, "Go back to the version before", Scope.DOCUMENTS,
        {200: ("It answers searches from now on.", CollectionView),
         202: ("A `reindex` job first puts into it what has come since.", JobView)},
        parameters=(IDEMPOTENCY,), problems=("not_found", "conflict", "idempotency_mismatch", *LIMITS),
    ),
    Route(
        "DELETE", f"{COLLECTION}/versions/{{version}}", collections.drop_version,
        "Remove a version that does not answer searches", Scope.DOCUMENTS,
        {200: ("The collection without it.", CollectionView)}, problems=("not_found", "conflict"),
    ),
    Route(
        "GET", "/api/search/log", search_log.list_searches, "List searches, newest first", Scope.SEARCH,
        {200: ("One page. With filters it may be short though there are more.", Page(LoggedSearch))},
        parameters=(
            *list_of(SEARCH_ID), *RANGE, _q("user", "the search's `user`"),
            _q("mode", "hybrid, vector or keyword", Mode),
            _q("noResult", "`true`: nothing was found; `false`: something was", bool),
            _q("maxScore", "the best score is at most this, or nothing was found", Share),
            _q("feedback", "`bad`: called not helpful, or a chunk of it not relevant; `good`: the opposite; `any`",
               Literal[JUDGED]),
            _q("q", "only those with this text in the query, in whatever case"),
        ),
        problems=("invalid_request",),
    ),
    Route(
        "DELETE", "/api/search/log", search_log.erase_user, "Erase all searches of a user", Scope.SEARCH,
        {200: ("How many there were; the texts in the jobs behind them are gone too.", SearchesErased)},
        parameters=(_q("user", "whose; required", Annotated[str, Meta(min_length=1)], required=True),),
        problems=("invalid_request",),
    ),
    Route(
        "GET", "/api/search/quality", search_log.quality, "How good searches are, from log and feedback", Scope.SEARCH,
        {200: ("Figures of at most the newest 10,000 searches of the time.", SearchQuality)},
        parameters=(
            *RANGE, _q("k", "the k of recall@k, 1 to 50, default 10", whole(1, MAX_TOP_K)),
            _q("lowScore", "a best score below this is low, 0 to 1, default 0.5", Share),
        ),
        problems=("invalid_request",),
    ),
    Route(
        "GET", "/api/search/{searchId}", search_log.show, "Read a search of the log", Scope.SEARCH,
        {200: ("What was considered, why it was kept or not, and what was said of it.", LoggedSearch)},
        problems=("not_found",),
    ),
    Route(
        "DELETE", "/api/search/{searchId}", search_log.erase, "Erase a search", Scope.SEARCH,
        {200: ("It is gone, and so are the texts in the job behind it.", SearchErased)}, problems=("not_found",),
    ),
    Route(
        "POST", "/api/search/{searchId}/feedback", search_log.give_feedback,
        "Say whether a search was helpful, or one of its chunks relevant", Scope.SEARCH,
        {201: ("It was noted.", FeedbackGiven)}, body=NewSearchFeedback, parameters=(IDEMPOTENCY,),
        problems=("malformed_request", "too_large", "unsupported_media_type", "invalid_request", "not_found",
                  "idempotency_mismatch", "request_timeout"),
    ),
)  # fmt: skip
