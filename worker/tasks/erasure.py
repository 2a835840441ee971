"""`tenant-erasure`: takes away everything that a tenant has, looks whether anything is left, and writes a receipt.

Each step erases and counts in one script and may be repeated, so a worker that is lost in the middle costs nothing: the
next one goes on with what is still there.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from shared.audit import SYSTEM, Action, Actor, entry
from shared.clock import monotonic_s, rfc3339
from shared.errors import InternalError, InvalidInput
from shared.jobs import Output
from shared.redis import OUTAGE
from shared.specs import ErasureInput
from shared.stores.erasure import BLOB_KINDS, Erased, ErasureStore, NotMarkedError
from worker.context import JobContext
from worker.steady import RECONNECT_S

ROUNDS: Final = 6
LOOK_S: Final = 0.25  # how often it is asked whether the tenant's last jobs still run
TELL_S: Final = 0.5  # a tenant of millions of jobs must not fill the log of this one


class ErasedCounts(Output, frozen=True):
    """How much of each kind is gone; `blobs` at least, when a worker was lost in the middle of them."""

    jobs: int
    documents: int
    blobs: int
    keys: int
    ledger_entries: int
    redis_keys: int
    webhook_deliveries: int


class ErasedUsage(Output, frozen=True):
    """What the tenant had used, ever; `costUsd` is null where no price was known."""

    total_tokens: int
    cost_usd: float | None


class ErasureReceipt(Output, frozen=True):
    """What was erased, and how much of it was still found in the end: nothing."""

    tenant_id: str
    name: str
    requested_at: str
    erased_at: str
    counts: ErasedCounts
    usage: ErasedUsage
    remaining: int


async def erase_tenant(spec: ErasureInput, context: JobContext) -> ErasureReceipt:
    """Erases a tenant that is marked as being deleted. Raises InvalidInput when there is none, and InternalError when
    something of it comes back again and again."""
    job, erasures = context.job, context.deps.erasures
    eraser = Eraser(spec.tenant_id, context)
    with suppress(NotMarkedError):  # this job, before its worker was lost, may have done the last step
        await eraser.run_steadily()
    actor = Actor(job.key, job.tenant) if job.key else SYSTEM
    by = entry(actor, Action.TENANT_ERASED, spec.tenant_id)
    erased = await erasures.finish(spec.tenant_id, job.job_id, by)
    if erased is None:
        raise InvalidInput(f"The tenant {spec.tenant_id} does not exist (any more), or is not being deleted.")
    context.report.progress(1.0, "done", "Nothing is left")
    return _receipt(spec.tenant_id, erased)


class Eraser:
    """One attempt at everything but the last step."""

    def __init__(self, tenant: str, context: JobContext) -> None:
        self._tenant = tenant
        self._context = context
        self._store: ErasureStore = context.deps.erasures
        self._stage = ""
        self._fraction = 0.0
        self._told_s = 0.0

    async def run_steadily(self) -> None:
        """`run`, again where Redis went away in the middle of a list. Raises as `run`."""
        while True:
            try:
                return await self.run()
            except OUTAGE:
                await asyncio.sleep(RECONNECT_S)

    async def run(self) -> None:
        """Until a look at all keys finds nothing any more. Raises NotMarkedError, and InternalError."""
        await self._end_jobs()
        found = 0
        for turn in range(ROUNDS):
            await self._erase_jobs()
            await self._erase_documents()
            await self._erase_blobs()
            self._tell(0.7, "keys", "Looking for what else the tenant has", now=True)
            await self._store.learn_keys(self._tenant)
            found = await self._erase_rest(0.7 if turn == 0 else 0.85)
            if not found:
                return
        raise InternalError(
            f"After {ROUNDS} rounds {found} Redis keys still held something of the tenant: somebody goes on writing. "
            "Nothing else is left; delete the tenant again once that has ended."
        )

    async def _end_jobs(self) -> None:
        """Cancels all jobs, and waits until no worker holds one; those of lost workers are the reaper's."""
        running: list[str] = []
        looked, size = 0, await self._store.size(self._tenant)
        async for page in self._store.jobs(self._tenant):
            running += await self._store.erase_jobs(self._tenant, page, erase=False)
            looked += len(page)
            self._tell(0.1 * looked / max(size, looked), "cancel", f"Cancelled or ended: {looked} jobs")
        await self._wait_for(running)

    async def _wait_for(self, running: list[str]) -> None:
        while running:
            self._tell(0.1, "cancel", f"{len(running)} jobs still run")
            await asyncio.sleep(LOOK_S)
            running = await self._store.erase_jobs(self._tenant, running, erase=False)

    async def _erase_jobs(self) -> None:
        done, size = 0, await self._store.size(self._tenant)
        async for page in self._store.jobs(self._tenant):
            await self._remove(page)
            done += len(page)
            self._tell(0.1 + 0.3 * done / max(size, done), "jobs", f"Erased {done} jobs")

    async def _remove(self, jobs: list[str]) -> None:
        """Erases jobs; those that run are waited for."""
        running = await self._store.erase_jobs(self._tenant, jobs, erase=True)
        if running:
            await self._wait_for(running)
            await self._store.erase_jobs(self._tenant, running, erase=True)

    async def _erase_documents(self) -> None:
        done = 0
        async for page in self._store.documents(self._tenant):
            await self._store.erase(self._tenant, page)
            done += len(page)
            self._tell(0.4, "documents", f"Erased the records of {done} documents")

    async def _erase_blobs(self) -> None:
        for place, kind in enumerate(BLOB_KINDS):
            self._tell(0.45 + 0.25 * place / len(BLOB_KINDS), "blobs", f"Erasing blobs: {kind}", now=True)
            count = await self._context.deps.blobs.delete_prefix(f"{kind}/{self._tenant}")
            await self._store.erase(self._tenant, [], blobs=count)

    async def _erase_rest(self, begin: float) -> int:
        """Looks at all keys of the installation, and takes away what is the tenant's; how many held anything of it."""
        found = await self._store.clear_trash(self._tenant) + await self._store.clear_turns(self._tenant)
        looked, size = 0, await self._store.all_keys()
        async for names in self._store.scan():
            count, jobs = await self._store.erase(self._tenant, names)
            if jobs:  # that stand in no index
                await self._remove(jobs)
            found, looked = found + count, looked + len(names)
            fraction = begin + 0.14 * min(1, looked / max(1, size))
            self._tell(fraction, "keys", f"Looked at {looked} keys, {found} held something of the tenant")
        return found

    def _tell(self, fraction: float, stage: str, message: str, *, now: bool = False) -> None:
        self._fraction = max(self._fraction, fraction)  # the next round begins anew, progress does not
        if now or stage != self._stage or monotonic_s() - self._told_s > TELL_S:
            self._stage, self._told_s = stage, monotonic_s()
            self._context.report.progress(self._fraction, stage, message)


def _receipt(tenant: str, erased: Erased) -> ErasureReceipt:
    return ErasureReceipt(
        tenant_id=tenant,
        name=erased.name,
        requested_at=rfc3339(erased.requested_ms),
        erased_at=rfc3339(erased.erased_ms),
        counts=ErasedCounts(
            jobs=erased.jobs,
            documents=erased.documents,
            blobs=erased.blobs,
            keys=erased.keys,
            ledger_entries=erased.ledger,
            redis_keys=erased.redis_keys,
            webhook_deliveries=erased.deliveries,
        ),
        usage=ErasedUsage(total_tokens=erased.tokens, cost_usd=erased.nano / 1e9 if erased.nano else None),
        remaining=0,
    )
