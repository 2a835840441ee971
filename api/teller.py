"""Tells the readers of queued jobs how their place in the queue changes, as events of the job."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shared.log import get_logger
from shared.redis import OUTAGE
from shared.stores.jobs import JobsStore

log = get_logger()

TELL_EVERY_S: Final = 2.0
BATCH: Final = 50  # jobs per script: Redis must not be held up


class Teller:
    """Looks after the queued jobs that somebody follows in this process. The event is written once, whichever process
    finds the change first; a job that nobody follows costs nothing."""

    def __init__(self, jobs: JobsStore) -> None:
        self._jobs = jobs
        self._readers: Counter[str] = Counter()
        self._queued: set[str] = set()
        self._fresh: set[str] = set()  # those that came while a script was under way

    @contextmanager
    def reader(self, job_id: str) -> Iterator[None]:
        """While somebody reads the job's stream."""
        self._readers[job_id] += 1
        self._queued.add(job_id)
        try:
            yield
        finally:
            self._readers[job_id] -= 1
            if self._readers[job_id] <= 0:
                del self._readers[job_id]
                self._queued.discard(job_id)

    def queued(self, job_id: str) -> None:
        """The job waits (again)."""
        if job_id in self._readers:
            self._queued.add(job_id)
            self._fresh.add(job_id)

    async def run(self) -> None:
        """Looks for ever; spreads the work over the interval."""
        while True:
            await asyncio.sleep(TELL_EVERY_S / 2)
            waiting = list(self._queued)
            try:
                for start in range(0, len(waiting), BATCH):
                    batch = waiting[start : start + BATCH]
                    self._fresh.clear()
                    for job_id, is_queued in zip(batch, await self._jobs.tell(batch), strict=True):
                        if not is_queued and job_id not in self._fresh:
                            self._queued.discard(job_id)
                    await asyncio.sleep(TELL_EVERY_S / 2 * len(batch) / len(waiting))
            except OUTAGE:
                pass  # readers see heartbeats meanwhile
            except Exception:
                log.exception("teller.failed")
