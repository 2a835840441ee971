"""The journal: a step whose result was written is never paid again; a call is booked whatever became of it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.redis import OUTAGE
from shared.stores.events import CallUsage, EventsStore, Unsure
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


class UnsureError(Exception):
    """A step that must not be repeated unasked was begun before as `call`, and nobody knows how it ended."""

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call


class Journal:
    """The steps of one attempt."""

    def __init__(self, store: EventsStore, claimed: Claimed, worker: str) -> None:
        self._store = store
        self._claimed = claimed
        self._worker = worker
        self.tokens_spent = claimed.tokens_used

    async def step(
        self,
        label: str,
        identity: bytes,
        tokens: int,
        call: Callable[[Step], Awaitable[bytes]],
        *,
        embeds: bool = False,
        once: bool = False,
        again_after: str | None = None,
    ) -> tuple[bytes, bool]:
        """The result of a step, and whether it came from the journal.

        `label` names its place, `identity` is hashed as its input, `tokens` estimates the input (which
        it `embeds`). `call` makes the call and returns the JSON to journal; it sets `step.usage`. With `once` a step
        that was begun and not finished is not begun again, unless it was begun as the call `again_after`.

        Raises what `call` raises, UnsureError, and LeaseLostError.
        """
        name = step_name(label, identity)
        call_id = secrets.token_hex(8)
        begin = asyncio.create_task(self._begin(name, label, call_id, tokens, embeds, once, again_after))
        step = Step(once)
        result: bytes | None = None
        begun = False
        try:
            known = await asyncio.shield(begin)
            if known is not None:
                return known, True
            begun = True
            result = await call(step)
            return result, False
        except asyncio.CancelledError:
            # Whether the step was marked as started is seen when the script's answer is there.
            if not begun:
                await asyncio.wait([begin], timeout=BOOKING_S)
                if not begin.done():
                    begin.cancel()  # Redis is away: it must not open a call later that nobody makes
                begun = begin.done() and begin.exception() is None and begin.result() is None
            raise
        finally:
            if begun:
                await self._settle(name, label, call_id, step, result)

    async def answer(self, request_id: str) -> bytes | None:
        """A person's answer to a question of the job, as JSON; None when there is none yet."""
        return await self._steadily(lambda: self._store.answer(self._claimed, request_id))

    async def _settle(self, name: str, label: str, call_id: str, step: Step, result: bytes | None) -> None:
        """Books a call, also when it (or this) is cancelled: it was paid for all the same."""
        usage = step.usage()
        self.tokens_spent += usage.total
        step.on_spent()
        booking = asyncio.create_task(self._book(name, label, call_id, usage, result, step))
        try:
            await asyncio.shield(booking)
        except asyncio.CancelledError:
            await asyncio.wait([booking], timeout=BOOKING_S)
            raise

    async def _begin(
        self, name: str, label: str, call_id: str, tokens: int, embeds: bool, once: bool, again_after: str | None
    ) -> bytes | None:
        known = await self._steadily(
            lambda: self._store.begin_step(
                self._claimed, self._worker, step=name, label=label, call=call_id, tokens=tokens, embeds=embeds,
                once=once, again_after=again_after,
            )
        )  # fmt: skip
        if isinstance(known, Unsure):
            raise UnsureError(known.call)
        return known

    async def _book(
        self, name: str, label: str, call_id: str, usage: CallUsage, result: bytes | None, step: Step
    ) -> None:
        await self._steadily(
            lambda: self._store.finish_step(
                self._claimed,
                self._worker,
                step=name,
                label=label,
                call=call_id,
                usage=usage,
                result=result,
                wasted=usage.total if result is None else step.wasted_tokens,
                keep_mark=step.once,
                part=step.part,
            )
        )

    async def _steadily(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeats a write until Redis is back. Every journal script may be repeated without harm."""
        while True:
            try:
                return await write()
            except OUTAGE:
                await asyncio.sleep(RECONNECT_S)
