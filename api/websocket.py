"""`GET /api/ws`: many jobs on one socket. The same objects as over HTTP.

One pump per socket sends the events of all its jobs. What waits for a slow reader is bounded for the whole socket; a
job that is over the bound goes back to its log, a page at a time, and one that is hopelessly behind gets a `gap`.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any, Final

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Meta

from api.auth import principal_of, require
from api.handlers.jobs import check, events_place, first_view, row_of, take_in
from api.keys import AUDIENCE, EVENTS, HUB, JOBS, PRINCIPAL, REQUEST_ID, SESSIONS, SETTINGS, SOCKETS, TELLER
from api.live import OUTAGE_S, Budget, Closing, Feed, Frame, Gap, ReplayEnd
from api.pinning import NOTHING
from api.problems import problem_of
from api.server import EdgeHandler
from api.sse import STALLED_S, bound_unsent
from api.wire import digest_of
from shared.clock import monotonic_s
from shared.codec import decode_body
from shared.errors import RefusedError
from shared.events import Event
from shared.jobs import view_of
from shared.log import get_logger
from shared.metrics import REDIS_OUTAGES, STREAM_GAPS, STREAMS_OPEN, STREAMS_OPENED
from shared.redis import OUTAGE
from shared.scope import SCOPE, entered, note
from shared.scope import Scope as TraceScope
from shared.specs import PublicJob, Wire
from shared.tenants import Scope
from shared.trace_context import context_of

log = get_logger()

PING_S: Final = 20.0
UNKNOWN_BYTES: Final = 256 * 1024  # largest frame of a socket that authenticates by its first one
MAX_UNKNOWN: Final = 256  # sockets of a process that may wait for that
AUTH_S: Final = 10.0  # the first frame of a socket without a header must have come by then
CLOSE_S: Final = 2.0
FRAMES_PER_S: Final = 200.0  # that one socket may send; what comes faster is read later, and waits at the client
FRAMES_AT_ONCE: Final = 400.0
MAX_JOBS: Final = 1_000  # that one socket follows
MAX_LAG: Final = 10_000  # events that a reader may be behind before it gets a gap

Ref = Annotated[str, Meta(min_length=1, max_length=128)] | int
JobId = Annotated[str, Meta(max_length=64)]


class Auth(Wire, frozen=True, tag="auth", tag_field="op"):
    """First frame of a browser, which cannot send a header."""

    key: str
    ref: Ref | None = None


class Submit(Wire, frozen=True, tag="submit", tag_field="op"):
    """As POST /api/jobs; `idempotencyKey`, `traceparent` and `tracestate` as its headers (the last two default to those
    of the socket)."""

    ref: Ref
    job: PublicJob
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    traceparent: Annotated[str, Meta(max_length=512)] | None = None
    tracestate: Annotated[str, Meta(max_length=8_192)] | None = None


class Subscribe(Wire, frozen=True, tag="subscribe", tag_field="op"):
    """Sends the job's events above `after`, to the final one."""

    ref: Ref
    job_id: JobId
    after: Annotated[int, Meta(ge=0, le=10**15)] = 0


class Unsubscribe(Wire, frozen=True, tag="unsubscribe", tag_field="op"):
    """Sends no more of them."""

    ref: Ref
    job_id: JobId


class Cancel(Wire, frozen=True, tag="cancel", tag_field="op"):
    """As DELETE /api/jobs/{id}."""

    ref: Ref
    job_id: JobId


class Input(Wire, frozen=True, tag="input", tag_field="op"):
    """As POST /api/jobs/{id}/input."""

    ref: Ref
    job_id: JobId
    request_id: Annotated[str, Meta(min_length=1, max_length=256)]
    value: Any


Operation = Auth | Submit | Subscribe | Unsubscribe | Cancel | Input


class _Named(msgspec.Struct):
    ref: Any = None


class Pace:
    """A token bucket for what a client sends."""

    def __init__(self) -> None:
        self._left = FRAMES_AT_ONCE
        self._at_s = monotonic_s()

    def wait_s(self) -> float:
        """Takes one frame; how long to wait before it is served."""
        now = monotonic_s()
        self._left = min(FRAMES_AT_ONCE, self._left + (now - self._at_s) * FRAMES_PER_S) - 1
        self._at_s = now
        return max(0.0, -self._left / FRAMES_PER_S)


