"""Lets a few through in each turn of the event loop, in their order."""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """For a step that costs much CPU and that many tasks may want to take in the same turn of the event loop. What they
    send goes out when the turn ends, and what comes back is read in the next: without this the first of twenty has to
    wait for the twentieth at each of its steps."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_turning = False

    async def enter(self) -> None:
        """Returns at once, or when it is this caller's turn."""
        if self._left > 0 and not self._waiting:
            self._left -= 1
            self._turn_soon()
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._turn_soon()
        await mine

    def _turn_soon(self) -> None:
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turning = False
        self._left = self._per_turn
        while self._waiting and self._left > 0:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                self._left -= 1
        if self._waiting:
            self._turn_soon()
