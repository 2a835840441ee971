"""The watch on the worker's own event loop."""

from __future__ import annotations

import asyncio
import time

import structlog

from shared.metrics import LOOP_BLOCKED
from worker.upkeep import LoopWatch


async def test_a_blocked_loop_is_noticed_and_named() -> None:
    """Given a watched loop, when something blocks it for a second, then it is counted and its place is logged."""
    before = LOOP_BLOCKED._value.get()
    watch = asyncio.create_task(LoopWatch().run())
    await asyncio.sleep(0.2)
    with structlog.testing.capture_logs() as lines:
        time.sleep(1.0)  # noqa: ASYNC251 - the blocking call that is to be noticed
        await asyncio.sleep(0.2)
    watch.cancel()
    await asyncio.wait([watch])
    assert LOOP_BLOCKED._value.get() == before + 1
    (line,) = [line for line in lines if line["event"] == "loop.blocked"]
    assert any("test_watch.py" in place for place in line["where"])
    assert line["seconds"] > 0.5
