"""How an attempt meets a limit: it waits a little in its slot, then gives the slot back and goes on later."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import msgspec

from shared.clock import monotonic_s
from shared.errors import OverLimit
from shared.limits import Why, detail_of, sentence_of
from shared.metrics import BUDGETS_REFUSED, LIMIT_WAITS
from shared.specs import Lane
from shared.stores.events import Blocked
from worker.journal import Journal, Step
from worker.model.calls import Progress
from worker.model.client import Pacer

RATE_SLOT_S: Final = 5.0  # a call that may be made so soon waits in its slot
HELD_S: Final = {Lane.INTERACTIVE: 8.0, Lane.BATCH: 2.0}  # likewise for what others have reserved and may not need
HELD_RETRY_S: Final = 5.0  # then the job is looked at again
LOOK_S: Final = 0.25
AHEAD: Final = 16  # output tokens before its end that a bound is raised, so that the stream need not wait


def over_limit(blocked: Blocked, *, is_cut: bool = False) -> OverLimit:
    """The end of an attempt that a limit keeps from going on; `is_cut`: in the middle of a call, which is paid for."""
    why, is_held = blocked.why, blocked.kind == "held"
    if is_held or blocked.kind == "unpriced":
        # As soon as calls under way end; as soon as limits are others. Not at the turn of the window.
        why = msgspec.structs.replace(why, frees_at=None)
    sentence = sentence_of(why)
    if is_held:
        sentence += " What is reserved is for calls under way; it is free when they end."
    elif blocked.kind == "unpriced":
        sentence = f"No price of the model is known, and the {why.scope} has a hard limit in USD; see ERRAND_PRICES."
    kind = "rate" if blocked.kind == "rate" else "budget"
    if kind == "budget" and not is_held:
        BUDGETS_REFUSED.labels(why.scope, why.period or "total", why.unit).inc()
    delay_s = why.wait_s if kind == "rate" else HELD_RETRY_S if is_held else None
    return OverLimit(
        kind,
        sentence,
        detail_of(why),
        delay_s=delay_s,
        due_ms=None if why.frees_at is None else round(why.frees_at),
        revision=why.revision,
        is_held=is_held and not is_cut,
    )


class Patience:
    """The waits of one call before it is made."""

    def __init__(self, lane: str, ends_s: float) -> None:
        """`ends_s`: when the attempt's time is over, monotonic."""
        self._held_until_s = monotonic_s() + HELD_S[Lane(lane)]
        self._ends_s = ends_s

    async def wait(self, blocked: Blocked) -> None:
        """Until it is worth another look. Raises OverLimit when that takes too long."""
        LIMIT_WAITS.labels(blocked.kind).inc()
        wait_s = _wait_s(blocked.kind, blocked.why)
        too_long = wait_s > RATE_SLOT_S or (blocked.kind == "held" and monotonic_s() > self._held_until_s)
        if blocked.kind in ("spent", "unpriced") or too_long or monotonic_s() + wait_s > self._ends_s:
            raise over_limit(blocked)
        await asyncio.sleep(wait_s)


def _wait_s(kind: str, why: Why) -> float:
    if kind == "rate":
        return why.wait_s + 0.001
    return LOOK_S * random.uniform(0.5, 1.5)  # noqa: S311 - so that those who wait do not look in step


class Allowance:
    """The output that one call may make, reserved slice by slice while it comes; the pacer of its stream."""

    def __init__(self, journal: Journal, step: Step, progress: Progress, pacer: Pacer | None) -> None:
        self._journal = journal
        self._call_id = step.call_id
        self._bound = step.bound
        self._progress = progress
        self._pacer = pacer
        self._asking: asyncio.Task[None] | None = None
        self._blocked: Blocked | None = None

    @property
    def is_full(self) -> bool:
        """Whether the stream should wait. Asks for more in time."""
        if self._bound is not None:
            made = self._progress.made
            if made + AHEAD >= self._bound:
                if self._asking is None and self._blocked is None:
                    self._asking = asyncio.create_task(self._extend(), name="extend")
                # What is reserved may be used to the last token; the chunk that goes beyond is the one too many.
                if made > self._bound:
                    return True
        return self._pacer is not None and self._pacer.is_full

    async def room(self) -> None:
        """Waits for more. Raises OverLimit when there is none, and LeaseLostError."""
        while self._bound is not None and self._progress.made > self._bound:
            if self._blocked is not None:
                raise over_limit(self._blocked, is_cut=True)
            if self._asking is None:
                self._asking = asyncio.create_task(self._extend(), name="extend")
            await asyncio.shield(self._asking)
        if self._pacer is not None and self._pacer.is_full:
            await self._pacer.room()

    async def _extend(self) -> None:
        # No waiting for room: the model would go on meanwhile, and what it makes unread is paid for.
        assert self._bound is not None
        granted = await self._journal.extend(self._call_id, self._progress.made, self._bound)
        self._asking = None
        if isinstance(granted, int):
            self._bound = granted
        else:
            self._blocked = granted

    async def close(self) -> None:
        """The call is over. A request for more that is under way is given up: it was sent before the settlement, or
        finds the call no longer under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
