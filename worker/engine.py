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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final, cast

from arq.worker import Worker, func
from redis.exceptions import RedisError

from shared.clock import monotonic_s
from shared.errors import ConfigurationError, UnreadableError
from shared.keys import Keys
from shared.log import get_logger
from shared.metrics import JOBS_CLAIMED, PICKUP_SECONDS, REDIS_OUTAGES, SLOTS, SLOTS_BUSY
from shared.redis import OUTAGE, Redis
from shared.settings import Settings
from shared.specs import Lane
from shared.stores.events import EventsStore
from shared.stores.jobs import Claimed, JobsStore
from shared.stores.outputs import OutputsStore
from shared.stores.webhooks import WebhooksStore
from shared.subscriber import RECONNECT_S, Subscriber
from shared.upkeep import Disposal, Upkeep, sweep_every_s
from worker.context import Deps
from worker.execution import Attempt, Handler
from worker.scribe import Scribe
from worker.settler import Settler
from worker.upkeep import Heart, LoopWatch
from worker.webhooks.courier import Courier
from worker.webhooks.sender import Sender

log = get_logger()

NET_S: Final = 5.0  # the slow poll under the wake-up by pub/sub
CLAIM_BATCH: Final = 100
DOUBT_S: Final = 2.0  # after this a claim that was not answered is looked for once more
RELEASE_S: Final = 5.0  # after the drain, jobs have so long to let go and be handed back


