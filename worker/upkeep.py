"""What every worker does beside its jobs: heartbeat and leases, and a watch on its own loop."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import structs

from shared.clock import monotonic_s, wall_ms
from shared.log import get_logger
from shared.metrics import LOOP_BLOCKED, LOOP_LAG, REDIS_OUTAGES
from shared.redis import OUTAGE, redis_now_ms
from shared.stores.jobs import JobsStore
from shared.version import our_version
from shared.workers import ModelSeen, WorkerRecord
from worker.execution import Attempt

log = get_logger()

RECONNECT_S: Final = 0.25
CLOCK_EVERY_S: Final = 60.0


class Heart:
    """Renews the leases of all running jobs in one call, three times per lease."""

    def __init__(
        self,
        jobs: JobsStore,
        *,
        slots: Mapping[str, int],
        worker: str,
        lease_s: float,
        running: Mapping[str, Attempt],
        metrics: str | None = None,
        model: Callable[[], ModelSeen] | None = None,
    ) -> None:
        """`slots` by lane: what this worker offers. `metrics`: `host:port` of its own metrics. `model`: what it knows
        of its model, by this host's clock."""
        self._jobs = jobs
        mark = "s" if len(slots) > 1 else ""
        self._slots = [(lane, f"{count}{mark}") for lane, count in slots.items()]
        self._at_once = asyncio.Event()
        self._worker = worker
        self._lease_s = lease_s
        self._running = running
        self._model = model
        self._leaving = False
        self._ended = False
        self._record = WorkerRecord(
            id=worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=our_version(),
            slots=dict(slots),
            started_ms=0,
            metrics=metrics,
        )
        self._clock_read_s: float | None = None
        self.beating = asyncio.Event()  # set at the first beat

    async def leave(self) -> None:
        """From now on this worker takes no jobs and is not woken; its leases are renewed as before. Raises a member of
        OUTAGE."""
        self._leaving = True
        await self.beat()

    async def end(self) -> None:
        """The process ends: its record goes. Raises a member of OUTAGE."""
        self._ended = True
        await self.leave()

    async def _read_clock(self) -> None:
        """How far this host's clock is ahead of Redis's: half a round trip is the error."""
        if self._clock_read_s is not None and monotonic_s() - self._clock_read_s < CLOCK_EVERY_S:
            return
        before_ms = wall_ms()
        redis_ms = await redis_now_ms(self._jobs.client)
        offset_ms = (before_ms + wall_ms()) // 2 - redis_ms
        started_ms = self._record.started_ms or redis_ms
        self._record = structs.replace(self._record, started_ms=started_ms, clock_offset_ms=offset_ms)
        self._clock_read_s = monotonic_s()

    def _said(self) -> str:
        """The record as JSON; empty when the process ends."""
        if self._ended:
            return ""
        model = None if self._model is None else self._model()
        if model is not None:
            model = structs.replace(model, checked_ms=model.checked_ms - self._record.clock_offset_ms)
        return msgspec.json.encode(structs.replace(self._record, draining=self._leaving, model=model)).decode()

    async def beat(self) -> None:
        """One renewal. Raises a member of OUTAGE."""
        await self._read_clock()
        attempts = list(self._running.values())
        states = await self._jobs.renew(
            worker=self._worker,
            lanes=self._slots,
            lease_ms=round(self._lease_s * 1000),
            leaving=self._leaving,
            jobs=[(attempt.claimed.job_id, attempt.claimed.lease) for attempt in attempts],
            seen=[(attempt.claimed.job_id, *call) for attempt in attempts for call in attempt.seen()],
            record=self._said(),
        )
        for attempt, state in zip(attempts, states, strict=True):
            # An attempt that settled meanwhile is no longer in `running`; its lease is rightly gone.
            if self._running.get(attempt.claimed.job_id) is not attempt:
                continue
            if state == 0:
                attempt.lose()
            elif state == 2:
                attempt.cancel()

    def hurry(self) -> None:
        """Beats at once: a cancellation may have been missed."""
        self._at_once.set()

    async def run(self) -> None:
        """Beats for ever; through an outage it tries again at once when Redis is back."""
        while True:
            try:
                self._at_once.clear()
                await self.beat()
                self.beating.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_s / 3):
                        await self._at_once.wait()
            except OUTAGE as error:
                REDIS_OUTAGES.labels("worker").inc()
                log.warning("heartbeat.missed", error=str(error))
                await asyncio.sleep(RECONNECT_S)
            except Exception:
                # A worker without a heartbeat would lose all its jobs: nothing may end this loop.
                log.exception("heartbeat.failed")
                await asyncio.sleep(RECONNECT_S)


class LoopWatch:
    """Notices a blocked event loop from a thread beside it, and logs where it stands."""

    TICK_S: Final = 0.1
    BLOCKED_S: Final = 0.5

    def __init__(self) -> None:
        self._seen = monotonic_s()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    async def run(self) -> None:
        """Ticks for ever; the thread watches the ticks."""
        loop_thread = threading.get_ident()
        self._seen = monotonic_s()
        self._thread = threading.Thread(target=self._watch, args=(loop_thread,), name="loop-watch", daemon=True)
        self._thread.start()
        try:
            while True:
                self._seen = monotonic_s()
                await asyncio.sleep(self.TICK_S)
                LOOP_LAG.observe(max(0.0, monotonic_s() - self._seen - self.TICK_S))
        finally:
            self._stop.set()

    def _watch(self, loop_thread: int) -> None:
        reported = 0.0
        while not self._stop.wait(self.TICK_S):
            seen = self._seen
            silent_s = monotonic_s() - seen
            if silent_s > self.BLOCKED_S + self.TICK_S and reported != seen:
                reported = seen
                frame = sys._current_frames().get(loop_thread)
                where = traceback.format_stack(frame)[-3:] if frame else []
                LOOP_BLOCKED.inc()
                log.warning(
                    "loop.blocked",
                    seconds=round(silent_s, 2),
                    where=[line.strip().splitlines()[0] for line in where],
                )
