"""The queue's upkeep, in every process of both sides: so that a job's state is true also while no worker is alive."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final

from shared.blobs import Blobs
from shared.clock import monotonic_s
from shared.errors import BlobsUnavailableError
from shared.log import get_logger
from shared.metrics import JOBS_REAPED
from shared.redis import OUTAGE
from shared.stores.jobs import JobsStore
from shared.stores.outputs import OutputsStore

log = get_logger()

REAP_EVERY_S: Final = 2.0  # at most; of a short lease a fifth
UNFINISHED_S: Final = 3_600.0  # without a byte more: whoever wrote it was killed
SWEEP_EVERY_S: Final = 30.0  # at most; of a short retention a twentieth
BATCH: Final = 100


def sweep_every_s(retention_s: float) -> float:
    """How often what is over is removed: often enough that it is kept for little longer than was asked."""
    return min(SWEEP_EVERY_S, retention_s / 20)


class Upkeep:
    """Takes back the jobs of lost workers, expires what was not started, makes ready what is due, removes what is kept
    no longer. After Redis was away nothing is taken back for one lease time: owners who sat it out renew."""

    def __init__(self, jobs: JobsStore, *, lease_s: float, sweep_every_s: float = SWEEP_EVERY_S) -> None:
        self._jobs = jobs
        self._lease_ms = round(lease_s * 1000)
        self._every_s = min(REAP_EVERY_S, lease_s / 5)
        self._sweep_every_s = sweep_every_s
        self._now = asyncio.Event()

    def look_in(self, delay_s: float) -> None:
        """Makes a round in `delay_s`, besides those that come anyway."""
        asyncio.get_running_loop().call_later(delay_s, self._now.set)

    async def reap(self) -> None:
        """One round. Raises a member of OUTAGE."""
        while True:
            taken = await self._jobs.reap(BATCH, lease_ms=self._lease_ms)
            for job_id, status, reason in taken:
                JOBS_REAPED.labels(reason, status).inc()
                log.warning("job.reaped", job=job_id, status=status, reason=reason)
            if len(taken) < BATCH:
                return

    async def run(self) -> None:
        """Rounds for ever."""
        swept_at = 0.0
        while True:
            try:
                await self.reap()
                if monotonic_s() - swept_at > self._sweep_every_s:
                    swept_at = monotonic_s()
                    while await self._jobs.sweep():
                        pass
            except OUTAGE:
                pass  # those who need Redis say so; the script sees for itself how long it was away
            except Exception:
                log.exception("upkeep.failed")
            # Processes that started together must not stay in step.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s * random.uniform(0.8, 1.2)):  # noqa: S311
                    await self._now.wait()
            self._now.clear()


class Disposal:
    """Deletes the blobs that nobody needs any more, and what was never finished: on its own, so that a store which is
    slow or away holds up nothing else. What was not deleted stays on the list; two processes may delete the same."""

    def __init__(self, outputs: OutputsStore, blobs: Blobs, *, every_s: float = SWEEP_EVERY_S) -> None:
        self._outputs = outputs
        self._blobs = blobs
        self._every_s = every_s

    async def empty(self) -> None:
        """Deletes until the list is empty, or the store is away. Raises a member of OUTAGE."""
        while keys := await self._outputs.discarded(BATCH):
            gone = []
            try:
                for key in keys:
                    if await self._delete(key):
                        gone.append(key)
            except BlobsUnavailableError:
                return  # said in the log where it happened
            finally:
                await self._outputs.deleted(gone)
            if not gone:
                return

    async def _delete(self, key: str) -> bool:
        """Deletes a blob, or all below a prefix; whether the key is done with."""
        try:
            await self._blobs.delete_prefix(key)
            await self._blobs.delete(key)
        except ValueError:
            log.error("blobs.not_a_key", key=key)
        except OSError as error:
            log.error("blobs.not_deleted", key=key, error=str(error))
            return False
        return True

    async def run(self) -> None:
        """Rounds for ever."""
        while True:
            try:
                await self.empty()
                if left := await self._blobs.discard_unfinished(UNFINISHED_S):
                    log.info("blobs.unfinished_discarded", count=left)
            except OUTAGE:
                pass  # as in Upkeep
            except Exception:
                log.exception("disposal.failed")
            await asyncio.sleep(self._every_s * random.uniform(0.8, 1.2))  # noqa: S311