def new_worker_id() -> str:
    """A name that no other worker process has or had: host, pid and chance."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(3)}"


def slots_by_lane(lanes: Sequence[str], settings: Settings) -> dict[str, int]:
    """How many jobs of each lane may run at a time. A process that serves both keeps slots for interactive jobs that
    no batch job takes. Raises ConfigurationError when none would be left for these."""
    slots = dict.fromkeys(lanes, settings.worker_slots)
    if len(lanes) > 1 and Lane.BATCH in slots:
        reserved = settings.reserved_interactive_slots
        if reserved is None:
            reserved = settings.worker_slots // 4
        if reserved >= settings.worker_slots:
            raise ConfigurationError(
                f"ERRAND_RESERVED_INTERACTIVE_SLOTS={reserved} leaves none of ERRAND_WORKER_SLOTS="
                f"{settings.worker_slots} for batch jobs; set it lower, or run `python -m worker interactive`"
            )
        slots[Lane.BATCH] = settings.worker_slots - reserved
    return slots


class Engine(Worker):
    """One worker process on one lane or on both; with both, interactive jobs go first (see `claim.lua`)."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        lanes: Sequence[str],
        settings: Settings,
        client: Redis,
        subscriber: Redis,
        deps: Deps,
        handle_signals: bool = True,
        metrics: str | None = None,
    ) -> None:
        """`subscriber` is a client without a time-out, for the one pub/sub connection of this process; `metrics` is
        where it serves its own, `host:port`."""
        super().__init__(
            functions=[func(cast(Any, handler), name=name) for name, handler in handlers.items()],
            redis_pool=cast(Any, client),  # arq asks for its own subclass, of which we use nothing
            queue_name=f"{settings.redis_prefix}unused-by-errand",
            max_jobs=settings.worker_slots,
            job_completion_wait=max(1, round(settings.drain_seconds)),
            handle_signals=handle_signals,
        )
        self.slots = slots_by_lane(lanes, settings)
        self.worker_id = new_worker_id()
        self.settings = settings
        self._client = client
        self._subscriber_client = subscriber
        self._deps = deps
        self._metrics = metrics
        self._jobs = JobsStore(client, Keys(settings.redis_prefix))
        self._events = EventsStore(client, Keys(settings.redis_prefix))
        self._outputs = OutputsStore(client, Keys(settings.redis_prefix))
        self._scribe = Scribe(self._events, self.worker_id)
        self._settler = Settler(self._jobs, self.worker_id)
        self._control = Keys(settings.redis_prefix).control_channel(self.worker_id)
        self._hooks = Keys(settings.redis_prefix).hooks_channel
        self._courier: Courier | None = None
        self._subscriber = Subscriber(subscriber, on_message=self._heard, on_subscribed=self._subscribed)
        self.running: dict[str, Attempt] = {}  # until they are settled
        self._busy = dict.fromkeys(self.slots, 0)  # tasks that run, by lane
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self.ready = asyncio.Event()  # it listens, and counts as alive
        self._listening = asyncio.Event()
        self._heart: Heart | None = None
        self._passing_on: set[asyncio.Task[None]] = set()
        self._doubtful: list[float] = []  # when to look for jobs of claims that were not answered
        self._hungry = False  # the last claim left a lane that may have more: a slot that comes free asks again

    # -- arq's hooks ---------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """The claim loop and its companions, until a signal; then the drain."""
        heart = self._heart = Heart(
            self._jobs,
            slots=self.slots,
            worker=self.worker_id,
            lease_s=self.settings.lease_seconds,
            running=self.running,
            metrics=self._metrics,
            model=self._deps.model.health.seen,
        )
        self._deps.model.health.on_known = heart.hurry
        await self._subscriber.subscribe(self._control)
        if self.settings.webhooks:
            store = WebhooksStore(self._client, Keys(self.settings.redis_prefix))
            self._courier = Courier(store, Sender(self.settings), self.settings)
            await self._subscriber.subscribe(self._hooks)
        listening = asyncio.create_task(self._subscriber.run(), name="listen")
        swept_s = sweep_every_s(self.settings.retention_seconds)
        upkeep = Upkeep(self._jobs, lease_s=self.settings.lease_seconds, sweep_every_s=swept_s)
        companions = [
            asyncio.create_task(heart.run(), name="heart"),
            asyncio.create_task(upkeep.run(), name="upkeep"),
            asyncio.create_task(Disposal(self._outputs, self._deps.blobs, every_s=swept_s).run(), name="disposal"),
            asyncio.create_task(LoopWatch().run(), name="loop-watch"),
            asyncio.create_task(self._deps.model.health.run(), name="model-watch"),
            asyncio.create_task(self._announce(heart), name="announce"),
        ]
        if self._courier is not None:
            companions.append(asyncio.create_task(self._courier.run(), name="courier"))
        for task in (listening, *companions):
            task.add_done_callback(_report_death)
        for lane, slots in self.slots.items():
            SLOTS.labels(lane).set(slots)
            SLOTS_BUSY.labels(lane).set_function(partial(self._busy.__getitem__, lane))
        log.info("worker.started", worker=self.worker_id, slots=self.slots)
        try:
            await self._claim_for_ever()
            if self._courier is not None:
                self._courier.stop()
            with suppress(RedisError, OSError):
                await heart.leave()
            await asyncio.gather(self._drain(), self._dismiss_courier())
        finally:
            # Again and again: redis-py can swallow a cancellation.
            while left := [task for task in companions if not task.done()]:
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=0.2)
            await self._subscriber.close(listening)
            with suppress(RedisError, OSError):
                await heart.end()
            log.info("worker.stopped", worker=self.worker_id)

    def handle_sig(self, signum: signal.Signals) -> None:
        """The signal's work is done in `main`; arq would cancel the jobs at once."""
        self.stop()

    def handle_sig_wait_for_completion(self, signum: signal.Signals) -> None:
        """See `handle_sig`."""
        self.stop()

    async def close(self) -> None:
        """Closes the connections; arq's own would also write to its queue's keys."""
        await self._deps.tools.close()
        await self._deps.model.close()
        if self._deps.reranker is not None:
            await self._deps.reranker.aclose()
        await self._subscriber_client.aclose()
        await self._client.aclose()

    # -- ours ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Takes no more jobs; drains, hands back what is left, and ends."""
        if not self._stopping.is_set():
            log.info("worker.draining", worker=self.worker_id, running=len(self.running))
        self._stopping.set()
        self._wake.set()

    @property
    def _free(self) -> int:
        """Slots whose task has ended, though its settlement may still be under way: that goes out before the next
        claim. While Redis is away no more tasks start, so these are never many."""
        return self.max_jobs - sum(self._busy.values())

    async def _claim_for_ever(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()
            self._hungry = True
            wait_s = NET_S
            if (free := self._free) > 0:
                count = min(free, CLAIM_BATCH)
                lanes = [(lane, min(count, slots - self._busy[lane])) for lane, slots in self.slots.items()]
                try:
                    await self._disown()
                    claimed, due_ms = await self._jobs.claim(
                        worker=self.worker_id,
                        lanes=lanes,
                        count=count,
                        lease_ms=round(self.settings.lease_seconds * 1000),
                        patience_ms=round(self.settings.aging_seconds * 1000),
                    )
                    failures = 0
                except (*OUTAGE, RedisError, ValueError) as error:
                    # Also a defect must not end the worker: its running jobs go on, and it tries again.
                    REDIS_OUTAGES.labels("worker").inc()
                    self._doubtful = [monotonic_s(), monotonic_s() + DOUBT_S]
                    if failures == 0:
                        log.warning("claim.failed", error=f"{type(error).__name__}: {error}")
                    await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
                    failures += 1
                    continue
                taken = dict.fromkeys(self.slots, 0)
                for job in claimed:
                    self._start(job)
                    taken[job.lane] += 1
                # Where a lane gave less than was asked for, the script has noted us as asleep: we shall be woken.
                self._hungry = len(claimed) == count or any(taken[lane] >= most for lane, most in lanes)
                if len(claimed) == count and self._free > 0:
                    continue
                if due_ms is not None:
                    wait_s = min(wait_s, due_ms / 1000 + 0.001)
                if self._doubtful:
                    wait_s = min(wait_s, DOUBT_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    def _start(self, job: Claimed) -> None:
        _claimed(job.lane).inc()
        _pickup(job.lane).observe(max(0, job.claimed_ms - job.queued_ms) / 1000)
        function = self.functions.get(job.type)
        handler = cast(Handler, function.coroutine) if function is not None else _unknown_type
        attempt = Attempt(
            job,
            self.worker_id,
            handler,
            self._events,
            self._scribe,
            self._settler,
            self._deps,
            on_performed=self._on_performed,
            on_ended=self._on_ended,
        )
        if (older := self.running.get(job.job_id)) is not None:
            older.lose()  # its lease ran out and came to us again: nobody would tell it otherwise
        self.running[job.job_id] = attempt
        self._busy[job.lane] += 1
        attempt.start()

    def _on_performed(self, attempt: Attempt) -> None:
        self._busy[attempt.claimed.lane] -= 1
        if self._hungry:
            self._wake.set()

    def _on_ended(self, attempt: Attempt) -> None:
        if self.running.get(attempt.claimed.job_id) is attempt:
            del self.running[attempt.claimed.job_id]
        if not self.running:
            self._ended.set()

    async def _drain(self) -> None:
        """Waits for the jobs, then hands back those that are left: that uses up no attempt."""
        await self._until_all_ended(self.settings.drain_seconds)
        for attempt in list(self.running.values()):
            attempt.hand_back()
        await self._until_all_ended(RELEASE_S)
        if self.running:
            # Their leases run out and others take them.
            log.warning("worker.abandoned_jobs", jobs=len(self.running))
            for attempt in list(self.running.values()):
                attempt.abandon()

    async def _dismiss_courier(self) -> None:
        if self._courier is not None:
            await self._courier.close(self.settings.drain_seconds)

    async def _until_all_ended(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.running:
                    self._ended.clear()
                    await self._ended.wait()

    async def _announce(self, heart: Heart) -> None:
        await self._listening.wait()
        await heart.beating.wait()
        self.ready.set()

    def _subscribed(self, channel: str) -> None:
        # What was published before we listened is found by looking.
        if channel == self._hooks:
            if self._courier is not None:
                self._courier.wake()
            return
        self._listening.set()
        self._wake.set()
        if self._heart is not None:
            self._heart.hurry()

    async def _pass_on(self) -> None:
        if self._heart is not None:
            with suppress(RedisError, OSError):
                await self._heart.leave()

    async def _disown(self) -> None:
        """After a claim that was not answered: Redis may have given us jobs all the same, and hear of it late. They are
        handed back; as leases that ran out they would count as lost."""
        if self._doubtful and monotonic_s() >= self._doubtful[0]:
            known = [(attempt.claimed.job_id, attempt.claimed.lease) for attempt in self.running.values()]
            handed_back = await self._jobs.disown(worker=self.worker_id, jobs=known)
            del self._doubtful[0]
            if handed_back:
                log.warning("claim.disowned", jobs=len(handed_back))

    def _heard(self, channel: str, message: bytes) -> None:
        """Wake-ups and cancellations; both have a slower net under them (poll, heartbeat)."""
        if channel == self._hooks:
            if self._courier is not None:
                self._courier.wake()
        elif message == b"wake" and self._stopping.is_set():
            # Not for us any more: leaving wakes another.
            task = asyncio.create_task(self._pass_on(), name="pass-on")
            self._passing_on.add(task)
            task.add_done_callback(self._passing_on.discard)
        elif message == b"wake":
            self._hungry = True
            self._wake.set()
        elif message.startswith(b"cancel "):
            job_id, _, lease = message[7:].decode().partition(" ")
            attempt = self.running.get(job_id)
            # A late message must not stop the next run of the same job.
            if attempt is not None and str(attempt.claimed.lease) == lease:
                attempt.cancel()


# Looking a labelled metric up costs more than counting.
_claimed: Final = cache(JOBS_CLAIMED.labels)
_pickup: Final = cache(PICKUP_SECONDS.labels)


async def _unknown_type(_: Any, __: Any) -> Any:
    raise UnreadableError("This worker has no task for this type of job; is it older than the API?")


def _report_death(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("upkeep.died", task=task.get_name(), error=f"{type(error).__name__}: {error}")
