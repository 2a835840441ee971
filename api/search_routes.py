"""The part of the URL table that is about the log of searches."""

from __future__ import annotations

from typing import Final

from api.handlers import search_log
from api.route import IDEMPOTENCY, LIST, Page, Route
from api.route import in_query as _q
from shared.search import LoggedSearch, NewSearchFeedback
from shared.search_log import FeedbackGiven, SearchErased, SearchesErased
from shared.search_quality import SearchQuality
from shared.tenants import Scope

RANGE: Final = (
    _q("from", "RFC 3339: searches from then on"),
    _q("to", "RFC 3339: searches before then"),
    _q("collection", "only searches that asked this collection, or looked through it"),
)

# Names before `{searchId}`, which would take them for ids.
SEARCH_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET", "/api/search/log", search_log.list_searches, "List searches, newest first", Scope.SEARCH,
        {200: ("One page. With filters it may be short though there are more.", Page(LoggedSearch))},
        parameters=(
            *LIST, *RANGE, _q("user", "the search's `user`"), _q("mode", "hybrid, vector or keyword"),
            _q("noResult", "`true`: nothing was found; `false`: something was"),
            _q("maxScore", "the best score is at most this, or nothing was found"),
            _q("feedback", "`bad`: called not helpful, or a chunk of it not relevant; `good`: the opposite; `any`"),
            _q("q", "only those with this text in the query, in whatever case"),
        ),
        problems=("invalid_request",),
    ),
    Route(
        "DELETE", "/api/search/log", search_log.erase_user, "Erase all searches of a user", Scope.SEARCH,
        {200: ("How many there were; the texts in the jobs behind them are gone too.", SearchesErased)},
        parameters=(_q("user", "whose; required"),), problems=("invalid_request",),
    ),
    Route(
        "GET", "/api/search/quality", search_log.quality, "How good searches are, from log and feedback", Scope.SEARCH,
        {200: ("Figures of at most the newest 10,000 searches of the time.", SearchQuality)},
        parameters=(
            *RANGE, _q("k", "the k of recall@k, 1 to 50, default 10"),
            _q("lowScore", "a best score below this is low, 0 to 1, default 0.5"),
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
