"""What is under way: the request or the attempt that this code runs for. It stands in every line that is logged
meanwhile, also by libraries, and its trace context goes on to the model.

One context variable, read when a line is written: setting five for each attempt would cost more than all its lines.
Tasks copy the context of whoever makes them. So what outlives a request or an attempt, or works for several, is made
`apart`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextvars import Context, ContextVar
from typing import Any

import msgspec

from shared.trace_context import TRACEPARENT, TRACESTATE, TraceContext

REQUEST = "request_id"


class Scope(msgspec.Struct, frozen=True, gc=False):
    """`fields` for the log, plain values, shared by all that runs in it; `trace` is the place in a trace, if there is
    one. The collector need not look at it: each attempt has one, and it holds nothing that leads back."""

    fields: dict[str, Any]
    trace: TraceContext | None = None

    def logged(self) -> dict[str, Any]:
        """Its fields, with the `trace_id` where there is one."""
        return self.fields if self.trace is None else {**self.fields, "trace_id": self.trace.trace_id}


SCOPE: ContextVar[Scope | None] = ContextVar("errand_scope", default=None)


class entered:  # noqa: N801 - used as a function; contextlib's generators cost twice as much, for each attempt
    """Code inside, and the tasks that it makes, run in this scope."""

    __slots__ = ("_scope", "_token")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._token = SCOPE.set(self._scope)

    def __exit__(self, *_: object) -> None:
        SCOPE.reset(self._token)


def note(**fields: Any) -> None:
    """Adds fields to the lines of what is under way."""
    if (scope := SCOPE.get()) is not None:
        scope.fields.update(fields)


def place(line: MutableMapping[str, Any]) -> None:
    """Adds to a line what is under way; what it says itself stands."""
    if (scope := SCOPE.get()) is not None:
        for name, value in scope.fields.items():
            line.setdefault(name, value)
        if scope.trace is not None:
            line.setdefault("trace_id", scope.trace.trace_id)


def trace() -> TraceContext | None:
    """The place in a trace of what is under way."""
    scope = SCOPE.get()
    return None if scope is None else scope.trace


def outgoing() -> dict[str, str]:
    """The headers of a request to a model."""
    place = trace()
    return {} if place is None else place.headers


def origin() -> dict[str, str]:
    """What a job's record keeps of the request that makes it."""
    scope = SCOPE.get()
    if scope is None:
        return {}
    kept: dict[str, str] = {}
    if (request_id := scope.fields.get(REQUEST)) is not None:
        kept["request"] = request_id
    if scope.trace is not None:
        kept[TRACEPARENT] = scope.trace.traceparent
        if scope.trace.tracestate:
            kept[TRACESTATE] = scope.trace.tracestate
    return kept


def apart() -> Context:
    """For the `context` of a task or callback that is not part of what is under way."""
    return Context()
