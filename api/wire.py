"""Reading requests and writing answers: bodies, queries, idempotency keys, pages."""

from __future__ import annotations

import asyncio
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import ClientConnectionError, ClientPayloadError, web
from aiohttp.web_protocol import RequestPayloadError

from api.keys import SETTINGS
from shared.codec import decode_body
from shared.errors import RefusedError
from shared.ids import is_id
from shared.specs import MAX_WAIT_S
from shared.trace_context import TRACEPARENT, TRACESTATE, TraceContext, context_of

T = TypeVar("T")

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
_PREFER_WAIT: Final = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})(?![0-9])", re.IGNORECASE)


def answer(
    value: Any,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> web.Response:
    """A JSON answer from a Struct or plain value."""
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        headers=headers,
        content_type=content_type,
        charset="utf-8",
    )


def invalid(path: str, message: str) -> RefusedError:
    """The refusal of one member or parameter."""
    return RefusedError("invalid_request", f"{path}: {message}", errors=((path, message),))


async def read_body(request: web.Request, *, any_type: bool = False) -> bytes:
    """The whole JSON body (with `any_type` one of any type).

    Raises RefusedError `unsupported_media_type`, `too_large`, `request_timeout`, or `malformed_request` when it is cut
    off.
    """
    declared = request.headers.get("Content-Type")
    is_json = request.content_type == "application/json" or request.content_type.endswith("+json")
    is_utf8 = (request.charset or "utf-8").lower() in ("utf-8", "utf8", "us-ascii")
    if declared is not None and not any_type and not (is_json and is_utf8):
        raise RefusedError("unsupported_media_type", "Send Content-Type: application/json, in UTF-8.")
    unpack = unpacker(request)
    settings = request.app[SETTINGS]
    limit = settings.max_body_bytes
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in request.content.iter_any():
                piece = unpack(chunk, limit + 1 - size)
                size += len(piece)
                if size > limit:
                    raise too_large(limit)
                parts.append(piece)
            unpack(b"", 0)
    except TimeoutError:
        raise RefusedError("request_timeout", f"The body did not arrive within {settings.body_seconds:g} s.") from None
    except RequestPayloadError:
        raise RefusedError("malformed_request", "The body is not framed as its header claims.") from None
    except zlib.error:
        raise RefusedError("malformed_request", "The body is not in the Content-Encoding that it claims.") from None
    except (ClientConnectionError, ClientPayloadError, ConnectionError):
        raise RefusedError("malformed_request", "The connection ended before the body did.") from None
    return b"".join(parts)


def unpacker(request: web.Request) -> Callable[[bytes, int], bytes]:
    """A function (bytes as they came, most bytes wanted) → unpacked bytes, called with none at the end.

    aiohttp's own unpacks all that comes, on the event loop, also of a body that nobody reads: 300 kB stopped it for two
    seconds. Raises RefusedError `unsupported_media_type`; the function raises zlib.error.
    """
    packed = request.headers.get("Content-Encoding", "").strip().lower()
    if packed in ("", "identity"):
        return lambda data, _: data
    if packed not in ("gzip", "deflate"):
        raise RefusedError("unsupported_media_type", "Content-Encoding may be gzip or deflate, once.")
    inflater: Any = None

    def unpack(data: bytes, wanted: int) -> bytes:
        nonlocal inflater
        if not data:
            if inflater is not None and not inflater.eof:
                raise zlib.error("cut off")
            return b""
        if inflater is None:
            # RFC 9110 8.4.1.2 means zlib's form; some clients send the bare one.
            bare = packed == "deflate" and data[0] & 0x0F != zlib.DEFLATED
            inflater = zlib.decompressobj(
                zlib.MAX_WBITS | 16 if packed == "gzip" else (-1 if bare else 1) * zlib.MAX_WBITS
            )
        return bytes(inflater.decompress(data, max(wanted, 1)))

    return unpack


def too_large(limit: int) -> RefusedError:
    """The refusal of a body over `limit` bytes."""
    return RefusedError("too_large", f"The body is over the limit of {limit} bytes.")


async def read_json(request: web.Request, kind: Any) -> tuple[Any, bytes]:
    """The body as `kind`, and its bytes. Raises as `read_body` and `decode_body`."""
    body = await read_body(request)
    return decode_body(body, kind), body


