"""A chat's answer on the wire: the text of its job as plain frames, or whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from aiohttp import web

from api.admission import START_S
from api.keys import EVENTS, HUB, JOBS, PRINCIPAL, REQUEST_ID
from api.live import Closing, Feed, Frame, Gap, follow
from api.problems import problem_of
from api.sse import COME_BACK, DONE, HEARTBEAT_S, EventStream, listening
from shared.clock import monotonic_s
from shared.errors import RefusedError
from shared.events import Event, one_line
from shared.ids import is_id
from shared.jobs import JobRow, JobStatus, LimitDetail, retry_after_s
from shared.limits import Why, members_of, rate_refused, retry_headers
from shared.metrics import STREAM_GAPS
from shared.problems import PROBLEMS

# A chat that fails before its first text is answered with a status, if that comes so soon; later with an event.
OPEN_S: Final = 1.0


def place_of(job_id: str, seq: int) -> str:
    """The opaque id of a frame: the job, and the number of its event."""
    return f"{job_id}.{seq}"


def parse_place(text: str) -> tuple[str, int]:
    """Job and event number of a frame's id. Raises RefusedError."""
    job_id, _, number = text.partition(".")
    if not is_id("job", job_id) or not number.isascii() or not number.isdigit() or len(number) > 15:
        message = "must be the id of a frame of a chat's stream"
        raise RefusedError("invalid_request", f"Last-Event-ID: {message}", errors=(("Last-Event-ID", message),))
    return job_id, int(number)


def failure_of(error: dict[str, Any]) -> RefusedError:
    """A job's error as a problem."""
    code = str(error.get("code")).replace("invalid_input", "invalid_request")
    limit, wait_ms = error.get("limit"), error.get("retryAfterMs")
    headers = retry_headers(wait_ms / 1000) if wait_ms is not None else {"x-should-retry": "false"} if limit else None
    return RefusedError(
        code if code in PROBLEMS else "internal",
        str(error.get("message", "")),
        headers=headers,
        members=members_of(msgspec.convert(limit, LimitDetail)) if limit else None,
    )


def not_taken(row: JobRow | None = None, why: Why | None = None) -> RefusedError:
    """The chat was not begun in time; `row` is its job while it still waited, `why` what its token rate says."""
    if why is not None:
        return rate_refused(why)
    reason = "No interactive worker took the chat"
    if row is not None and row.outlook is not None and row.outlook.waiting_on == "tenantConcurrency":
        reason = "The tenant runs as many jobs as its maxConcurrentJobs allows; the chat was not begun"
    wait_s = retry_after_s(row) if row is not None else None
    return RefusedError(
        "unavailable",
        f"{reason} within {START_S:g} s; nothing was sent to the model.",
        headers={"Retry-After": str(wait_s or 2)},
    )


class Answer:
    """Reads the feed of a chat's job: what of it is text, and how it ends."""

    def __init__(self, job_id: str, after: int = 0) -> None:
        """`after`: the reader has the text up to this event."""
        self._job_id = job_id
        self._final: Event | None = None
        self.has_spoken = after > 0
        self.started = after > 0
        self.problem: RefusedError | None = None  # why there will be no more text
        self.is_closing = False  # this process is stopping; the chat goes on

    def read(self, frames: list[Frame]) -> bytes:
        """The frames of text for these frames of the feed; nothing more once there is a problem."""
        out: list[bytes] = []
        for frame in frames:
            match frame:
                case Closing():
                    self.is_closing = True
                case Gap():
                    STREAM_GAPS.inc()
                    self.problem = RefusedError("gone", "The beginning of this answer is not kept any more.")
                case list():
                    for event in frame if self.has_spoken else _last_run(frame):
                        self._event(event, out)
        return b"".join(out)

    def _event(self, event: Event, out: list[bytes]) -> None:
        self._final = event if event.is_final else None
        if event.type == "delta":
            self.started = True
            if self.problem is not None:
                return
            self.has_spoken = True
            # `data` is {"text":"…"} as the worker wrote it.
            place = place_of(self._job_id, event.seq).encode()
            out.append(b'id: %s\ndata: {"text": %s\n\n' % (place, one_line(event.data)[8:]))
        elif event.type == "job.started":
            self.started = True
        elif event.type == "job.queued" and (b'"rateLimit"' in event.data or b'"release"' in event.data):
            self.started = False  # a worker had begun it: its token rate had no room, or its release cannot read it
        elif event.type == "attempt.restarted" and self.has_spoken:
            self.problem = RefusedError("worker_lost", "The answer was begun anew; what was sent before is void.")

    def end(self) -> RefusedError | None:
        """How it ended, when its feed has: the problem, or None for a whole answer."""
        if self.problem is not None or self._final is None:
            return self.problem
        match self._final.type:
            case "job.failed":
                return failure_of(msgspec.json.decode(self._final.data)["error"])
            case "job.cancelled":
                return RefusedError("cancelled", "The chat was cancelled.")
            case "job.expired":
                return not_taken()
        return None


