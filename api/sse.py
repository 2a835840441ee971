"""A job's events as Server-Sent Events."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import msgspec
from aiohttp import web

from api.keys import EVENTS, HUB, REQUEST_ID, TELLER
from api.live import Closing, Frame, Gap, Heartbeat, ReplayEnd, follow
from shared.events import Event
from shared.metrics import STREAMS_OPEN

HEARTBEAT_S: Final = 15.0
DONE: Final = b"data: [DONE]\n\n"
HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


async def stream_job(request: web.Request, job_id: str, after: int, headers: dict[str, str]) -> web.StreamResponse:
    """Answers with the job's events above `after`, to the final one and `[DONE]`.

    A client that goes away ends the response, never the job. When this process stops, the response ends with a
    short `retry:`, so that clients come back to another process and resume.
    """
    response = web.StreamResponse(headers={**HEADERS, **headers, "X-Request-Id": request[REQUEST_ID]})
    await response.prepare(request)
    STREAMS_OPEN.inc()
    try:
        with request.app[TELLER].reader(job_id):
            await _relay(request, response, job_id, after)
    except ConnectionResetError:
        pass  # the client went away, which is its right
    finally:
        STREAMS_OPEN.dec()
    return response


async def _relay(request: web.Request, response: web.StreamResponse, job_id: str, after: int) -> None:
    await response.write(b"retry: 2000\n\n")
    finished = False
    events = follow(request.app[HUB], request.app[EVENTS], job_id, after=after, heartbeat_s=HEARTBEAT_S)
    # Closed at once, not when the collector finds it: the hub's subscription hangs on it.
    async with aclosing(events) as frames:
        async for frame in frames:
            if isinstance(frame, list) and any(event.type == "job.queued" for event in frame):
                request.app[TELLER].queued(job_id)
            await response.write(encode(frame))
            finished = not isinstance(frame, Closing)
    if finished:
        await response.write(DONE)
    await response.write_eof()


def encode(frame: Frame) -> bytes:
    """A frame as it goes over the wire."""
    match frame:
        case list():
            return b"".join(map(_event, frame))
        case Gap(first, last):
            data = msgspec.json.encode({"type": "gap", "from": first, "to": last})
            return b"event: gap\ndata: " + data + b"\n\n"
        case ReplayEnd():
            return b'event: replay.end\ndata: {"type":"replay.end"}\n\n'
        case Heartbeat():
            return b": waiting\n\n"
        case Closing():
            return b"retry: 200\n\n"


def _event(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), event.to_json())