class Member:
    """One job that the socket follows."""

    __slots__ = ("feed", "job_id", "stack")

    def __init__(self, job_id: str, feed: Feed, stack: AsyncExitStack) -> None:
        self.job_id = job_id
        self.feed = feed
        self.stack = stack


async def socket(request: web.Request) -> web.StreamResponse:
    """GET /api/ws."""
    has_key = PRINCIPAL in request
    waiting = sum(not socket.is_known for socket in request.app[SOCKETS])
    if not has_key and waiting >= MAX_UNKNOWN:
        raise RefusedError("unavailable", "Too many sockets wait for their auth frame; send the Authorization header.")
    most_bytes = request.app[SETTINGS].max_body_bytes if has_key else UNKNOWN_BYTES
    # Pings are our own: aiohttp's take a reader for dead whose pong stands behind a long backlog.
    upgrade = web.WebSocketResponse(autoping=False, timeout=CLOSE_S, compress=False, max_msg_size=most_bytes)
    if not upgrade.can_prepare(request).ok:
        raise RefusedError(
            "malformed_request", "This resource is a WebSocket: send `Upgrade: websocket`.", headers={"Allow": "GET"}
        )
    bound_unsent(request.transport.get_extra_info("socket") if request.transport is not None else None)
    await upgrade.prepare(request)
    await Socket(request, upgrade).run()
    return upgrade


