"""One attempt: perform → judge → settle, as small steps. The claim was made by the engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Final

import msgspec

from shared.clock import monotonic_s
from shared.errors import (
    InternalError,
    JobError,
    JobTimeout,
    LeaseLostError,
    NeedsInput,
    OverLimit,
    UnreadableError,
)
from shared.ids import id_time_ms
from shared.log import get_logger
from shared.metrics import ATTEMPT_SECONDS, ATTEMPTS_SETTLED, JOB_SECONDS, LEASES_LOST
from shared.prompts import pins_of
from shared.scope import REQUEST, SCOPE, Scope, entered
from shared.semconv import OUTCOME, job_processed
from shared.specs import JOB_TYPES
from shared.stores.events import EventsStore
from shared.stores.jobs import Claimed, Settlement
from shared.trace_context import TraceContext, context_of
from shared.tracing import OpenSpan, begin, is_on
from worker.context import Deps, JobContext
from worker.journal import Journal
from worker.outcome import (
    Cancelled,
    Complete,
    Ending,
    Failed,
    HandedBack,
    LeftToNewer,
    Outcome,
    RetryAfter,
    WaitForInput,
    WaitForLimit,
    judge,
)
from worker.report import Report
from worker.scribe import Scribe
from worker.settler import Settler
from worker.wording import Wording

log = get_logger()

FINAL: Final = frozenset({"complete", "failed", "cancelled"})
ENDED_WELL: Final = frozenset({"complete", "input", "budget", "delay", "handback"})

Handler = Callable[[Any, JobContext], Awaitable[Any]]


class Attempt:
    """A running attempt: what the engine holds to stop it.

    `on_performed` is called when the task has ended (its slot is free), `on_ended` when the attempt is settled, or
    lost, and nothing more is written for it.
    """

    def __init__(
        self,
        claimed: Claimed,
        worker: str,
        handler: Handler,
        events: EventsStore,
        scribe: Scribe,
        settler: Settler,
        deps: Deps,
        *,
        on_performed: Callable[[Attempt], None],
        on_ended: Callable[[Attempt], None],
    ) -> None:
        self.claimed = claimed
        self._handler = handler
        self._settler = settler
        self._deps = deps
        self._on_performed = on_performed
        self._on_ended = on_ended
        self._journal = Journal(events, claimed, worker)
        self._report = Report(scribe, claimed, self.lose)
        self._context = JobContext(claimed, deps, self._journal, self._report)
        self._task: asyncio.Task[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._span = _span_of(claimed) if is_on() else None
        self._scope = _scope_of(claimed, self._span)
        self._started_s = 0.0
        self._ending: Ending = "done"
        self._timed_out = False
        self._lost = False
        self._finished = False
        self._upstream_open = False
        self._tokens_at_stop = 0

    # -- from outside --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the task."""
        self._started_s = monotonic_s()
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._call(), name=self.claimed.job_id)
        self._task.add_done_callback(self._performed)
        self._context.ends_s = self._started_s + self.claimed.timeout_s
        self._timer = loop.call_later(self.claimed.timeout_s, self._time_out)

    def seen(self) -> list[tuple[str, int]]:
        """Output tokens of the model calls under way, by call id."""
        return self._context.seen()

    def cancel(self) -> None:
        """A client asked for the end: closes the model's connections."""
        self._stop("cancelled")

    def hand_back(self) -> None:
        """This worker is stopping."""
        self._stop("shutdown")

    def abandon(self) -> None:
        """This worker can wait no longer: the lease runs out, and another takes the job."""
        self._lost = True
        self._stop(self._ending)
        self._finish("lost", "")

    def lose(self) -> None:
        """The lease is lost: stops, and writes nothing more. One that has ended is told so by its settlement."""
        if not self._lost and self._task is not None and not self._task.done():
            self._lost = True
            LEASES_LOST.inc()
            self._stop(self._ending)

    def _stop(self, ending: Ending) -> None:
        # A cancellation outranks a shutdown that is under way, not the other way round.
        if self._ending != "cancelled":
            self._ending = ending
        if self._task is not None and not self._task.done():
            self._upstream_open = self._upstream_open or bool(self._context.open_calls)
            self._tokens_at_stop = self._tokens_at_stop or self._context.tokens
            self._task.cancel()

    def _time_out(self) -> None:
        if self._task is not None and not self._task.done():
            self._timed_out = True
            self._task.cancel()

    # -- perform -------------------------------------------------------------------------------------------------

    async def _call(self) -> bytes:
        SCOPE.set(self._scope)  # of this task alone: it has a context of its own
        try:
            job = _DECODERS[self.claimed.type](self.claimed.spec)
        except (msgspec.DecodeError, KeyError) as error:
            raise UnreadableError(f"This worker's release cannot read the job: {error}") from None
        pins = pins_of(self.claimed.pins)
        self._context.wording = Wording(self.claimed.type, pins, job.prompt, self._deps.versions)
        result = await self._handler(job.input, self._context)
        await self._report.flush()
        return _encode(result)

    def _performed(self, task: asyncio.Task[bytes]) -> None:
        """The task has ended, however it did: judge, then settle."""
        if self._timer is not None:
            self._timer.cancel()
        self._on_performed(self)
        result, error = self._what_it_came_to(task)
        if self._ending == "shutdown" and (result is not None or error is not None):
            self._ending = "done"  # it came to its end before the shutdown reached it
        if self._lost:
            self._finish("lost", "")
            return
        outcome = judge(
            self._ending,
            error,
            attempt=self.claimed.attempt,
            max_attempts=self.claimed.max_attempts,
            settings=self._deps.settings,
            chance=random.random(),  # noqa: S311 - jitter
        )
        if self._report.is_clean:
            self._settle(outcome, result)
        else:
            self._flushing = asyncio.get_running_loop().create_task(self._flush_and_settle(outcome, result))

    def _what_it_came_to(
        self, task: asyncio.Task[bytes]
    ) -> tuple[bytes | None, JobError | NeedsInput | OverLimit | UnreadableError | None]:
        """The task's result as JSON, or its error. Whoever stopped the task is noted in `_ending`."""
        stopped = self._ending != "done" or self._lost
        if task.cancelled():
            if stopped:
                return None, None
            if self._timed_out:
                return None, JobTimeout(f"The attempt took longer than {self.claimed.timeout_s:g} s.")
            return None, InternalError("the task was cancelled from within")
        error = task.exception()
        if error is None:
            return task.result(), None
        if isinstance(error, LeaseLostError):
            self._lost = True
            return None, None
        if self._timed_out and not stopped:
            return None, JobTimeout(f"The attempt took longer than {self.claimed.timeout_s:g} s.")
        if isinstance(error, JobError | NeedsInput | OverLimit | UnreadableError):
            return None, error
        with entered(self._scope):
            log.error("attempt.crashed", type=self.claimed.type, exc_info=error)
        return None, InternalError(f"A defect of ours ({type(error).__name__}); the worker's log has the details.")

    # -- settle --------------------------------------------------------------------------------------------------

    async def _flush_and_settle(self, outcome: Outcome, result: bytes | None) -> None:
        SCOPE.set(self._scope)
        try:
            await self._report.flush()
        except LeaseLostError:
            pass
        except Exception:
            # A defect: the outcome counts all the same.
            log.exception("report.failed")
        if self._lost:
            self._finish("lost", "")
        else:
            self._settle(outcome, result)

    def _settle(self, outcome: Outcome, result: bytes | None) -> None:
        """Hands the outcome to the settler, which waits for Redis as long as it takes."""
        job, lease = self.claimed.job_id, self.claimed.lease
        code = ""
        match outcome:
            case Complete():
                settlement = Settlement(job, lease, "complete", result=(result or b"null").decode())
            case Failed(error):
                code = str(error["code"])
                settlement = Settlement(job, lease, "failed", error=_encode(error).decode())
            case RetryAfter(error, delay_s):
                code = str(error["code"])
                settlement = Settlement(
                    job, lease, "retry", error=_encode(error).decode(), delay_ms=round(delay_s * 1000)
                )
            case WaitForInput(waiting):
                settlement = Settlement(job, lease, "input", waiting=_encode(waiting).decode())
            case WaitForLimit():
                delay_ms = None if outcome.delay_s is None else round(outcome.delay_s * 1000)
                settlement = Settlement(
                    job,
                    lease,
                    "delay" if outcome.kind == "rate" else "budget",
                    error=_encode(outcome.error).decode(),
                    waiting=_encode(outcome.waiting).decode(),
                    delay_ms=delay_ms,
                    due_ms=outcome.due_ms,
                    revision=outcome.revision,
                    held=outcome.is_held,
                )
            case Cancelled():
                settlement = Settlement(
                    job,
                    lease,
                    "cancelled",
                    upstream_closed=self._upstream_open,
                    tokens_at_request=self._tokens_at_stop,
                )
            case LeftToNewer(error, delay_s):
                log.warning("job.unreadable", job=job, type=self.claimed.type, error=error["message"])
                settlement = Settlement(
                    job,
                    lease,
                    "delay",
                    error=_encode(error).decode(),
                    delay_ms=round(delay_s * 1000),
                    reason="release",
                )
            case HandedBack():
                settlement = Settlement(job, lease, "handback")
        self._settler.put(settlement, lambda state: self._settled(settlement.outcome, code, state))

    def _settled(self, outcome: str, code: str, state: str) -> None:
        if state in ("lost", "broken"):
            LEASES_LOST.inc()
            outcome, code = "lost", ""
        self._finish(outcome, code)

    def _finish(self, outcome: str, code: str) -> None:
        if self._finished:
            return
        self._finished = True
        claimed, seconds = self.claimed, monotonic_s() - self._started_s
        _attempt_seconds(claimed.type).observe(seconds)
        _attempts_settled(claimed.type, outcome, code).inc()
        if outcome in FINAL:
            # By Redis's clock, as the job's id and its claim: the attempt's own time is added.
            lived_s = (claimed.claimed_ms - id_time_ms(claimed.job_id)) / 1000 + seconds
            _job_seconds(claimed.type, outcome).observe(max(0.0, lived_s))
        if self._span is not None:
            self._span.set({OUTCOME: outcome})
            self._span.end(code or (None if outcome in ENDED_WELL else outcome))
        log.info(
            "attempt.settled" if outcome != "lost" else "lease.lost",
            **self._scope.logged(),
            type=claimed.type,
            lease=claimed.lease,
            outcome=outcome,
            code=code or None,
            ms=round(seconds * 1000, 1),
            waited_ms=claimed.claimed_ms - claimed.queued_ms,
            tokens=self._journal.tokens_spent - claimed.tokens_used,
            traceparent=claimed.traceparent or None,
        )
        self._on_ended(self)


