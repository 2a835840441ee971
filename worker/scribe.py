"""Writes the events of all attempts of a worker, many in one script, as often as Redis and the number of streams allow.

What cannot wait (the first text of an answer, every event that is not text) goes at once, with whatever else is there.
Text that follows goes in rounds. A round's length grows with the number of streams that take part in it, so that a
worker writes about `1 / ROUND_PER_STREAM_S` events a second at most, however many streams it serves: the more there
are, the more tokens share an event. While a write is under way the next ones gather.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from shared.clock import monotonic_s
from shared.log import get_logger
from shared.redis import OUTAGE
from shared.scope import apart
from shared.stores.events import Append, EventsStore

log = get_logger()

ROUND_S: Final = 0.02  # of one stream
ROUND_PER_STREAM_S: Final = 0.0004
MAX_ROUND_S: Final = 0.1
MAX_BATCH: Final = 200  # attempts per script
RECONNECT_S: Final = 0.25


class Source(Protocol):
    """One attempt's events."""

    def take(self) -> Append | None:
        """What is to be written now, joined; it stands until it is answered. None when there is nothing."""

    def written(self, seq: int) -> None:
        """What was taken last is in the log; `seq` is its last number, -1 when the lease is lost."""


class Scribe:
    """The event writer of one worker."""

    def __init__(self, store: EventsStore, worker: str) -> None:
        self._store = store
        self._worker = worker
        self._urgent: dict[Source, None] = {}
        self._patient: dict[Source, None] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._round_at = 0.0  # the next round is not before
        self._streams = 0  # that took part in the last round

    def put(self, source: Source, *, urgent: bool) -> None:
        """The source has something to write: at once, or in the next round."""
        if urgent:
            self._patient.pop(source, None)
            self._urgent[source] = None
            self._wake.set()
        elif source not in self._urgent:
            if not self._patient:
                self._wake.set()
            self._patient[source] = None
        if self._task is None or self._task.done():
            # For all attempts: not in the scope of the one whose event came first.
            self._task = asyncio.get_running_loop().create_task(self._run(), name="scribe", context=apart())

    async def _run(self) -> None:
        while True:
            if not self._urgent and not self._patient:
                return  # made anew by the next event: a worker that rests has no task
            self._wake.clear()
            pause = self._round_at - monotonic_s()
            if self._patient and pause <= 0:
                sources = [*self._urgent, *self._patient]
                self._streams = len(self._patient)
                self._round_at = monotonic_s() + min(MAX_ROUND_S, ROUND_S + ROUND_PER_STREAM_S * self._streams)
                self._urgent.clear()
                self._patient.clear()
            elif self._urgent:
                sources = list(self._urgent)
                self._urgent.clear()
            else:
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            for start in range(0, len(sources), MAX_BATCH):
                await self._write(sources[start : start + MAX_BATCH])

    async def _write(self, sources: list[Source]) -> None:
        batch = [(source, taken) for source in sources if (taken := source.take()) is not None]
        if not batch:
            return
        while True:
            try:
                numbers = await self._store.append(self._worker, [taken for _, taken in batch])
                break
            except OUTAGE:
                # Whether it was written is unknown; the batch numbers make the repeat harmless.
                await asyncio.sleep(RECONNECT_S)
            except Exception:
                # A defect. Each for itself: batch numbers make the repeat harmless, and nobody pays for another.
                log.exception("events.failed", jobs=len(batch))
                numbers = [await self._write_alone(taken) for _, taken in batch]
                break
        for (source, _), seq in zip(batch, numbers, strict=True):
            source.written(seq)

    async def _write_alone(self, taken: Append) -> int:
        while True:
            try:
                (seq,) = await self._store.append(self._worker, [taken])
                return seq
            except OUTAGE:
                await asyncio.sleep(RECONNECT_S)
            except Exception:
                # This attempt cannot tell what it does: it ends, and another takes it.
                log.exception("events.unwritable", job=taken.job)
                return -1
