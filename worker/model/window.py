"""How many calls of batch work may be under way at one model: as many as it takes without saying 429.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with two refinements. A refusal lowers the bound to
the number of calls that are still being served, if that is more than half: it is what the model has just shown to
take, where a plain halving would leave half of it idle. And after a refusal the bound is left alone for a while that
doubles up to half a minute, so that probing costs a refusal now and then, not one in each round.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from typing import Final

from shared.clock import monotonic_s
from shared.errors import JobError, UpstreamRateLimited

FIRST: Final = 16  # calls at first; each answer adds one until the first refusal
FIRST_HOLD_S: Final = 1.0
LONGEST_HOLD_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.25  # after a refusal that leaves nothing under way and states no time
LONGEST_PAUSE_S: Final = 5.0
LONGEST_WISH_S: Final = 120.0  # a Retry-After above this is cut


class Window:
    """The bound for one model in one worker. Used as: `place = await enter()`, then once `served`, `refused` or `left`
    with that place."""

    def __init__(self, most: int) -> None:
        self.limit = float(min(FIRST, most))
        self.in_flight = 0
        self._most = most
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by owner, whose turn it is first
        self._ramping = True
        self._entered = 0  # numbers the calls
        self._decreased_at = 0  # calls up to this number cannot halve the bound again
        self._floor = 1.0
        self._hold_s = FIRST_HOLD_S
        self._held_until_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._paused_until_s = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self.served_at_s = 0.0  # monotonic; when the model last took a call

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way or waits."""
        return self.in_flight == 0 and not self._waiting

    async def enter(self, owner: str = "") -> int:
        """Waits for a place and returns its number. Owners (jobs) take turns; within one it is first come, first
        served."""
        if self._waiting or not self._is_free():
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(owner, deque()).append(mine)
            self._admit()
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._leave()  # the place was given in the same moment
                raise
        else:
            self.in_flight += 1
        self._entered += 1
        return self._entered

    def served(self, place: int) -> None:
        """The model answered."""
        self.served_at_s = monotonic_s()
        self._pause_s = FIRST_PAUSE_S
        was_full = self.in_flight >= int(self.limit)
        if was_full and (self._ramping or monotonic_s() >= self._held_until_s):
            step = 1.0 if self._ramping else 1.0 / max(self.limit, 1.0)
            self.limit = min(float(self._most), self.limit + step)
        self._leave()

    def refused(self, place: int, retry_after_s: float | None) -> None:
        """The model said 429: fewer calls from now on, and none at all for as long as it wished."""
        now_s = monotonic_s()
        self._ramping = False
        self.in_flight -= 1
        if place > self._decreased_at:
            self._decreased_at = self._entered
            self._floor = max(1.0, self.limit / 2)
            self._hold_s = min(self._hold_s * 2, LONGEST_HOLD_S) if now_s > self._held_until_s else self._hold_s
            self._held_until_s = now_s + self._hold_s
        self.limit = max(self._floor, min(self.limit, float(self.in_flight)))
        wait_s = min(retry_after_s, LONGEST_WISH_S) if retry_after_s else 0.0
        if not wait_s and self.in_flight == 0:
            wait_s = self._pause_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        self._paused_until_s = max(self._paused_until_s, now_s + wait_s)
        self._admit()

    def left(self, place: int) -> None:
        """The call ended in another way, which tells nothing of the bound."""
        self._leave()

    def pause(self, seconds: float) -> None:
        """No call begins for so long: the model wished so without saying 429."""
        self._paused_until_s = max(self._paused_until_s, monotonic_s() + min(seconds, LONGEST_WISH_S))

    def _leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _is_free(self) -> bool:
        return self.in_flight < int(self.limit) and monotonic_s() >= self._paused_until_s

    def _admit(self) -> None:
        while self._waiting and self._is_free():
            owner, queue = self._waiting.popitem(last=False)
            while queue:
                first = queue.popleft()
                if not first.done():  # else it was cancelled
                    self.in_flight += 1
                    first.set_result(None)
                    break
            if queue:
                self._waiting[owner] = queue
        left_s = self._paused_until_s - monotonic_s()
        if self._waiting and left_s > 0 and self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(left_s + 0.001, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self._admit()


class Place:
    """A place in a window, given back once: only the first of its calls counts."""

    def __init__(self, window: Window, number: int) -> None:
        self._window = window
        self._number = number
        self._is_taken = True

    @classmethod
    async def take(cls, window: Window, owner: str) -> Place:
        """Waits for one."""
        return cls(window, await window.enter(owner))

    def _gives_back(self) -> bool:
        was_taken, self._is_taken = self._is_taken, False
        return was_taken

    def served(self) -> None:
        """The model answered."""
        if self._gives_back():
            self._window.served(self._number)

    def failed(self, error: BaseException) -> None:
        """The call ended with an error."""
        if not self._gives_back():
            return
        if isinstance(error, UpstreamRateLimited):
            self._window.refused(self._number, error.retry_after_s)
            return
        if isinstance(error, JobError) and error.retry_after_s:
            self._window.pause(error.retry_after_s)
        self._window.left(self._number)

    def left(self) -> None:
        """No call was made."""
        if self._gives_back():
            self._window.left(self._number)
