"""A job's output: the parts that its worker wrote, as one file that can be read from any place while it grows."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import msgspec
from aiohttp import web

from api.keys import BLOBS, JOBS, OUTPUTS, PRINCIPAL, REQUEST_ID
from api.presence import until_hang_up
from api.sse import send_within
from api.wire import etag_of, matches, query
from shared.batch import MEDIA_TYPE
from shared.blobs import BlobMissingError, Blobs
from shared.errors import BlobsUnavailableError, RefusedError
from shared.jobs import OUTPUT_TYPES, retry_after_s
from shared.log import get_logger
from shared.stores.outputs import Part, contiguous

log = get_logger()

_RANGE: Final = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE)


async def read(request: web.Request) -> web.StreamResponse:
    """GET /api/jobs/{id}/output."""
    query(request, ())
    # In this order: of a job that is final, all parts are there.
    row = await request.app[JOBS].view(request[PRINCIPAL].tenant, request.match_info["id"])
    parts = await request.app[OUTPUTS].parts(row.job_id)
    kind = row.text("type")
    if not parts and kind not in OUTPUT_TYPES:
        raise RefusedError("not_found", f"A job of type {kind} has no output: its result is in the job view.")
    if not row.is_final:
        parts = contiguous(parts)
    total = sum(part.size_bytes for part in parts)
    headers = {"Accept-Ranges": "bytes", "X-Accel-Buffering": "no"}
    etag = etag_of(msgspec.json.encode(parts)) if row.is_final else None
    if etag is not None:
        headers["ETag"] = etag
        if matches(request.headers.get("If-None-Match"), etag):
            return web.Response(status=304, headers=headers)
    elif (wait_s := retry_after_s(row)) is not None:
        headers["Retry-After"] = str(wait_s)
    place = asked_range(request.headers.get("Range"), total) if _may_be_partial(request, etag) else None
    if place is None:
        return await _send(request, parts, 0, total, 200, headers)
    start, end = place
    if start >= end:
        more = "" if row.is_final else " so far; ask again"
        raise RefusedError(
            "range_not_satisfiable",
            f"The output has {total} bytes{more}.",
            headers={**headers, "Content-Range": f"bytes */{total}"},
        )
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{total if row.is_final else '*'}"
    return await _send(request, parts, start, end, 206, headers)


def _may_be_partial(request: web.Request, etag: str | None) -> bool:
    """Whether a Range header counts: for GET only, and not when If-Range names another version than this."""
    return request.method == "GET" and request.headers.get("If-Range", etag) == etag


def asked_range(header: str | None, total: int) -> tuple[int, int] | None:
    """The one range of bytes that a Range header asks for, as far as there are any: (start, end exclusive), which is
    empty when it cannot be satisfied. None when all is to be sent: no header, another unit, several ranges, or none at
    all (RFC 9110 14.2 lets a server ignore these)."""
    match = _RANGE.fullmatch(header or "")
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return max(0, total - int(match[2])), total
    start = int(match[1])
    end = int(match[2]) + 1 if match[2] else total
    if match[2] and end <= start:
        return None
    return start, min(end, total)


async def _send(
    request: web.Request, parts: Sequence[Part], start: int, end: int, status: int, headers: dict[str, str]
) -> web.StreamResponse:
    """Sends these bytes. Raises RefusedError `gone` when they are not there, and ConnectionResetError when that shows
    after the head was sent: the connection is cut, so that nobody takes a part for the whole."""
    response = web.StreamResponse(status=status, headers={**headers, "X-Request-Id": request[REQUEST_ID]})
    response.content_type = MEDIA_TYPE
    response.content_length = end - start
    if request.method == "HEAD" or start == end:
        await response.prepare(request)
        await response.write_eof()
        return response
    with until_hang_up(request) as complete:
        async with aclosing(_pieces(request.app[BLOBS], parts, start, end)) as pieces:
            try:
                first = await anext(pieces)
            except BlobMissingError:
                raise RefusedError("gone", "The job's output was removed.") from None
            await response.prepare(request)
            await send_within(request, response, first)
            try:
                async for piece in pieces:
                    await send_within(request, response, piece)
            except (BlobMissingError, BlobsUnavailableError) as error:
                log.error("output.cut", job=request.match_info["id"], error=type(error).__name__)
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("a part of the output is missing") from None
        complete()
        await response.write_eof()
    return response


async def _pieces(blobs: Blobs, parts: Sequence[Part], start: int, end: int) -> AsyncGenerator[bytes, None]:
    """The bytes from `start` to `end` of all parts in a row. Raises BlobMissingError, also for a part that is not as
    long as it should be."""
    at = 0
    for part in parts:
        low, high = max(start - at, 0), min(end - at, part.size_bytes)
        at += part.size_bytes
        if low >= high:
            continue
        left = high - low
        async with aclosing(blobs.stream(part.blob, low, high)) as stream:
            async for piece in stream:
                left -= len(piece)
                yield piece
        if left:
            raise BlobMissingError(part.blob)