class Socket:
    """One open WebSocket."""

    def __init__(self, request: web.Request, upgrade: web.WebSocketResponse) -> None:
        self._request = request
        self._socket = upgrade
        self._members: dict[str, Member] = {}
        self._ready: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._budget = Budget()
        self._closing: asyncio.Task[Any] | None = None
        self._heard = False

    async def run(self) -> None:
        """Serves until either side closes."""
        sockets = self._request.app[SOCKETS]
        sockets.add(self)
        handler = self._request.protocol
        assert isinstance(handler, EdgeHandler)
        tasks = [
            asyncio.create_task(self._pump(), name="socket-pump"),
            asyncio.create_task(self._ping(), name="socket-ping"),
        ]
        STREAMS_OPEN.labels("websocket").inc()
        STREAMS_OPENED.labels("websocket", "no").inc()
        try:
            if self._request.app[HUB].closing:
                self.end(WSCloseCode.SERVICE_RESTART, "this process is stopping")
            if PRINCIPAL not in self._request and not await self._authenticate():
                return
            with self._request.app[SESSIONS].open(self._request[PRINCIPAL].presented, self._key_ended):
                pace = Pace()
                async for message in self._socket:
                    self._heard = True
                    if (wait_s := pace.wait_s()) > 0:
                        await asyncio.sleep(wait_s)
                    if message.type is WSMsgType.PING:
                        await self._socket.pong(message.data)
                    elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                        await self._receive(message.data)
        except ConnectionError:
            pass  # the client went away, which is its right
        finally:
            STREAMS_OPEN.labels("websocket").dec()
            sockets.discard(self)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for job_id in list(self._members):
                await self._leave(job_id)
            await self._close(WSCloseCode.OK, b"")
            if self._closing is not None:
                await asyncio.wait([self._closing])

    def end(self, code: int, reason: str) -> None:
        """Closes the socket from outside."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(code, reason.encode()), name="socket-close")

    async def _close(self, code: int, reason: bytes) -> None:
        """Says goodbye; to a client that does not read, without waiting for it."""
        if self._backlog == 0:
            try:
                async with asyncio.timeout(CLOSE_S + 1):
                    await self._socket.close(code=code, message=reason)
                return
            except TimeoutError:
                pass
        if (transport := self._request.transport) is not None:
            transport.abort()

    @property
    def is_known(self) -> bool:
        """Whether it has shown its key."""
        return PRINCIPAL in self._request

    @property
    def _backlog(self) -> int:
        """Bytes that the client has not taken."""
        transport = self._request.transport
        return 0 if transport is None else transport.get_write_buffer_size()

    def _key_ended(self) -> None:
        self.end(WSCloseCode.POLICY_VIOLATION, "the key has ended")

    async def _ping(self) -> None:
        """Asks for a sign of life, and lets go of a client that gives none: it neither says nor takes anything."""
        silent_s, backlog = 0.0, 0
        while True:
            await asyncio.sleep(PING_S)
            if self._heard or self._backlog != backlog:
                silent_s = 0.0
            else:
                silent_s += PING_S
            self._heard, backlog = False, self._backlog
            if silent_s >= STALLED_S:
                if (transport := self._request.transport) is not None:
                    transport.abort()
                return
            if not backlog:
                with suppress(ConnectionError):
                    await self._socket.ping()

    # -- what the client says ------------------------------------------------------------------------------------

    async def _authenticate(self) -> bool:
        try:
            async with asyncio.timeout(AUTH_S):
                message = await self._socket.receive()
        except TimeoutError:
            await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"no auth frame came")
            return False
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return False
        ref = None
        try:
            operation, ref = _read(message.data)
            if not isinstance(operation, Auth):
                raise RefusedError("unauthenticated", 'The first frame must be {"op": "auth", "key": "ek_…"}.')
            principal = self._request[PRINCIPAL] = await principal_of(self._request, f"Bearer {operation.key}")
            note(tenant=principal.tenant)
            require(self._request[PRINCIPAL], Scope.JOBS)
        except (RefusedError, *OUTAGE) as error:
            await self._answer(getattr(error, "ref", ref), error)
            code = WSCloseCode.POLICY_VIOLATION if isinstance(error, RefusedError) else WSCloseCode.TRY_AGAIN_LATER
            await self._socket.close(code=code, message=b"not authenticated")
            return False
        await self._answer(ref, {"keyId": self._request[PRINCIPAL].key_id})
        return True

    async def _receive(self, data: str | bytes) -> None:
        ref = None
        outcome: Any
        try:
            operation, ref = _read(data)
            outcome = await self._perform(operation)
        except (RefusedError, *OUTAGE) as error:
            outcome, ref = error, getattr(error, "ref", ref)
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("socket.operation_crashed")
            outcome = RefusedError("internal", f"A defect of ours ({type(error).__name__}); the log has it.")
        await self._answer(ref, outcome)
        if isinstance(outcome, Member):
            self._news(outcome.job_id)

    async def _perform(self, operation: Operation) -> Any:
        request = self._request
        jobs, tenant = request.app[JOBS], request[PRINCIPAL].tenant
        match operation:
            case Auth():
                raise RefusedError("conflict", "This socket is authenticated already.")
            case Submit(job=job, idempotency_key=key):
                digest, body_hash = digest_of("POST /api/jobs", key, msgspec.json.encode(job))
                chosen = NOTHING
                if not await jobs.was_answered(tenant, digest, body_hash):
                    chosen = await check(request, job, root="$.job")
                with entered(_scope_of(operation)):
                    admitted = await take_in(request, job, digest, body_hash, chosen=chosen)
                return await first_view(request, job, admitted, chosen)
            case Subscribe(job_id=job_id, after=after):
                return await self._join(job_id, after)
            case Unsubscribe(job_id=job_id):
                if job_id not in self._members:
                    raise RefusedError("not_found", f"This socket does not follow {job_id!r}.")
                await self._leave(job_id)
                return {"jobId": job_id}
            case Cancel(job_id=job_id):
                await jobs.cancel(tenant, job_id)
                return view_of(await jobs.view(tenant, job_id))
            case Input(job_id=job_id, request_id=request_id, value=value):
                await jobs.answer(tenant, job_id, request_id, value)
                return view_of(await jobs.view(tenant, job_id))

    async def _answer(self, ref: Any, outcome: Any) -> None:
        if isinstance(outcome, RefusedError):
            reply = {"ref": ref, "problem": problem_of(outcome, self._request[REQUEST_ID])}
        elif isinstance(outcome, Exception):
            REDIS_OUTAGES.labels("api").inc()
            refusal = RefusedError("unavailable", "Redis cannot be reached just now; nothing was lost.")
            reply = {"ref": ref, "problem": problem_of(refusal, self._request[REQUEST_ID])}
        else:
            shown = {"jobId": outcome.job_id} if isinstance(outcome, Member) else outcome
            reply = {"ref": ref, "ok": shown}
        await self._send(msgspec.json.encode(reply))

    # -- what the jobs say ---------------------------------------------------------------------------------------

    async def _join(self, job_id: str, after: int) -> Any:
        app = self._request.app
        row = await row_of(self._request, job_id)
        if job_id in self._members:
            await self._leave(job_id)
        elif len(self._members) >= MAX_JOBS:
            raise RefusedError("conflict", f"One socket follows at most {MAX_JOBS} jobs; unsubscribe from some.")
        place = events_place(row, after)
        if place is None:
            return {"jobId": job_id}  # it has the final event: nothing follows
        async with AsyncExitStack() as stack:
            stack.enter_context(app[AUDIENCE].listener(job_id, row.number("grace_ms")))
            stack.enter_context(app[TELLER].reader(job_id))
            live = await stack.enter_async_context(app[HUB].subscribe(job_id, lambda: self._news(job_id), self._budget))
            feed = Feed(live, app[EVENTS], job_id, place, MAX_LAG)
            member = self._members[job_id] = Member(job_id, feed, stack.pop_all())
        return member

    async def _leave(self, job_id: str) -> None:
        self._ready.pop(job_id, None)
        if (member := self._members.pop(job_id, None)) is not None:
            await member.stack.aclose()

    def _news(self, job_id: str) -> None:
        self._ready[job_id] = None
        self._wake.set()

    async def _pump(self) -> None:
        """Sends what the jobs say, one page of one job at a time."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._ready:
                    job_id = next(iter(self._ready))
                    del self._ready[job_id]
                    if (member := self._members.get(job_id)) is not None:
                        await self._send_news(member)
        except ConnectionError:
            self.end(WSCloseCode.GOING_AWAY, "the client stood still")
        except Exception:
            log.exception("socket.pump_crashed")
            self.end(WSCloseCode.INTERNAL_ERROR, "a defect of ours")

    async def _send_news(self, member: Member) -> None:
        try:
            frames = await member.feed.step()
        except OUTAGE:
            REDIS_OUTAGES.labels("api").inc()
            asyncio.get_running_loop().call_later(OUTAGE_S, self._news, member.job_id)
            return
        for frame in frames:
            for data in _encode(member.job_id, frame):
                if self._members.get(member.job_id) is not member:
                    return  # left meanwhile, or joined anew
                await self._send(data)
            if isinstance(frame, list) and any(event.type == "job.queued" for event in frame):
                self._request.app[TELLER].queued(member.job_id)
        if self._members.get(member.job_id) is not member:
            return
        if member.feed.done:
            await self._leave(member.job_id)
        elif frames:
            self._news(member.job_id)

    async def _send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(STALLED_S):
                await self._socket.send_str(data.decode())
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client stood still") from None


