"""Spans: the interface, which does nothing unless `ERRAND_TRACES` switches an exporter on. OpenTelemetry itself is
imported in `shared.otlp` only.

A span has a name and attributes from closed sets, ids, numbers and names of models; never what was said, and of an
error its type only. While none are made, a trace context that a client sent goes on unchanged.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextvars import Token
from typing import Any, Final, Literal, Protocol

from shared import scope
from shared.errors import ConfigurationError, JobError, RefusedError
from shared.settings import Settings
from shared.trace_context import TraceContext

Kind = Literal["server", "client", "producer", "consumer", "internal"]
Attributes = Mapping[str, Any]

CLOSE_S: Final = 2.0  # for the last spans of a process that ends
ERROR_TYPE: Final = "error.type"
OTHER: Final = "_OTHER"  # of the semantic conventions: a value that is none of those that are known
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")


class OpenSpan(Protocol):
    """A span that has begun."""

    @property
    def trace(self) -> TraceContext:
        """Its place, for what it causes elsewhere."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Adds attributes; None stands for none."""
        ...

    def end(self, error_type: str | None) -> None:
        """Ends it; `error_type` when it failed."""
        ...


class Tracer(Protocol):
    """What makes spans."""

    def begin(
        self, name: str, kind: Kind, parent: TraceContext | None, attributes: Attributes, link: TraceContext | None
    ) -> OpenSpan:
        """A span below `parent`, or at the root of a trace of its own; `link` is one that it has to do with."""
        ...

    def close(self, seconds: float) -> None:
        """Sends what is left, for at most so long, and ends."""
        ...


class _State:
    tracer: Tracer | None = None


def is_on() -> bool:
    """Whether spans are made; who asks first saves making their attributes."""
    return _State.tracer is not None


def configure(settings: Settings, process: str) -> None:
    """Switches spans on for this process if the settings say so. Raises ConfigurationError."""
    if settings.traces == "off":
        return
    try:
        from shared.otlp import OtlpTracer
    except ImportError as error:
        raise ConfigurationError(
            f"ERRAND_TRACES=otlp needs the extra `otel` (pip install 'errand[otel]'): {error}"
        ) from None
    _State.tracer = OtlpTracer(process)


def close(seconds: float) -> None:
    """Switches them off: what is left is sent, for at most so long. Not to be called on the event loop."""
    tracer, _State.tracer = _State.tracer, None
    if tracer is not None:
        tracer.close(seconds)


def begin(
    name: str, kind: Kind, attributes: Attributes, *, parent: TraceContext | None, link: TraceContext | None = None
) -> OpenSpan | None:
    """A span that somebody else ends; None while none are made."""
    if _State.tracer is None:
        return None
    return _State.tracer.begin(name, kind, parent, attributes, link)


class Span:
    """A span around a piece of code, below the one that is under way; what goes out meanwhile names it as its parent.
    While no spans are made it does nothing."""

    __slots__ = ("_attributes", "_error_type", "_kind", "_name", "_span", "_token")

    def __init__(self, name: str, kind: Kind = "internal", attributes: Attributes | None = None) -> None:
        self._name = name
        self._kind: Kind = kind
        self._attributes = attributes or {}
        self._span: OpenSpan | None = None
        self._error_type: str | None = None
        self._token: Token[scope.Scope | None] | None = None

    def __enter__(self) -> Span:
        if _State.tracer is not None:
            around = scope.SCOPE.get()
            parent = None if around is None else around.trace
            self._span = _State.tracer.begin(self._name, self._kind, parent, self._attributes, None)
            self._token = scope.SCOPE.set(scope.Scope({} if around is None else around.fields, self._span.trace))
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if self._token is not None:
            scope.SCOPE.reset(self._token)
        if self._span is not None:
            self._span.end(self._error_type or (None if error is None else error_type_of(error)))

    def set(self, attributes: Attributes) -> None:
        """Adds attributes; None stands for none."""
        if self._span is not None:
            self._span.set(attributes)

    def fail(self, error_type: str) -> None:
        """It has failed without an exception."""
        self._error_type = error_type


def error_type_of(error: BaseException) -> str:
    """What a span says of an error: our code, or its class; never its text."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, JobError | RefusedError):
        return error.code
    return type(error).__name__


def plain_name(text: str) -> str:
    """A model's or tool's name for logs and spans. Clients choose it freely: what has not the form of a name is not
    shown, since it may be a prompt or a key in the wrong place."""
    return text if _NAME.fullmatch(text) and not text.startswith(("ek_", "sk-")) else OTHER
