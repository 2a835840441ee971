"""The queue's upkeep, in every process of both sides: so that a job's state is true also while no worker is alive."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from shared.clock import monotonic_s
from shared.log import get_logger
from shared.metrics import JOBS_REAPED
from shared.redis import OUTAGE
from shared.stores.jobs import JobsStore

log = get_logger()

REAP_EVERY_S: Final = 2.0
SWEEP_EVERY_S: Final = 30.0
BATCH: Final = 100


class Upkeep:
    """Takes back the jobs of lost workers, expires what was not started, makes ready what is due, removes what is kept
    no longer. After Redis came back nothing is taken back for one lease time: owners who sat out the outage renew."""

    def __init__(self, jobs: JobsStore, *, lease_s: float) -> None:
        self._jobs = jobs
        self._lease_s = lease_s
        self._patient_until = 0.0

    async def reap(self) -> None:
        """One round. Raises a member of OUTAGE."""
        patient = monotonic_s() < self._patient_until
        while True:
            taken = await self._jobs.reap(BATCH, quiet_s=1e9 if patient else self._lease_s)
            for job_id, status in taken:
                JOBS_REAPED.labels(status).inc()
                log.warning("job.reaped", job=job_id, status=status)
            if len(taken) < BATCH:
                return

    async def run(self) -> None:
        """Rounds for ever."""
        swept_at = 0.0
        while True:
            try:
                await self.reap()
                if monotonic_s() - swept_at > SWEEP_EVERY_S:
                    swept_at = monotonic_s()
                    while await self._jobs.sweep():
                        pass
            except OUTAGE:
                self._patient_until = monotonic_s() + self._lease_s
            except Exception:
                log.exception("upkeep.failed")
            # Processes that started together must not stay in step.
            await asyncio.sleep(REAP_EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311
