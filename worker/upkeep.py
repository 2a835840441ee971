"""What every worker does beside its jobs: heartbeat and leases, and a watch on its own loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from shared.clock import monotonic_s
from shared.log import get_logger
from shared.metrics import LOOP_BLOCKED, REDIS_OUTAGES
from shared.redis import OUTAGE
from shared.stores.jobs import JobsStore
from worker.execution import Attempt

log = get_logger()

RECONNECT_S: Final = 0.25


class Heart:
    """Renews the leases of all running jobs in one call, three times per lease."""

    def __init__(
        self, jobs: JobsStore, *, slots: Mapping[str, int], worker: str, lease_s: float, running: Mapping[str, Attempt]
    ) -> None:
        """`slots` by lane: what this worker offers."""
        self._jobs = jobs
        mark = "s" if len(slots) > 1 else ""
        self._slots = [(lane, f"{count}{mark}") for lane, count in slots.items()]
        self._at_once = asyncio.Event()
        self._worker = worker
        self._lease_s = lease_s
        self._running = running
        self._leaving = False
        self.beating = asyncio.Event()  # set at the first beat

    async def leave(self) -> None:
        """From now on this worker takes no jobs and is not woken; its leases are renewed as before. Raises a member of
        OUTAGE."""
        self._leaving = True
        await self.beat()

    async def beat(self) -> None:
        """One renewal. Raises a member of OUTAGE."""
        attempts = list(self._running.values())
        states = await self._jobs.renew(
            worker=self._worker,
            lanes=self._slots,
            lease_ms=round(self._lease_s * 1000),
            leaving=self._leaving,
            jobs=[(attempt.claimed.job_id, attempt.claimed.lease) for attempt in attempts],
            seen=[(attempt.claimed.job_id, *call) for attempt in attempts for call in attempt.seen()],
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