def _last_run(events: list[Event]) -> list[Event]:
    """Without the text that a restart has made void, as long as none of it was sent."""
    for at in range(len(events) - 1, -1, -1):
        if events[at].type == "attempt.restarted":
            return [event for event in events[:at] if event.type != "delta"] + events[at + 1 :]
    return events


def naming(job_id: str) -> dict[str, str]:
    """The headers that name the job behind a chat."""
    return {"X-Job-Id": job_id, "Location": f"/api/jobs/{job_id}"}


@contextmanager
def named(job_id: str) -> Iterator[None]:
    """A refusal names the job too: a client may come back to it, and need not pay for another."""
    try:
        yield
    except RefusedError as error:
        error.headers = {**naming(job_id), **error.headers}
        raise


async def answer_stream(
    request: web.Request,
    job_id: str,
    grace_ms: int,
    *,
    after: int = 0,
    headers: dict[str, str],
    reader: Callable[[str, int], Answer] = Answer,
) -> web.StreamResponse:
    """The text of a chat above event `after` as frames, then `[DONE]`. `grace_ms` is that of its job: 0 for one that
    needs no listener, which is never given up. `reader` says what of its events is sent.

    Raises RefusedError when there is nothing to stream: no worker took it, or it failed before its first text.
    """
    answer = reader(job_id, after)
    stream = EventStream(request, {**headers, **naming(job_id)})
    with named(job_id), listening(request, job_id, grace_ms, resumed=after > 0) as complete:
        async with follow(request.app[HUB], request.app[EVENTS], job_id, after=after) as feed:
            text = b""
            # Whoever holds a ticket only reads.
            if grace_ms and not answer.has_spoken and "ticket" not in request.query:
                text = await _begin(request, answer, feed, job_id)
            await stream.open()
            if not text and not answer.has_spoken:
                # A client that is cut off before the first text comes back to this chat, not with a new one.
                await stream.send(b"id: " + place_of(job_id, 0).encode() + b"\n")
            sent_s = monotonic_s()
            while True:
                if text:
                    await stream.send(text)
                elif monotonic_s() - sent_s >= HEARTBEAT_S:
                    await stream.heartbeat()
                if text or monotonic_s() - sent_s >= HEARTBEAT_S:
                    sent_s = monotonic_s()
                if feed.done or answer.problem is not None:
                    break
                text = answer.read(await feed.next(max(0.0, HEARTBEAT_S - (monotonic_s() - sent_s))))
            if answer.is_closing:
                await stream.send(COME_BACK)
            else:
                if (problem := answer.end()) is not None:
                    shown = msgspec.json.encode(problem_of(problem, request[REQUEST_ID]))
                    await stream.send(b"event: error\ndata: " + shown + b"\n\n")
                await stream.send(DONE)
            complete()
            await stream.close()
    return stream.response


async def _begin(request: web.Request, answer: Answer, feed: Feed, job_id: str) -> bytes:
    """Waits until a worker has begun, and a moment for its first text: until then a refusal has its status. Returns
    the text that there is."""
    text = b""
    start_by_s = monotonic_s() + START_S
    open_at_s = None
    while not text and not feed.done and answer.problem is None:
        if not answer.started:
            open_at_s = None
        elif open_at_s is None:
            open_at_s = monotonic_s() + OPEN_S
        if (left_s := (open_at_s or start_by_s) - monotonic_s()) <= 0:
            if not answer.started:
                await give_up(request, job_id)
            break
        text = answer.read(await feed.next(left_s))
    if not text and not answer.is_closing and (problem := answer.end()) is not None:
        raise problem
    return text


async def give_up(request: web.Request, job_id: str) -> None:
    """Takes back a chat that no worker took. Raises RefusedError, unless one has just taken it."""
    jobs, tenant = request.app[JOBS], request[PRINCIPAL].tenant
    row = await jobs.view(tenant, job_id)
    status, why = await jobs.give_up(tenant, job_id)
    if status in (JobStatus.CANCELLED, JobStatus.EXPIRED):
        raise not_taken(row, why)


async def whole_answer(request: web.Request, job_id: str, grace_ms: int) -> JobRow:
    """The chat's job when it has ended well. Raises RefusedError for every other end."""
    answer = Answer(job_id)
    with named(job_id):
        with listening(request, job_id, grace_ms):
            async with follow(request.app[HUB], request.app[EVENTS], job_id, after=0) as feed:
                deadline = monotonic_s() + START_S
                while not feed.done:
                    left_s = HEARTBEAT_S if answer.started or not grace_ms else deadline - monotonic_s()
                    if left_s <= 0:
                        await give_up(request, job_id)
                        deadline = monotonic_s() + START_S
                        continue
                    answer.read(await feed.next(left_s))
        if answer.is_closing:
            raise RefusedError("unavailable", "This process is stopping; send it again with its Idempotency-Key.")
        answer.problem = None  # a restart or a gap is no matter here: the whole answer is the job's result
        if (problem := answer.end()) is not None:
            raise problem
        return await request.app[JOBS].view(request[PRINCIPAL].tenant, job_id)
