"""When what a run has done is looked at: a while after its end, when no late writer can be left, and before its
retention is over. So a run of hours holds no more of its history than one of minutes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import aiohttp

LOOK_AFTER_S = 45.0  # a frozen worker wakes after seven seconds, Redis after six; the rest is for a busy machine
AT_ONCE = 16

Look = Callable[[], Awaitable[None]]


class Calls:
    """The model's own record of its calls, by the mark of the job that stands in their text: taken over and forgotten
    there, in turns."""

    def __init__(self, model_url: str) -> None:
        self._url = f"{model_url}/dev/stats?calls"
        self.of: dict[str, list[dict[str, int | str]]] = {}

    async def take(self) -> None:
        """Takes over the calls that have ended."""
        async with aiohttp.ClientSession() as session, session.delete(self._url) as answer:
            for call in (await answer.json())["list"]:
                text = spoken(call["body"])
                kept = {name: call[name] for name in ("inputTokens", "outputTokens", "ended")}
                self.of.setdefault(mark_in(text), []).append({**kept, "system": version_in(text)})


def spoken(body: dict[str, object]) -> str:
    """All that a call says."""
    said = body.get("messages") or body.get("input", "")
    return said if isinstance(said, str) else str(said)


def mark_in(text: str) -> str:
    """The job's mark, `ref<number>x`; empty where there is none."""
    at = text.find("ref")
    while at >= 0:
        end = at + 3
        while end < len(text) and text[end].isdigit():
            end += 1
        if end > at + 3 and text[end : end + 1] == "x":
            return text[at : end + 1]
        at = text.find("ref", at + 3)
    return ""


def version_in(text: str) -> str:
    """What a prompt of this run says of itself, `version <n> of <name>`; empty where there is none."""
    at = text.find("You are version ")
    return text[at + 8 : text.find(".", at)] if at >= 0 else ""


class Inspector:
    """Looks that are due later, one after the other in the order of their times."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Look]] = deque()
        self._every: list[tuple[float, Look]] = []

    def later(self, look: Look) -> None:
        """Has something looked at when it has lain for a while."""
        self._waiting.append((time.monotonic() + LOOK_AFTER_S, look))

    def each(self, period_s: float, look: Look) -> None:
        """Has something done again and again."""
        self._every.append((period_s, look))

    async def run(self) -> None:
        """For ever. Raises what a look raises."""
        next_s = [time.monotonic() + period_s for period_s, _ in self._every]
        while True:
            await self._look(lambda due_s: due_s <= time.monotonic())
            for place, (period_s, look) in enumerate(self._every):
                if next_s[place] <= time.monotonic():
                    await look()
                    next_s[place] = time.monotonic() + period_s
            await asyncio.sleep(0.25)

    async def finish(self) -> None:
        """Looks at all that is left."""
        await self._look(lambda due_s: True)
        for _, look in self._every:
            await look()

    async def _look(self, is_due: Callable[[float], bool]) -> None:
        while self._waiting and is_due(self._waiting[0][0]):
            batch: list[Look] = []
            while self._waiting and len(batch) < AT_ONCE and is_due(self._waiting[0][0]):
                batch.append(self._waiting.popleft()[1])
            await asyncio.gather(*(look() for look in batch))
