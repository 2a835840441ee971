"""What an attempt tells while it runs: events and progress, in order; neighbouring text is joined. The worker's scribe
writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shared.errors import LeaseLostError
from shared.stores.events import Append
from shared.stores.jobs import Claimed
from worker.scribe import Scribe

URGENT_CHARACTERS: Final = 2_000  # so much text waits for no round
MOST_OWED: Final = 256 * 1024  # characters of text that wait to be written, before the model has to wait too

_encode: Final = msgspec.json.Encoder().encode


class Report:
    """The events of one attempt. `on_lost` is called once when the lease turns out to be lost."""

    def __init__(self, scribe: Scribe, claimed: Claimed, on_lost: Callable[[], None]) -> None:
        self._scribe = scribe
        self._claimed = claimed
        self._on_lost = on_lost
        self._pending: list[tuple[str, str]] = []
        self._texts: list[str] = []
        self._size = 0
        self._progress: dict[str, Any] | None = None
        self._has_spoken = False
        self._writing = False
        self._batch = 0
        self._owed = 0  # characters of text that are not written yet
        self._in_write = 0  # of these
        self._clean = asyncio.Event()
        self._clean.set()
        self._lost = False
        self.seen: Callable[[], list[tuple[str, int]]] = list  # output tokens of the calls under way

    def text(self, text: str) -> None:
        """A piece of the model's answer."""
        self._texts.append(text)
        self._size += len(text)
        self._owed += len(text)
        self._put(urgent=not self._has_spoken or self._size >= URGENT_CHARACTERS)
        self._has_spoken = True

    def event(self, kind: str, **data: Any) -> None:
        """Any other event."""
        self._join_texts()
        self._pending.append((kind, _encode(data).decode()))
        self._put(urgent=True)

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
        return self._clean.is_set()

    @property
    def is_full(self) -> bool:
        """Whether so much text waits to be written that its maker should wait."""
        return self._owed > MOST_OWED

    async def room(self) -> None:
        """Waits until there is room again: Redis may be slower than the model, or away."""
        while self.is_full and not self._lost:
            await self._clean.wait()

    async def flush(self) -> None:
        """Waits until all that was reported is written. Raises LeaseLostError."""
        if not self._clean.is_set() and not self._lost:
            if self._pending or self._texts:
                self._put(urgent=True)
            await self._clean.wait()
        if self._lost:
            raise LeaseLostError(self._claimed.job_id)

    def _put(self, *, urgent: bool) -> None:
        if not self._lost:
            self._clean.clear()
            # While a write is under way, this goes out with what follows it.
            if not self._writing or urgent:
                self._scribe.put(self, urgent=urgent)

    def _join_texts(self) -> None:
        if self._texts:
            self._pending.append(("delta", _encode({"text": "".join(self._texts)}).decode()))
            self._texts.clear()
            self._size = 0

    # -- the scribe's side ---------------------------------------------------------------------------------------

    def take(self) -> Append | None:
        """What was reported since the last write."""
        self._join_texts()
        if not self._pending or self._lost:
            return None
        self._batch += 1
        self._writing = True
        self._in_write = self._owed
        seen = self.seen() if self._owed else None
        events, self._pending = self._pending, []
        progress, self._progress = self._progress, None
        stage = _encode(progress).decode() if progress is not None else None
        return Append(self._claimed.job_id, self._claimed.lease, self._batch, events, stage, seen or None)

    def written(self, seq: int) -> None:
        """What was taken is in the log, or the lease is lost (-1)."""
        self._writing = False
        self._owed -= self._in_write
        self._in_write = 0
        if seq < 0:
            self._lost = True
            self._owed = 0
            self._pending.clear()
            self._texts.clear()
            self._on_lost()
        if self._pending or self._texts:
            self._scribe.put(self, urgent=False)
        else:
            self._clean.set()
