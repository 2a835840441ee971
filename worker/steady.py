"""Stores as tasks use them: a call that Redis could not answer is made again until it can, as the journal does."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Final, TypeVar, cast

from shared.redis import OUTAGE

T = TypeVar("T")

RECONNECT_S: Final = 0.25


class _Steady:
    """Its methods are those of the store, repeated through an outage. Every write of these stores may be repeated."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def steadily(*given: Any, **named: Any) -> Any:
            while True:
                try:
                    return await found(*given, **named)
                except OUTAGE:
                    await asyncio.sleep(RECONNECT_S)

        return steadily


def steady(store: T) -> T:
    """The store, whose coroutines wait for Redis as long as it takes; its generators do not."""
    return cast(T, _Steady(store))
