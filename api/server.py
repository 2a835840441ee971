"""The HTTP server below the handlers: what aiohttp refuses by itself becomes a problem too, without echoing what was
sent, a client that never finishes its header or takes nothing of its answer is let go, and one connection too many is
refused before anything is read of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from api.doors import Doors
from api.hardening import harden
from api.problems import from_status, problem_answer
from shared.clock import monotonic_s
from shared.errors import RefusedError
from shared.ids import random_part
from shared.log import get_logger
from shared.metrics import HTTP_REQUESTS
from shared.settings import Settings

log = get_logger()

SWEEP_S: Final = 2.0


class EdgeHandler(RequestHandler):
    """One connection. `header_since` is when the first byte of a request came that is not yet whole (at first: when the
    connection was made), None while nothing is owed. `taken` is how far its client has read, and since when."""

    __slots__ = ("counted", "doors", "header_since", "on_lost", "taken")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client has connected; its first header is awaited. One too many hears so and is closed."""
        self.header_since: float | None = monotonic_s()
        self.on_lost: set[Callable[[], None]] = set()
        self.taken: tuple[int, float] | None = None
        self.doors: Doors | None = getattr(self._manager, "doors", None)
        self.counted: str | None = ""
        if self.doors is not None:
            peer = transport.get_extra_info("peername")
            self.counted = self.doors.enter(peer[0] if isinstance(peer, tuple) else str(peer or ""))
        if self.counted is None:
            HTTP_REQUESTS.labels("other", "refused", "503").inc()
            refused = cast("asyncio.Transport", transport)  # uvloop's are of no class of asyncio's
            refused.write(_refusal())
            refused.close()
            return
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone: those who wait for something else hear of it."""
        if self.counted is None:
            return
        if self.doors is not None:
            self.doors.leave(self.counted)
        super().connection_lost(exc)
        for callback in list(self.on_lost):
            callback()

    def data_received(self, data: bytes) -> None:
        """Bytes came: of a header, or of a body (then a request is under way and the stamp does not count)."""
        if self.counted is None:
            return
        if self.header_since is None:
            self.header_since = monotonic_s()
        super().data_received(data)

    def eof_received(self) -> None:
        """The client sends no more."""
        if self.counted is not None:
            super().eof_received()

    def has_stalled(self, now: float, seconds: float) -> bool:
        """Whether bytes wait for the client and it has taken none for so long. Called again and again."""
        transport = self.transport
        waiting = 0 if transport is None else transport.get_write_buffer_size()
        if not waiting:
            self.taken = None
            return False
        request = self._current_request
        place = (request.writer.output_size if request is not None and request.writer is not None else 0) - waiting
        if self.taken is None or self.taken[0] != place:
            self.taken = (place, now)
        return now - self.taken[1] > seconds

    async def finish_response(self, *arguments: Any, **options: Any) -> Any:
        """The answer is out; the next header may take its time to begin (aiohttp's keep-alive bounds that)."""
        finished = await super().finish_response(*arguments, **options)
        self.header_since = None
        return finished

    def log_exception(self, *arguments: Any, **options: Any) -> None:
        """What aiohttp could not do. A body that is not what its header says is the client's fault, and answered."""
        if not isinstance(options.get("exc_info"), RequestPayloadError):
            super().log_exception(*arguments, **options)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A request that aiohttp could not read, or a crash outside our middleware."""
        request_id = f"req_{random_part()}"
        if isinstance(exc, ConnectionError):
            raise exc  # the client went away: that is no fault, and there is nobody to answer
        # Neither message nor exception is logged or shown: they quote the request, keys and prompts included.
        log.warning("request.unreadable", request_id=request_id, status=status, error=type(exc).__name__)
        HTTP_REQUESTS.labels("other", "unreadable", str(status)).inc()
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        response = problem_answer(from_status(status), request_id)
        response.headers["X-Request-Id"] = request_id
        harden(response.headers, response.content_type)
        response.force_close()
        return response


def _refusal() -> bytes:
    """The answer to a connection that is one too many, ready to be written."""
    request_id = f"req_{random_part()}"
    refusal = RefusedError("unavailable", "This process has all the connections that it takes, or that one client may.")
    response = problem_answer(refusal, request_id)
    harden(response.headers, response.content_type)
    body = response.body
    assert isinstance(body, bytes)
    response.headers.update({"Content-Length": str(len(body)), "Connection": "close", "X-Request-Id": request_id})
    head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    return b"HTTP/1.1 503 Service Unavailable\r\n" + head.encode() + b"\r\n" + body


class EdgeServer(web.Server):
    """Makes EdgeHandlers."""

    doors: Doors | None = None

    def __call__(self) -> RequestHandler:
        """A handler for a new connection."""
        return EdgeHandler(self, loop=self._loop, **self._kwargs)


class EdgeRunner(web.AppRunner):
    """Runs an application on an EdgeServer within the bounds of the settings: `header_seconds` for a header,
    `send_seconds` without taking anything of an answer, `idle_seconds` between two requests."""

    def __init__(
        self, app: web.Application, settings: Settings, *, shutdown_timeout: float, doors: Doors | None = None
    ) -> None:
        super().__init__(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=shutdown_timeout,
            keepalive_timeout=settings.idle_seconds,
            auto_decompress=False,  # api/wire.py unpacks, within its bounds
        )
        self._header_seconds = settings.header_seconds
        self._send_seconds = settings.send_seconds
        self._doors = doors
        self._sweeper: asyncio.Task[None] | None = None

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp has no setting for this class; the layout of both is the same.
        server.__class__ = EdgeServer
        assert isinstance(server, EdgeServer)
        server.doors = self._doors
        self._sweeper = asyncio.create_task(self._sweep(server), name="header-deadline")
        return server

    async def _sweep(self, server: web.Server) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._header_seconds / 2, self._send_seconds / 2))
            now = monotonic_s()
            for handler in server.connections:
                assert isinstance(handler, EdgeHandler)
                since = handler.header_since
                if handler._current_request is None and since is not None and now - since > self._header_seconds:
                    handler.force_close()
                elif handler.has_stalled(now, self._send_seconds):
                    log.info("connection.stalled", seconds=self._send_seconds)
                    cast("asyncio.Transport", handler.transport).abort()

    async def cleanup(self) -> None:
        """Stops serving."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        await super().cleanup()
