"""Spans by OpenTelemetry, exported as OTLP over HTTP. The only file that imports it (extra `otel`).

The provider is ours alone and never OpenTelemetry's global one: no library that instruments itself can put spans of
its own, with contents, into our export. Spans wait in a bounded queue, a thread sends them; what finds the queue full,
or a collector that is away, is lost and counted. All `OTEL_…` variables of the SDK for traces hold, with
OTEL_EXPORTER_OTLP_PROTOCOL only as `http/protobuf`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from shared.errors import ConfigurationError
from shared.log import get_logger
from shared.metrics import TRACE_SPANS
from shared.trace_context import TraceContext
from shared.tracing import ERROR_TYPE, Attributes, Kind

log = get_logger()

KINDS: Final = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
    "internal": SpanKind.INTERNAL,
}
BATCH_SPANS: Final = 128  # in one export, unless OTEL_BSP_MAX_EXPORT_BATCH_SIZE says otherwise: packing 512 holds the
# interpreter for tens of milliseconds, which streams would feel


class OtlpTracer:
    """Makes spans and hands them to the exporter's thread."""

    def __init__(self, process: str) -> None:
        """`process` is `api`, or `worker-` and its lane. Raises ConfigurationError for a bad OTEL_… variable."""
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if (protocol := os.environ.get(name)) not in (None, "", "http/protobuf"):
                raise ConfigurationError(f"{name}={protocol!r} is not spoken here; only http/protobuf is.")
        # It would log each batch that it cannot send, with addresses; `_Counted` says once that it cannot.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        try:
            self._provider = TracerProvider(resource=_resource(process), shutdown_on_exit=False)
            exporter = _Counted(OTLPSpanExporter())
            self._provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=_batch_spans()))
        except ValueError as error:
            raise ConfigurationError(f"An OTEL_… variable is not valid: {error}") from None
        self._tracer = self._provider.get_tracer("errand")

    def begin(
        self, name: str, kind: Kind, parent: TraceContext | None, attributes: Attributes, link: TraceContext | None
    ) -> OtlpSpan:
        """As `shared.tracing.Tracer`."""
        context = Context()
        if parent is not None:
            context = set_span_in_context(NonRecordingSpan(_span_context(parent)), context)
        links = None if link is None else [Link(_span_context(link))]
        span = self._tracer.start_span(
            name,
            context,
            KINDS[kind],
            {name: value for name, value in attributes.items() if value is not None},
            links,
            record_exception=False,
            set_status_on_exception=False,
        )
        return OtlpSpan(span)

    def close(self, seconds: float) -> None:
        """In a thread that is left alone when it takes too long: the SDK itself would wait for half a minute."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        ending.start()
        ending.join(seconds)


class OtlpSpan:
    """One span."""

    __slots__ = ("_span", "trace")

    def __init__(self, span: Any) -> None:
        self._span = span
        place = span.get_span_context()
        self.trace = TraceContext(
            f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}", place.trace_state.to_header()
        )
        if span.is_recording():
            TRACE_SPANS.labels("begun").inc()

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)

    def end(self, error_type: str | None) -> None:
        """Ends it."""
        if error_type is not None:
            self._span.set_attribute(ERROR_TYPE, error_type)
            self._span.set_status(Status(StatusCode.ERROR))  # no description: texts of errors quote contents
        self._span.end()


class _Counted(SpanExporter):
    """Counts what is sent and what is lost; says in the log when that begins and ends."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """In the exporter's thread. Never raises."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            result = SpanExportResult.FAILURE
            log.exception("traces.export_crashed")
        failed = result is not SpanExportResult.SUCCESS
        TRACE_SPANS.labels("lost" if failed else "exported").inc(len(spans))
        if failed and not self._is_failing:
            log.warning("traces.export_failed", detail="the collector is away or refuses: spans are lost")
        elif self._is_failing and not failed:
            log.info("traces.export_resumed")
        self._is_failing = failed
        return result

    def shutdown(self) -> None:
        """Ends it."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits here."""
        return True


def _batch_spans() -> int | None:
    """None leaves it to the SDK, which reads its variables."""
    names = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE")
    return None if any(os.environ.get(name) for name in names) else BATCH_SPANS


def _resource(process: str) -> Resource:
    """What the environment says of this process goes before what we say."""
    ours = {"service.name": f"errand-{process.partition('-')[0]}", "errand.process": process}
    named = Resource.create()
    if os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        del ours["service.name"]
    return named.merge(Resource(ours))


def _span_context(place: TraceContext) -> SpanContext:
    return SpanContext(
        int(place.trace_id, 16),
        int(place.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(place.flags),
        trace_state=TraceState.from_header([place.tracestate]) if place.tracestate else TraceState(),
    )
