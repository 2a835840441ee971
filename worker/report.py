"""What an attempt tells while it runs: events and progress, in order, batched while Redis is busy.

The first event goes at once. While a write is under way the next ones gather, neighbouring text joined, so that the
rate of writes adapts to Redis and never exceeds one per COALESCE_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from shared.clock import monotonic_s
from shared.errors import LeaseLostError
from shared.events import NewEvent
from shared.redis import OUTAGE
from shared.stores.events import EventsStore
from shared.stores.jobs import Claimed

COALESCE_S: Final = 0.02
COALESCE_CHARACTERS: Final = 2_000
RECONNECT_S: Final = 0.25


class Report:
    """The event writer of one attempt. `on_lost` is called once when the lease turns out to be lost."""

    def __init__(self, store: EventsStore, claimed: Claimed, worker: str, on_lost: Callable[[], None]) -> None:
        self._store = store
        self._claimed = claimed
        self._worker = worker
        self._on_lost = on_lost
        self._pending: list[NewEvent] = []
        self._texts: list[str] = []
        self._size = 0
        self._progress: dict[str, Any] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._written_at = 0.0
        self._batch = 0
        self._lost = False

    def text(self, text: str) -> None:
        """A piece of the model's answer."""
        self._texts.append(text)
        self._size += len(text)
        if self._size >= COALESCE_CHARACTERS:
            self._hurry.set()
        self._kick()

    def event(self, kind: str, **data: Any) -> None:
        """Any other event."""
        self._join_texts()
        self._pending.append(NewEvent(kind, data))
        self._kick()

    def progress(self, fraction: float | None, stage: str, message: str) -> None:
        """How far the job is: an event, and what the job view shows."""
        data = {
            "fraction": None if fraction is None else round(fraction, 4),
            "stage": stage,
            "message": message,
        }
        self._progress = data
        self.event("job.progress", **data)

    @property
    def is_clean(self) -> bool:
        """Whether all that was reported is written."""
        return self._writer is None and not self._pending and not self._texts

    async def flush(self) -> None:
        """Waits until all that was reported is written. Raises LeaseLostError."""
        if self._writer is not None:
            self._hurry.set()
        while self._writer is not None and not self._lost:
            await asyncio.shield(self._writer)
        if self._lost:
            raise LeaseLostError(self._claimed.job_id)

    def _join_texts(self) -> None:
        if self._texts:
            self._pending.append(NewEvent("delta", {"text": "".join(self._texts)}))
            self._texts.clear()
            self._size = 0

    def _kick(self) -> None:
        if self._writer is None and not self._lost:
            self._writer = asyncio.create_task(self._write(), name=f"report {self._claimed.job_id}")

    async def _write(self) -> None:
        try:
            while self._pending or self._texts:
                pause = COALESCE_S - (monotonic_s() - self._written_at)
                if pause > 0 and not self._hurry.is_set():
                    try:
                        async with asyncio.timeout(pause):
                            await self._hurry.wait()
                    except TimeoutError:
                        pass
                self._hurry.clear()
                self._join_texts()
                batch, self._pending = self._pending, []
                progress, self._progress = self._progress, None
                await self._append(batch, progress)
                self._written_at = monotonic_s()
        except LeaseLostError:
            self._lost = True
            self._on_lost()
        finally:
            self._writer = None

    async def _append(self, batch: list[NewEvent], progress: dict[str, Any] | None) -> None:
        self._batch += 1
        while True:
            try:
                await self._store.append(self._claimed, self._worker, self._batch, batch, progress)
                return
            except OUTAGE:
                # Whether it was written is unknown; the batch number makes the repeat harmless.
                await asyncio.sleep(RECONNECT_S)