def _span_of(claimed: Claimed) -> OpenSpan | None:
    """A first attempt belongs to the trace of the request that made the job. Later ones may come days after: each has a
    trace of its own, with a link."""
    name, attributes = job_processed(
        claimed.lane,
        claimed.type,
        job_id=claimed.job_id,
        tenant=claimed.tenant,
        attempt=claimed.attempt,
        run=claimed.run,
        waited_ms=max(0, claimed.claimed_ms - claimed.queued_ms),
        request_id=claimed.request,
    )
    made_in = _trace_of(claimed)
    if claimed.attempt == 1:
        return begin(name, "consumer", attributes, parent=made_in)
    return begin(name, "consumer", attributes, parent=None, link=made_in)


def _scope_of(claimed: Claimed, span: OpenSpan | None) -> Scope:
    fields: dict[str, Any] = {"job": claimed.job_id, "tenant": claimed.tenant, "attempt": claimed.attempt}
    if claimed.request:
        fields[REQUEST] = claimed.request
    return Scope(fields, _trace_of(claimed) if span is None else span.trace)


def _trace_of(claimed: Claimed) -> TraceContext | None:
    # Looked at once more: a damaged record, or one of a release that took more, must not end the worker.
    return context_of([claimed.traceparent], [claimed.tracestate]) if claimed.traceparent else None


_DECODERS: Final = {name: msgspec.json.Decoder(kind).decode for name, kind in JOB_TYPES.items()}
_encode: Final = msgspec.json.Encoder().encode
# Looking a labelled metric up costs more than counting.
_attempt_seconds: Final = cache(ATTEMPT_SECONDS.labels)
_attempts_settled: Final = cache(ATTEMPTS_SETTLED.labels)
_job_seconds: Final = cache(JOB_SECONDS.labels)
