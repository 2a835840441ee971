"""What a line of the URL table says of a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from shared.tenants import Scope

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Parameter(msgspec.Struct, frozen=True):
    """A query parameter or header of a call."""

    name: str
    place: str
    description: str


class Route(msgspec.Struct, frozen=True):
    """One call. `scope` None needs no key. `answers` maps a status to (sentence, type or media type)."""

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None
    answers: dict[int, tuple[str, Any]]
    body: Any = None
    upload: bool = False
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[str, ...] = ()
    ticket: bool = False  # `?ticket=` serves instead of a key
    is_stream: bool = False  # no HEAD: there is no telling how it ends


def in_query(name: str, description: str) -> Parameter:
    """A query parameter."""
    return Parameter(name, "query", description)


def in_header(name: str, description: str) -> Parameter:
    """A header of the request."""
    return Parameter(name, "header", description)


class Page(msgspec.Struct, frozen=True):
    """Marks an answer that is a page of rows of `kind`."""

    kind: Any


LIST = (in_query("limit", "1 to 200, default 50"), in_query("after", "cursor: `next` of the page before"))
WAIT = in_query("wait", "long poll: wait up to so many seconds (at most 60) for a final state")
IDEMPOTENCY = in_header("Idempotency-Key", "the same key and body within 24 h: the first answer again")
