"""The engine: arq's Worker with our queue discipline. The only file that knows arq.

From arq: the life cycle (`run`, `async_run`, `close`), the signals, the registry of functions, `ctx`. Ours: claim,
lease, time-outs, settlement, upkeep; `docs/architecture.md` says why.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, cast

from arq.worker import Worker, func
from redis.exceptions import RedisError

from shared.errors import InvalidInput
from shared.keys import Keys
from shared.log import get_logger
from shared.metrics import JOBS_CLAIMED, PICKUP_SECONDS, REDIS_OUTAGES, SLOTS, SLOTS_BUSY
from shared.redis import OUTAGE, Redis
from shared.settings import Settings
from shared.stores.events import EventsStore
from shared.stores.jobs import Claimed, JobsStore
from worker.context import Deps
from worker.execution import Attempt, Handler
from worker.upkeep import Heart, LoopWatch, Reaper

log = get_logger()

NET_S: Final = 5.0  # the slow poll under the wake-up by pub/sub
CLAIM_BATCH: Final = 100
RECONNECT_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)
RELEASE_S: Final = 5.0  # after the drain, jobs have so long to let go and be handed back


def new_worker_id() -> str:
    """A name that no other worker process has or had: host, pid and chance."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(3)}"


class Engine(Worker):
    """One worker process on one lane."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        lane: str,
        settings: Settings,
        client: Redis,
        subscriber: Redis,
        deps: Deps,
        handle_signals: bool = True,
    ) -> None:
        """`subscriber` is a client without a time-out, for the one pub/sub connection of this process."""
        super().__init__(
            functions=[func(cast(Any, handler), name=name) for name, handler in handlers.items()],
            redis_pool=cast(Any, client),  # arq asks for its own subclass, of which we use nothing
            queue_name=f"{settings.redis_prefix}unused-by-errand",
            max_jobs=settings.worker_slots,
            job_completion_wait=max(1, round(settings.drain_seconds)),
            handle_signals=handle_signals,
        )
        self.lane = lane
        self.worker_id = new_worker_id()
        self.settings = settings
        self._client = client
        self._subscriber = subscriber
        self._deps = deps
        self._keys = Keys(settings.redis_prefix)
        self._jobs = JobsStore(client, self._keys)
        self._events = EventsStore(client, self._keys)
        self.running: dict[str, Attempt] = {}
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self.ready = asyncio.Event()  # it listens, and counts as alive
        self._listening = asyncio.Event()
        self._was_full = False

    # -- arq's hooks ---------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """The claim loop and its companions, until a signal; then the drain."""
        heart = Heart(
            self._jobs,
            lane=self.lane,
            worker=self.worker_id,
            lease_s=self.settings.lease_seconds,
            running=self.running,
        )
        companions = [
            asyncio.create_task(heart.run(), name="heart"),
            asyncio.create_task(self._listen(), name="listen"),
            asyncio.create_task(
                Reaper(self._client, self._jobs, lease_s=self.settings.lease_seconds).run(), name="reaper"
            ),
            asyncio.create_task(LoopWatch().run(), name="loop-watch"),
            asyncio.create_task(self._announce(heart), name="announce"),
        ]
        for task in companions:
            task.add_done_callback(_report_death)
        SLOTS.labels(self.lane).set(self.max_jobs)
        log.info("worker.started", worker=self.worker_id, lane=self.lane, slots=self.max_jobs)
        try:
            await self._claim_for_ever()
            await self._drain()
        finally:
            # Again and again: redis-py can swallow a cancellation.
            while left := [task for task in companions if not task.done()]:
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=0.2)
            with suppress(*OUTAGE):
                await self._jobs.leave(lane=self.lane, worker=self.worker_id)
            log.info("worker.stopped", worker=self.worker_id)

    def handle_sig(self, signum: signal.Signals) -> None:
        """The signal's work is done in `main`; arq would cancel the jobs at once."""
        self.stop()

    def handle_sig_wait_for_completion(self, signum: signal.Signals) -> None:
        """See `handle_sig`."""
        self.stop()

    async def close(self) -> None:
        """Closes the connections; arq's own would also write to its queue's keys."""
        await self._deps.model.close()
        await self._subscriber.aclose()
        await self._client.aclose()

    # -- ours ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Takes no more jobs; drains, hands back what is left, and ends."""
        if not self._stopping.is_set():
            log.info("worker.draining", worker=self.worker_id, running=len(self.running))
        self._stopping.set()
        self._wake.set()

    async def _claim_for_ever(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()
            free = self.max_jobs - len(self.running)
            wait_s = NET_S
            if free > 0:
                count = min(free, CLAIM_BATCH)
                try:
                    claimed, due_ms = await self._jobs.claim(
                        lane=self.lane,
                        worker=self.worker_id,
                        count=count,
                        lease_ms=round(self.settings.lease_seconds * 1000),
                    )
                    failures = 0
                except (*OUTAGE, RedisError, ValueError) as error:
                    # Also a defect must not end the worker: its running jobs go on, and it tries again.
                    REDIS_OUTAGES.labels("worker").inc()
                    if failures == 0:
                        log.warning("claim.failed", error=f"{type(error).__name__}: {error}")
                    await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
                    failures += 1
                    continue
                for job in claimed:
                    self._start(job)
                if len(claimed) == count and free > count:
                    continue
                self._was_full = len(claimed) == count
                if due_ms is not None:
                    wait_s = min(wait_s, due_ms / 1000 + 0.001)
            else:
                self._was_full = True
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    def _start(self, job: Claimed) -> None:
        JOBS_CLAIMED.labels(self.lane).inc()
        PICKUP_SECONDS.labels(self.lane).observe(max(0, job.claimed_ms - job.queued_ms) / 1000)
        function = self.functions.get(job.type)
        handler = cast(Handler, function.coroutine) if function is not None else _unknown_type
        attempt = Attempt(job, self.worker_id, handler, self._jobs, self._events, self._deps)
        self.running[job.job_id] = attempt
        SLOTS_BUSY.labels(self.lane).set(len(self.running))
        task = asyncio.create_task(attempt.run(), name=f"attempt {job.job_id}")
        self.tasks[job.job_id] = task
        task.add_done_callback(lambda done: self._ended(job.job_id, attempt, done))

    def _ended(self, job_id: str, attempt: Attempt, task: asyncio.Task[None]) -> None:
        if self.running.get(job_id) is attempt:
            del self.running[job_id]
            self.tasks.pop(job_id, None)
        SLOTS_BUSY.labels(self.lane).set(len(self.running))
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("attempt.unsettled", job=job_id, error=f"{type(error).__name__}: {error}")
        if self._was_full:
            self._wake.set()

    async def _drain(self) -> None:
        """Waits for the jobs, then hands back those that are left: that uses up no attempt."""
        if self.tasks:
            await asyncio.wait(list(self.tasks.values()), timeout=self.settings.drain_seconds)
        for attempt in list(self.running.values()):
            attempt.hand_back()
        if self.tasks:
            _, left = await asyncio.wait(list(self.tasks.values()), timeout=RELEASE_S)
            for task in left:
                task.cancel()
            if left:
                # Their leases run out and the reaper gives them to others.
                log.warning("worker.abandoned_jobs", jobs=len(left))
                await asyncio.wait(left, timeout=1.0)

    async def _announce(self, heart: Heart) -> None:
        await self._listening.wait()
        await heart.beating.wait()
        self.ready.set()

    async def _listen(self) -> None:
        """Wake-ups and cancellations by pub/sub; both have a slower net under them (poll, heartbeat)."""
        wake, control = self._keys.wake_channel(self.lane), self._keys.control_channel(self.worker_id)
        failures = 0
        while True:
            pubsub = self._subscriber.pubsub()
            try:
                await pubsub.subscribe(wake, control)
                async for message in pubsub.listen():
                    if message["type"] == "subscribe":
                        # What was published before we listened is found by looking.
                        self._wake.set()
                        if message["channel"].decode() == control:
                            self._listening.set()
                            failures = 0
                    elif message["channel"].decode() == wake:
                        self._wake.set()
                    elif message["data"].startswith(b"cancel "):
                        job_id, _, lease = message["data"][7:].decode().partition(" ")
                        attempt = self.running.get(job_id)
                        # A late message must not stop the next run of the same job.
                        if attempt is not None and str(attempt.claimed.lease) == lease:
                            attempt.cancel()
            except OUTAGE as error:
                if failures == 0:
                    log.warning("subscriber.disconnected", error=str(error))
            finally:
                with suppress(*OUTAGE):
                    await pubsub.aclose()
            await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
            failures += 1


async def _unknown_type(_: Any, __: Any) -> Any:
    raise InvalidInput("This worker has no task for this type of job; is it older than the API?")


def _report_death(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("upkeep.died", task=task.get_name(), error=f"{type(error).__name__}: {error}")
