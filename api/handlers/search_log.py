"""The log of searches: reading it, judging and erasing what stands there, and its figures. Scope `search`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from api.acting import idem_of
from api.keys import PRINCIPAL, SEARCHES
from api.wire import answer, integer, invalid, page_answer, page_of, query, read_json
from shared.clock import parse_rfc3339
from shared.search import DEFAULT_TOP_K, MAX_TOP_K, SEARCH_ID, Mode, NewSearchFeedback
from shared.search_log import JUDGED, SearchesErased, Wanted
from shared.search_quality import DEFAULT_LOW_SCORE, MAX_SEARCHES, measure

_RANGE: Final = ("from", "to", "collection")
_FILTERS: Final = ("user", "mode", "noResult", "maxScore", "feedback", "q")


async def list_searches(request: web.Request) -> web.Response:
    """GET /api/search/log."""
    parameters = query(request, ("limit", "after", *_RANGE, *_FILTERS))
    limit, after = page_of(parameters, SEARCH_ID)
    no_result = _one_of(parameters, "noResult", ("true", "false"))
    mode = _one_of(parameters, "mode", tuple(Mode))
    wanted = Wanted(
        user=parameters.get("user"),
        collection=parameters.get("collection"),
        mode=Mode(mode) if mode is not None else None,
        no_result=no_result == "true" if no_result is not None else None,
        max_score=_share(parameters, "maxScore"),
        feedback=_one_of(parameters, "feedback", JUDGED),
        q=parameters.get("q"),
    )
    rows, cursor = await request.app[SEARCHES].page(
        request[PRINCIPAL].tenant,
        wanted,
        limit=limit,
        after=after,
        from_ms=_time(parameters, "from"),
        to_ms=_time(parameters, "to"),
    )
    return page_answer(request, rows, cursor)


async def show(request: web.Request) -> web.Response:
    """GET /api/search/{searchId}."""
    query(request, ())
    return answer(await request.app[SEARCHES].search(request[PRINCIPAL].tenant, request.match_info["searchId"]))


async def erase(request: web.Request) -> web.Response:
    """DELETE /api/search/{searchId}."""
    query(request, ())
    return answer(await request.app[SEARCHES].erase(request[PRINCIPAL].tenant, request.match_info["searchId"]))


async def erase_user(request: web.Request) -> web.Response:
    """DELETE /api/search/log?user=U."""
    user = query(request, ("user",)).get("user")
    if not user:
        raise invalid("?user", "is required: whose searches are to be erased")
    return answer(SearchesErased(erased=await request.app[SEARCHES].erase_user(request[PRINCIPAL].tenant, user)))


async def give_feedback(request: web.Request) -> web.Response:
    """POST /api/search/{searchId}/feedback."""
    query(request, ())
    given, body = await read_json(request, NewSearchFeedback)
    idem_key, idem_body = idem_of(request, body)
    noted, replayed = await request.app[SEARCHES].add_feedback(
        request[PRINCIPAL].tenant,
        request.match_info["searchId"],
        given,
        given.user,
        idem_key=idem_key,
        idem_body=idem_body,
    )
    return answer(noted, status=201, headers={"Idempotent-Replayed": "true"} if replayed else {})


async def quality(request: web.Request) -> web.Response:
    """GET /api/search/quality."""
    parameters = query(request, (*_RANGE, "k", "lowScore"))
    k = integer(parameters, "k", DEFAULT_TOP_K, low=1, high=MAX_TOP_K)
    low_score = _share(parameters, "lowScore")
    lines, more = await request.app[SEARCHES].newest(
        request[PRINCIPAL].tenant, MAX_SEARCHES, from_ms=_time(parameters, "from"), to_ms=_time(parameters, "to")
    )
    figures = await asyncio.to_thread(
        measure,
        lines,
        more=more,
        collection=parameters.get("collection"),
        k=k,
        low_score=DEFAULT_LOW_SCORE if low_score is None else low_score,
    )
    return answer(figures)


def _one_of(parameters: Mapping[str, str], name: str, values: tuple[Any, ...]) -> Any:
    text = parameters.get(name)
    if text is not None and text not in values:
        raise invalid(f"?{name}", f"must be one of {', '.join(values)}")
    return text


def _share(parameters: Mapping[str, str], name: str) -> float | None:
    text = parameters.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise invalid(f"?{name}", "must be a number from 0 to 1")
    return number


def _time(parameters: Mapping[str, str], name: str) -> int | None:
    if name not in parameters:
        return None
    try:
        return max(0, parse_rfc3339(parameters[name].replace(" ", "+")))  # a `+` of a zone that was not escaped
    except ValueError as error:
        raise invalid(f"?{name}", str(error)) from None
