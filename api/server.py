"""The HTTP server below the handlers: what aiohttp refuses by itself becomes a problem too, without echoing what was
sent, and a client that never finishes its header is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from api.problems import from_status, problem_answer
from shared.clock import monotonic_s
from shared.ids import random_part
from shared.log import get_logger
from shared.metrics import HTTP_REQUESTS

log = get_logger()

SWEEP_S: Final = 2.0


class EdgeHandler(RequestHandler):
    """One connection. `header_since` is when the first byte of a request came that is not yet whole (at first: when the
    connection was made), None while nothing is owed."""

    __slots__ = ("header_since", "on_lost")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client has connected; its first header is awaited."""
        super().connection_made(transport)
        self.header_since: float | None = monotonic_s()
        self.on_lost: set[Callable[[], None]] = set()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone: those who wait for something else hear of it."""
        super().connection_lost(exc)
        for callback in list(self.on_lost):
            callback()

    def data_received(self, data: bytes) -> None:
        """Bytes came: of a header, or of a body (then a request is under way and the stamp does not count)."""
        if self.header_since is None:
            self.header_since = monotonic_s()
        super().data_received(data)

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
        response.force_close()
        return response


class EdgeServer(web.Server):
    """Makes EdgeHandlers."""

    def __call__(self) -> RequestHandler:
        """A handler for a new connection."""
        return EdgeHandler(self, loop=self._loop, **self._kwargs)


class EdgeRunner(web.AppRunner):
    """Runs an application on an EdgeServer; a client whose header takes longer than `header_seconds` is let go."""

    def __init__(self, app: web.Application, *, header_seconds: float, shutdown_timeout: float) -> None:
        super().__init__(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=shutdown_timeout,
            keepalive_timeout=header_seconds,
        )
        self._header_seconds = header_seconds
        self._sweeper: asyncio.Task[None] | None = None

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp has no setting for this class; the layout of both is the same.
        server.__class__ = EdgeServer
        self._sweeper = asyncio.create_task(self._sweep(server), name="header-deadline")
        return server

    async def _sweep(self, server: web.Server) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._header_seconds / 2))
            now = monotonic_s()
            for handler in server.connections:
                assert isinstance(handler, EdgeHandler)
                since = handler.header_since
                if handler._current_request is None and since is not None and now - since > self._header_seconds:
                    handler.force_close()

    async def cleanup(self) -> None:
        """Stops serving."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        await super().cleanup()
