"""A collector that takes OTLP over HTTP on loopback and keeps every byte, and what the bytes say."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


class Seen(msgspec.Struct, frozen=True):
    """A span as it was exported; ids are hexadecimal, times nanoseconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: list[tuple[str, str]]
    events: int
    status: int
    message: str
    start_ns: int
    end_ns: int


class Collector:
    """The server. While it is `broken` it answers 503; while it `hangs` it answers nothing."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.spans: list[Seen] = []
        self.base = ""
        self.broken = False
        self.hangs = False
        self.requests = 0
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.read()
        if self.hangs:
            await asyncio.sleep(60)
        if self.broken:
            return web.Response(status=503)
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        self.spans += spans_of(body)
        self._news.set()
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    async def until(self, wanted: Callable[[Seen], bool], count: int = 1, seconds: float = 15) -> list[Seen]:
        """The spans that are wanted, when so many have come."""
        async with asyncio.timeout(seconds):
            while len(found := [span for span in self.spans if wanted(span)]) < count:
                self._news.clear()
                await self._news.wait()
        return found


def spans_of(body: bytes) -> list[Seen]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    found = []
    for part in request.resource_spans:
        resource = {one.key: _value(one.value) for one in part.resource.attributes}
        for scope in part.scope_spans:
            for span in scope.spans:
                found.append(
                    Seen(
                        name=span.name,
                        kind=KINDS[span.kind],
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        state=span.trace_state,
                        attributes={one.key: _value(one.value) for one in span.attributes},
                        resource=resource,
                        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                        events=len(span.events),
                        status=span.status.code,
                        message=span.status.message,
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                    )
                )
    return found


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None
