"""Writes how attempts ended: those that end in the same turn of the event loop in one script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shared.log import get_logger
from shared.redis import OUTAGE
from shared.scope import apart
from shared.stores.jobs import JobsStore, Settlement

log = get_logger()

RECONNECT_S: Final = 0.25
MAX_BATCH: Final = 100

Waiting = tuple[Settlement, Callable[[str], None]]


class Settler:
    """Settles for one worker. A settlement that was handed over is written, however long Redis is away."""

    def __init__(self, jobs: JobsStore, worker: str) -> None:
        self._jobs = jobs
        self._worker = worker
        self._waiting: list[Waiting] = []
        self._writes: set[asyncio.Task[None]] = set()

    def put(self, settlement: Settlement, on_settled: Callable[[str], None]) -> None:
        """Takes a settlement; `on_settled` gets the job's new status, `again` or `lost`. A claim that is sent after
        this call finds the slot free: both go over the same connection, in this order."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send, context=apart())
        self._waiting.append((settlement, on_settled))

    def _send(self) -> None:
        loop = asyncio.get_running_loop()
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), MAX_BATCH):
            task = loop.create_task(self._write(waiting[start : start + MAX_BATCH]), name="settle")
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _write(self, batch: list[Waiting]) -> None:
        while True:
            try:
                states = await self._jobs.settle(self._worker, [settlement for settlement, _ in batch])
                break
            except OUTAGE:
                await asyncio.sleep(RECONNECT_S)
            except Exception as error:
                # A defect: the leases run out, and others take the jobs.
                log.error("settle.failed", jobs=len(batch), error=f"{type(error).__name__}: {error}")
                states = ["broken"] * len(batch)
                break
        for (_, on_settled), state in zip(batch, states, strict=True):
            on_settled(state)