def _scope_of(submit: Submit) -> TraceScope:
    """The socket's own, but in the trace that the frame names: one socket serves many traces."""
    around = SCOPE.get() or TraceScope({})
    named = context_of([submit.traceparent], [submit.tracestate or ""]) if submit.traceparent else None
    return TraceScope(around.fields, named or around.trace)


def _read(data: str | bytes) -> tuple[Operation, Any]:
    """A frame's operation and its ref. Raises RefusedError, to which the frame's ref is tied where it could be read."""
    body = data.encode() if isinstance(data, str) else data
    ref = None
    with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        ref = msgspec.json.decode(body, type=_Named).ref
    try:
        operation: Operation = decode_body(body, Operation)
    except RefusedError as error:
        raise RefusedFrameError(error, ref) from None
    return operation, ref


class RefusedFrameError(RefusedError):
    """The refusal of a frame that could not be read whole."""

    def __init__(self, error: RefusedError, ref: Any) -> None:
        super().__init__(error.code, error.detail, errors=error.errors)
        self.ref = ref


def _encode(job_id: str, frame: Frame) -> list[bytes]:
    head = b'{"jobId":"' + job_id.encode() + b'",'
    match frame:
        case list():
            return [head + _members(event) for event in frame]
        case Gap(first, last):
            STREAM_GAPS.inc()
            return [head + b'"type":"gap","from":%d,"to":%d}' % (first, last)]
        case ReplayEnd():
            return [head + b'"type":"replay.end"}']
        case Closing():
            return []


def _members(event: Event) -> bytes:
    return event.to_json()[1:]
