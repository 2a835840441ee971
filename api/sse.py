"""Server-Sent Events: the open response, and a job's events on it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from aiohttp import web

from api.keys import AUDIENCE, EVENTS, HUB, REQUEST_ID, TELLER
from api.live import Closing, Feed, Frame, Gap, ReplayEnd, follow
from api.presence import until_hang_up
from shared.events import Event
from shared.metrics import STREAM_GAPS, STREAMS_OPEN, STREAMS_OPENED
from shared.redis import OUTAGE

HEARTBEAT_S: Final = 15.0
STALLED_S: Final = 60.0  # a client that takes nothing for so long is let go: it can resume
SMALL_BYTES: Final = 32 * 1024  # half of what a transport takes before it makes us wait
UNSENT_BYTES: Final = 64 * 1024  # that the kernel keeps for a client that does not read
DONE: Final = b"data: [DONE]\n\n"
# A line, not a block: some clients take an empty block after an `id:` for an event.
WAITING: Final = b": waiting\n"
COME_BACK: Final = b"retry: 200\n\n"
HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class EventStream:
    """One response of Server-Sent Events. Raises ConnectionResetError when its client has gone, or stands still."""

    def __init__(self, request: web.Request, headers: dict[str, str]) -> None:
        self._request = request
        self.response = web.StreamResponse(headers={**HEADERS, **headers, "X-Request-Id": request[REQUEST_ID]})

    async def open(self) -> None:
        """Sends the head."""
        transport = self._request.transport
        bound_unsent(transport.get_extra_info("socket") if transport is not None else None)
        await self.response.prepare(self._request)

    async def send(self, data: bytes) -> None:
        """Sends bytes, as fast as the client takes them."""
        transport = self._request.transport
        if transport is not None and not transport.get_write_buffer_size() and len(data) < SMALL_BYTES:
            await self.response.write(data)  # it cannot have to wait
            return
        await send_within(self._request, self.response, data)

    async def heartbeat(self) -> None:
        """A sign of life."""
        await self.send(WAITING)

    async def close(self) -> None:
        """The regular end of the response."""
        await self.response.write_eof()


async def send_within(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Sends bytes of an open response. Raises ConnectionResetError, and lets the client go, when it takes nothing for
    STALLED_S."""
    try:
        async with asyncio.timeout(STALLED_S):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client stood still") from None


def bound_unsent(connection: Any) -> None:
    """Keeps the kernel from buffering megabytes for a client that does not read (Linux, macOS; tcp(7),
    TCP_NOTSENT_LOWAT)."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", {"linux": 25, "darwin": 0x201}.get(sys.platform))
    if connection is None or option is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)


@contextmanager
def listening(
    request: web.Request, job_id: str, grace_ms: int, *, resumed: bool = False
) -> Iterator[Callable[[], None]]:
    """While a client takes the answer: the stream counts as open, a chat has a listener, a client that goes ends it.
    Yields what to call when the answer is complete."""
    STREAMS_OPEN.labels("sse").inc()
    STREAMS_OPENED.labels("sse", "yes" if resumed else "no").inc()
    try:
        with (
            request.app[AUDIENCE].listener(job_id, grace_ms),
            request.app[TELLER].reader(job_id),
            until_hang_up(request) as complete,
        ):
            yield complete
    finally:
        STREAMS_OPEN.labels("sse").dec()


async def stream_job(
    request: web.Request, job_id: str, after: int, headers: dict[str, str], *, grace_ms: int = 0
) -> web.StreamResponse:
    """Answers with the job's events above `after`, to the final one and `[DONE]`.

    A client that goes away ends the response, never the job. When this process stops, the response ends with a
    short `retry:`, so that clients come back to another process and resume.
    """
    stream = EventStream(request, headers)
    with listening(request, job_id, grace_ms, resumed=after > 0) as complete:
        async with follow(request.app[HUB], request.app[EVENTS], job_id, after=after) as feed:
            await stream.open()
            await _relay(request, stream, feed, job_id)
            complete()
            await stream.close()
    return stream.response


async def _relay(request: web.Request, stream: EventStream, feed: Feed, job_id: str) -> None:
    # Its first events come with the head, in one packet. Without Redis the client is not kept waiting for them.
    head = b"retry: 2000\n"
    try:
        frames = await feed.step()
    except OUTAGE:
        frames = []
    if not frames:
        head += WAITING
    while True:
        for frame in frames:
            if isinstance(frame, list) and any(event.type == "job.queued" for event in frame):
                request.app[TELLER].queued(job_id)
        if data := head + b"".join(map(encode, frames)):
            await stream.send(data)
        if feed.done:
            break
        frames = await feed.next(HEARTBEAT_S)
        head = b"" if frames else WAITING
    if not isinstance(frames[-1] if frames else None, Closing):
        await stream.send(DONE)


def encode(frame: Frame) -> bytes:
    """A frame as it goes over the wire."""
    match frame:
        case list():
            return b"".join(map(_event, frame))
        case Gap(first, last):
            STREAM_GAPS.inc()
            data = msgspec.json.encode({"type": "gap", "from": first, "to": last})
            return b"event: gap\ndata: " + data + b"\n\n"
        case ReplayEnd():
            return b'event: replay.end\ndata: {"type":"replay.end"}\n\n'
        case Closing():
            return COME_BACK


def _event(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), event.to_json())
