"""What a line of the URL table says of a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from shared.clock import DAY, MOMENT
from shared.ids import ULID
from shared.specs import MAX_WAIT_S
from shared.tenants import Scope

_DATE_SCHEMA: Final = {"format": "date", "pattern": f"^{DAY}$"}
_TIME_SCHEMA: Final = {"format": "date-time", "pattern": MOMENT}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Parameter(msgspec.Struct, frozen=True):
    """A query parameter or header of a call. `kind`: a type whose JSON Schema says what it takes."""

    name: str
    place: str
    description: str
    kind: Any = str
    required: bool = False


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
    may_lack_body: bool = False
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[str, ...] = ()
    ticket: bool = False  # `?ticket=` serves instead of a key
    is_stream: bool = False  # no HEAD: there is no telling how it ends


def in_query(name: str, description: str, kind: Any = str, *, required: bool = False) -> Parameter:
    """A query parameter."""
    return Parameter(name, "query", description, kind, required)


def in_header(name: str, description: str, kind: Any = str) -> Parameter:
    """A header of the request."""
    return Parameter(name, "header", description, kind)


def id_of(prefix: str) -> Any:
    """The type of ids with this prefix, for example `job`."""
    return Annotated[str, Meta(pattern=f"^{prefix}_{ULID}$")]


def whole(low: int, high: int | None = None) -> Any:
    """The type of whole numbers in these bounds."""
    return Annotated[int, Meta(ge=low, le=high)]


def list_of(prefix: str) -> tuple[Parameter, Parameter]:
    """What a list takes whose cursors are ids with this prefix."""
    return LIST[0], msgspec.structs.replace(LIST[1], kind=id_of(prefix))


class Page(msgspec.Struct, frozen=True):
    """Marks an answer that is a page of rows of `kind`."""

    kind: Any


Share = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(pattern=r"\S")]
Moment = Annotated[str, Meta(extra_json_schema=_TIME_SCHEMA)]
Day = Annotated[str, Meta(extra_json_schema={"anyOf": [_DATE_SCHEMA, _TIME_SCHEMA]})]
Place = Annotated[str, Meta(pattern=f"^(job_{ULID}\\.[0-9]{{1,15}})?$")]  # an empty header is none
EntryPlace = Annotated[str, Meta(pattern="^[0-9]{1,15}-[0-9]{1,15}$")]
EventNumber = whole(0, 10**15)

LIST: Final = (
    in_query("limit", "1 to 200, default 50", whole(1, 200)),
    in_query("after", "cursor: `next` of the page before"),
)
WAIT: Final = in_query(
    "wait", "long poll: wait up to so many seconds (at most 60) for a final state", whole(0, MAX_WAIT_S)
)
IDEMPOTENCY: Final = in_header(
    "Idempotency-Key", "the same key and body within 24 h: the first answer again",
    Annotated[str, Meta(min_length=1, max_length=255)],
)  # fmt: skip
