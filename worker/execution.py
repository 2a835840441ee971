"""One attempt: perform → judge → settle, as small steps. The claim was made by the engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

from shared.clock import monotonic_s
from shared.errors import InternalError, InvalidInput, JobError, JobTimeout, LeaseLostError
from shared.log import get_logger
from shared.metrics import ATTEMPT_SECONDS, ATTEMPTS_SETTLED, LEASES_LOST
from shared.redis import OUTAGE
from shared.specs import JOB_TYPES
from shared.stores.events import EventsStore
from shared.stores.jobs import Claimed, JobsStore
from worker.context import Deps, JobContext
from worker.journal import Journal
from worker.outcome import Cancelled, Complete, Ending, Failed, HandedBack, Outcome, RetryAfter, judge
from worker.report import Report

log = get_logger()

Handler = Callable[[Any, JobContext], Awaitable[Any]]

RECONNECT_S = 0.25


class Attempt:
    """A running attempt: what the engine holds to stop it."""

    def __init__(
        self,
        claimed: Claimed,
        worker: str,
        handler: Handler,
        jobs: JobsStore,
        events: EventsStore,
        deps: Deps,
    ) -> None:
        self.claimed = claimed
        self._worker = worker
        self._handler = handler
        self._jobs = jobs
        self._deps = deps
        self._journal = Journal(events, claimed, worker)
        self._report = Report(events, claimed, worker, self.lose)
        self._context = JobContext(claimed, deps, self._journal, self._report)
        self._task: asyncio.Task[bytes] | None = None
        self._ending: Ending = "done"
        self._lost = False
        self._upstream_open = False
        self._tokens_at_stop = 0

    def cancel(self) -> None:
        """A client asked for the end: closes the model's connections."""
        self._stop("cancelled")

    def hand_back(self) -> None:
        """This worker is stopping."""
        self._stop("shutdown")

    def lose(self) -> None:
        """The lease is lost: stops, and writes nothing more."""
        if not self._lost:
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

    def _was_stopped(self) -> bool:
        return self._ending != "done" or self._lost

    async def run(self) -> None:
        """Runs the attempt to its settlement. Never raises for what the task does."""
        started = monotonic_s()
        outcome_name, code = "lost", ""
        try:
            result, error = await self._perform()
            if self._lost:
                return
            outcome = judge(
                self._ending,
                error,
                attempt=self.claimed.attempt,
                max_attempts=self.claimed.max_attempts,
                settings=self._deps.settings,
                chance=random.random(),  # noqa: S311 - jitter
            )
            outcome_name, code = _names(outcome)
            await self._settle(outcome, result)
        except LeaseLostError:
            outcome_name = "lost"
        finally:
            seconds = monotonic_s() - started
            ATTEMPT_SECONDS.labels(self.claimed.type).observe(seconds)
            ATTEMPTS_SETTLED.labels(self.claimed.type, outcome_name, code).inc()
            log.info(
                "attempt.settled" if outcome_name != "lost" else "lease.lost",
                job=self.claimed.job_id,
                tenant=self.claimed.tenant,
                type=self.claimed.type,
                attempt=self.claimed.attempt,
                lease=self.claimed.lease,
                outcome=outcome_name,
                code=code or None,
                ms=round(seconds * 1000, 1),
                waited_ms=self.claimed.claimed_ms - self.claimed.queued_ms,
                tokens=self._journal.tokens_spent - self.claimed.tokens_used,
                traceparent=self.claimed.traceparent,
            )

    async def _perform(self) -> tuple[bytes | None, JobError | None]:
        """The task's result as JSON, or its error. Whoever stops the task is noted in `_ending`."""
        if self._was_stopped():
            return None, None
        self._task = asyncio.create_task(self._call(), name=f"job {self.claimed.job_id}")
        try:
            done, _ = await asyncio.wait([self._task], timeout=self.claimed.timeout_s)
            if not done:
                self._task.cancel()
                await asyncio.wait([self._task])
                if not self._was_stopped():
                    return None, JobTimeout(f"The attempt took longer than {self.claimed.timeout_s:g} s.")
            if self._task.cancelled():
                return None, None if self._was_stopped() else InternalError("the task was cancelled from within")
            return self._task.result(), None
        except LeaseLostError:
            self._lost = True
            return None, None
        except JobError as error:
            return None, error
        except asyncio.CancelledError:
            # The engine itself is being torn down.
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        except Exception as error:
            log.exception("attempt.crashed", job=self.claimed.job_id, type=self.claimed.type)
            return None, InternalError(f"A defect of ours ({type(error).__name__}); the worker's log has the details.")

    async def _call(self) -> bytes:
        try:
            job = msgspec.json.decode(self.claimed.spec, type=JOB_TYPES[self.claimed.type])
        except (msgspec.DecodeError, KeyError) as error:
            raise InvalidInput(f"This worker cannot read the job: {error}") from None
        result = await self._handler(job.input, self._context)
        await self._report.flush()
        return msgspec.json.encode(result)

    async def _settle(self, outcome: Outcome, result: bytes | None) -> None:
        """Writes the outcome; waits for Redis as long as it takes. Raises LeaseLostError."""
        with suppress(LeaseLostError):
            await self._report.flush()
        arguments: dict[str, Any]
        match outcome:
            case Complete():
                arguments = {"outcome": "complete", "result": result}
            case Failed(error):
                arguments = {"outcome": "failed", "error": msgspec.json.encode(error)}
            case RetryAfter(error, delay_s):
                arguments = {
                    "outcome": "retry",
                    "error": msgspec.json.encode(error),
                    "delay_ms": round(delay_s * 1000),
                }
            case Cancelled():
                arguments = {
                    "outcome": "cancelled",
                    "upstream_closed": self._upstream_open,
                    "tokens_at_request": self._tokens_at_stop,
                }
            case HandedBack():
                arguments = {"outcome": "handback"}
        while True:
            try:
                await self._jobs.settle(self.claimed, self._worker, **arguments)
                return
            except OUTAGE:
                await asyncio.sleep(RECONNECT_S)


def _names(outcome: Outcome) -> tuple[str, str]:
    match outcome:
        case Complete():
            return "complete", ""
        case Failed(error):
            return "failed", str(error["code"])
        case RetryAfter(error, _):
            return "retry", str(error["code"])
        case Cancelled():
            return "cancelled", ""
        case HandedBack():
            return "handback", ""
