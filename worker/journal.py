"""The journal: a step whose result was written is never paid again; a call is booked whatever became of it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.redis import OUTAGE
from shared.stores.events import Begun, Blocked, CallUsage, EventsStore, Reservation, Unsure
from shared.stores.jobs import Claimed

T = TypeVar("T")


def step_name(label: str, identity: bytes) -> str:
    """How a step is named in the journal: its place, and a hash of its input."""
    return f"{label}:{hashlib.sha256(identity).hexdigest()[:24]}"


RECONNECT_S = 0.25
BOOKING_S = 10.0  # a call that is cancelled is still booked, within this time


class Step:
    """One call in progress: what it has used so far is what it is charged for if it does not end well."""

    def __init__(self, once: bool = False) -> None:
        self.once = once
        self.part: tuple[int, str] | None = None  # a part of the job's output that belongs to the result
        self.wasted_tokens = 0  # of its usage, what bought nothing
        self.usage: Callable[[], CallUsage] = CallUsage
        self.on_spent: Callable[[], None] = lambda: None  # called when the usage is counted as spent
        self.call_id = ""
        self.bound: int | None = None  # output tokens that are reserved; None: nothing limits it
        self.ratio: float | None = None  # bytes per token of the model, as learned so far
        self.input_bytes = 0  # of what was counted as input, when something is to be learned from it


class UnsureError(Exception):
    """A step that must not be repeated unasked was begun before as `call`, and nobody knows how it ended."""

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call


class BlockedError(Exception):
    """A limit keeps the call of a step from being made; nothing was marked or reserved."""

    def __init__(self, blocked: Blocked) -> None:
        super().__init__(blocked.kind)
        self.blocked = blocked


class Journal:
    """The steps of one attempt."""

    def __init__(self, store: EventsStore, claimed: Claimed, worker: str) -> None:
        self._store = store
        self._claimed = claimed
        self.worker = worker
        self.tokens_spent = claimed.tokens_used
        self._telling: set[asyncio.Task[None]] = set()

    async def step(
        self,
        label: str,
        identity: bytes,
        call: Callable[[Step], Awaitable[bytes]],
        *,
        reserve: Reservation | None = None,
        once: bool = False,
        again_after: str | None = None,
    ) -> tuple[bytes, bool]:
        """The result of a step, and whether it came from the journal.

        `label` names its place, `identity` is hashed as its input; `reserve` is what its model call needs, None for a
        step without one. `call` makes the call and returns the JSON to journal; it sets `step.usage`. With `once` a
        step that was begun and not finished is not begun again, unless it was begun as the call `again_after`.

        Raises what `call` raises, UnsureError, BlockedError, and LeaseLostError.
        """
        name = step_name(label, identity)
        call_id = secrets.token_hex(8)
        begin = asyncio.create_task(self._begin(name, label, call_id, reserve, once, again_after))
        step = Step(once)
        step.call_id = call_id
        result: bytes | None = None
        begun = False
        try:
            known = await asyncio.shield(begin)
            if not isinstance(known, Begun):
                return known, True
            begun = True
            step.bound, step.ratio = known.bound, known.ratio
            result = await call(step)
            return result, False
        except asyncio.CancelledError:
            # Whether the step was marked as started is seen when the script's answer is there.
            if not begun:
                await asyncio.wait([begin], timeout=BOOKING_S)
                if not begin.done():
                    begin.cancel()  # Redis is away: it must not open a call later that nobody makes
                begun = begin.done() and begin.exception() is None and isinstance(begin.result(), Begun)
            raise
        finally:
            if begun:
                await self._settle(name, label, step, result, reserve)

    async def answer(self, request_id: str) -> bytes | None:
        """A person's answer to a question of the job, as JSON; None when there is none yet."""
        return await self._steadily(lambda: self._store.answer(self._claimed, request_id))

    async def extend(self, call_id: str, seen: int, bound: int) -> int | Blocked:
        """More output for a call under way; see EventsStore.extend. Raises LeaseLostError."""
        return await self._steadily(
            lambda: self._store.extend(self._claimed, self.worker, call=call_id, seen=seen, bound=bound)
        )

    async def extend_texts(self, call_id: str, reserved: int, more: int) -> int | Blocked:
        """`more` tokens of texts for a call under way that embeds, and has `reserved`. Raises LeaseLostError."""
        return await self._steadily(
            lambda: self._store.extend(self._claimed, self.worker, call=call_id, seen=0, bound=reserved, embeds=more)
        )

    def dispatched(self, call_id: str) -> None:
        """A call that waited is sent now. Not waited for: the model would be idle meanwhile."""
        task = asyncio.create_task(self._steadily(lambda: self._store.dispatched(self._claimed, call_id)))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _settle(
        self, name: str, label: str, step: Step, result: bytes | None, reserve: Reservation | None
    ) -> None:
        """Books a call, also when it (or this) is cancelled: it was paid for all the same."""
        usage = step.usage()
        self.tokens_spent += usage.total
        step.on_spent()
        booking = asyncio.create_task(self._book(name, label, usage, result, step, reserve))
        try:
            await asyncio.shield(booking)
        except asyncio.CancelledError:
            booking.add_done_callback(lambda task: task.cancelled() or task.exception())  # a lost lease: nobody asks
            await asyncio.wait([booking], timeout=BOOKING_S)
            raise

    async def _begin(
        self,
        name: str,
        label: str,
        call_id: str,
        reserve: Reservation | None,
        once: bool,
        again_after: str | None,
    ) -> bytes | Begun:
        known = await self._steadily(
            lambda: self._store.begin_step(
                self._claimed, self.worker, step=name, label=label, call=call_id, reserve=reserve, once=once,
                again_after=again_after,
            )
        )  # fmt: skip
        if isinstance(known, Unsure):
            raise UnsureError(known.call)
        if isinstance(known, Blocked):
            raise BlockedError(known)
        return known

    async def _book(
        self,
        name: str,
        label: str,
        usage: CallUsage,
        result: bytes | None,
        step: Step,
        reserve: Reservation | None,
    ) -> None:
        await self._steadily(
            lambda: self._store.finish_step(
                self._claimed,
                self.worker,
                step=name,
                label=label,
                call=step.call_id,
                usage=usage,
                result=result,
                wasted=usage.total if result is None else step.wasted_tokens,
                keep_mark=step.once,
                part=step.part,
                model=reserve.model if reserve else "",
                price=reserve.price if reserve else None,
                input_bytes=0 if usage.estimated or result is None else step.input_bytes,
            )
        )

    async def _steadily(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeats a write until Redis is back. Every journal script may be repeated without harm."""
        while True:
            try:
                return await write()
            except OUTAGE:
                await asyncio.sleep(RECONNECT_S)