def query(
    request: web.Request, allowed: Sequence[str], prefix: str | None = None, repeated: str | None = None
) -> dict[str, str]:
    """The query parameters. Raises RefusedError for one that this call does not know, or that is given twice.
    Names that start with `prefix` are allowed too; `repeated` may come several times (the last is told)."""
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in allowed and not (prefix and name.startswith(prefix)):
            raise invalid(f"?{name}", f"unknown query parameter; known are {', '.join(allowed)}")
        if name in found and name != repeated:
            raise invalid(f"?{name}", "given more than once")
        found[name] = value
    return found


def integer(parameters: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    """A query parameter as a whole number within bounds. Raises RefusedError."""
    text = parameters.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
        where = name if name[0].isupper() else f"?{name}"  # a header, or a parameter
        raise invalid(where, f"must be a whole number from {low} to {high}")
    return int(text)


def wait_s(parameters: Mapping[str, str]) -> int:
    """The `?wait=` of a long poll, 0 when there is none."""
    return integer(parameters, "wait", 0, low=0, high=MAX_WAIT_S)


def preferred_wait_s(request: web.Request) -> int:
    """The `Prefer: wait=N` of a request, at most 60; a preference that is no number is ignored (RFC 7240)."""
    match = _PREFER_WAIT.search(request.headers.get("Prefer", ""))
    return min(int(match[1]), MAX_WAIT_S) if match else 0


def page_of(parameters: Mapping[str, str], prefix: str) -> tuple[int, str | None]:
    """`limit` and `after` of a list whose cursors are ids with this prefix."""
    after = parameters.get("after")
    if after is not None and not is_id(prefix, after):
        raise invalid("?after", "is no cursor of this list")
    return page_size(parameters), after


def page_size(parameters: Mapping[str, str]) -> int:
    """`limit` of a list. Raises RefusedError."""
    return integer(parameters, "limit", DEFAULT_LIMIT, low=1, high=MAX_LIMIT)


def page_answer(
    request: web.Request, rows: Sequence[Any], cursor: str | None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A page of a list; `cursor` is where the next begins, None at the end."""
    headers = dict(headers or {})
    if cursor is not None:
        target = request.rel_url.update_query(after=cursor)
        headers["Link"] = f'<{target}>; rel="next"'
    return answer({"data": rows, "hasMore": cursor is not None, "next": cursor}, headers=headers)


def idempotency(request: web.Request, body: bytes) -> tuple[str | None, str | None]:
    """(digest of method, path and key; hash of the body), or (None, None) when no Idempotency-Key was sent."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None, None
    if not 1 <= len(key) <= 255:
        raise RefusedError("malformed_request", "An Idempotency-Key has 1 to 255 characters.")
    return digest_of(f"{request.method} {request.path}", key, body)


def digest_of(call: str, key: str | None, body: bytes) -> tuple[str | None, str | None]:
    """As `idempotency`, for a call that is named here."""
    if key is None:
        return None, None
    digest = hashlib.sha256(f"{call} {key}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:40], hashlib.sha256(body).hexdigest()


def etag_of(body: bytes) -> str:
    """A strong validator of a representation."""
    return f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this validator (weak comparison, RFC 9110 13.1.2)."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return etag in [part.strip().removeprefix("W/") for part in header.split(",")]


def trace_of(request: web.Request) -> TraceContext | None:
    """The W3C trace context that the client sent; one that has not its form is dropped, as the standard says."""
    if TRACEPARENT not in request.headers:
        return None
    return context_of(request.headers.getall(TRACEPARENT), request.headers.getall(TRACESTATE, ()))


def _accepted(request: web.Request) -> set[str]:
    """The media ranges of the Accept header whose weight is not zero."""
    found = set()
    for part in request.headers.get("Accept", "").split(","):
        name, *parameters = [piece.strip().lower() for piece in part.split(";")]
        weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        if name and weight.strip("0.") != "":
            found.add(name)
    return found


def accepts(request: web.Request, media_type: str) -> bool:
    """Whether the Accept header takes this type (or there is no such header)."""
    if not request.headers.get("Accept"):
        return True
    return bool(_accepted(request) & {media_type, f"{media_type.partition('/')[0]}/*", "*/*"})


def asks_for(request: web.Request, media_type: str) -> bool:
    """Whether the client asks for this type by name."""
    return media_type in _accepted(request)


def asks_for_stream(request: web.Request) -> bool:
    """Whether the client asks for Server-Sent Events by name."""
    return asks_for(request, "text/event-stream")
