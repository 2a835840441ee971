"""Live events: one subscriber connection for the whole process, fanned out in memory, and the merge of a job's
log with what comes live."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from shared.clock import monotonic_s
from shared.events import Event, from_message
from shared.keys import Keys
from shared.metrics import REDIS_OUTAGES
from shared.redis import OUTAGE, Redis
from shared.stores.events import EventsStore
from shared.subscriber import Subscriber

MAX_BUFFERED: Final = 256  # messages a reader may lag behind
MAX_BUFFERED_BYTES: Final = 256 * 1024
PAGE: Final = 128  # events that are read from the log at a time: they are in memory while a slow reader takes them
OUTAGE_S: Final = 0.25


class Budget:
    """What several buffers may hold together: those of one WebSocket."""

    def __init__(self, messages: int = 4 * MAX_BUFFERED, size_bytes: int = MAX_BUFFERED_BYTES) -> None:
        self.messages = messages
        self.size_bytes = size_bytes


class Subscription:
    """A reader's bounded buffer of one job's live messages. Over its bound it is emptied and `behind` is set: the
    reader goes back to the log, which has everything. `on_news` is called whenever it has something to look at."""

    __slots__ = ("_budget", "_messages", "_on_news", "_size", "_wake", "behind", "closed", "newest")

    def __init__(self, on_news: Callable[[], None] | None = None, budget: Budget | None = None) -> None:
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._budget = budget
        self._wake = asyncio.Event() if on_news is None else None
        self._on_news = on_news if self._wake is None else self._wake.set
        self.behind = False
        self.closed = False
        self.newest = 0  # number of the last message that was forgotten

    def push(self, message: bytes) -> None:
        """Adds a message, or gives up the buffer when it would grow over its bound."""
        if self.behind:
            self.newest = _number(message)
        else:
            self._messages.append(message)
            self._size += len(message)
            if (budget := self._budget) is not None:
                budget.messages -= 1
                budget.size_bytes -= len(message)
            if (
                len(self._messages) > MAX_BUFFERED
                or self._size > MAX_BUFFERED_BYTES
                or (budget is not None and (budget.messages < 0 or budget.size_bytes < 0))
            ):
                self.newest = _number(message)
                self.fall_behind()
        self._tell()

    def fall_behind(self) -> None:
        """Forgets what is buffered; the reader must look into the log."""
        self.take()
        self.behind = True
        self._tell()

    def close(self) -> None:
        """The process is stopping."""
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        if self._on_news is not None:
            self._on_news()

    def take(self) -> list[bytes]:
        """What has come."""
        taken = list(self._messages)
        self._messages.clear()
        if self._budget is not None:
            self._budget.messages += len(taken)
            self._budget.size_bytes += self._size
        self._size = 0
        return taken

    def forget(self, seq: int) -> None:
        """Drops what is known already: messages up to this number."""
        while self._messages and _number(self._messages[0]) <= seq:
            size = len(self._messages.popleft())
            self._size -= size
            if self._budget is not None:
                self._budget.messages += 1
                self._budget.size_bytes += size

    @property
    def has_news(self) -> bool:
        """Whether there is something to look at."""
        return bool(self._messages) or self.behind or self.closed

    async def wait(self, timeout_s: float) -> None:
        """Until there is something to look at, or `timeout_s` has passed. Not with `on_news`."""
        assert self._wake is not None
        self._wake.clear()
        if not self.has_news:
            # A fifth of the CPU of `asyncio.timeout`, for each message of each stream.
            timer = asyncio.get_running_loop().call_later(timeout_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()


def _number(message: bytes) -> int:
    return int(message.partition(b" ")[0])


class _Channel:
    __slots__ = ("lost", "readers", "ready")

    def __init__(self) -> None:
        self.readers: set[Subscription] = set()
        self.ready = asyncio.Event()  # Redis has confirmed the subscription
        self.lost = False


class Hub:
    """The process's one subscriber connection. After a reconnect every reader is sent back to its log."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        """`client` has no socket time-out."""
        self._client = client
        self._keys = keys
        self._channels: dict[str, _Channel] = {}
        self._subscriber = Subscriber(
            client, on_message=self._message, on_subscribed=self._subscribed, on_lost=self._lost
        )
        self._task: asyncio.Task[None] | None = None
        self._on_revoked: list[Callable[[str, frozenset[str]], None]] = []
        self._on_prompt: list[Callable[[str, str], None]] = []
        self.closing = False

    def on_prompt(self, callback: Callable[[str, str], None]) -> None:
        """`callback(owner, name)` is called when a label or an experiment of a prompt was changed anywhere."""
        self._on_prompt.append(callback)

    def on_revoked(self, callback: Callable[[str, frozenset[str]], None]) -> None:
        """`callback(key_id, live)` is called when a key was changed or revoked anywhere; `live` are the marks of its
        secrets that live on, none when it was revoked."""
        self._on_revoked.append(callback)

    async def start(self) -> None:
        """Connects in the background and stays connected."""
        await self._subscriber.subscribe(self._keys.revoked_channel, self._keys.prompts_channel)
        self._task = asyncio.create_task(self._subscriber.run(), name="hub")

    def end_readers(self) -> None:
        """This process is stopping: every reader ends, and so does each that still comes."""
        self.closing = True
        for channel in self._channels.values():
            for reader in channel.readers:
                reader.close()

    async def close(self) -> None:
        """Ends every reader, then the connection."""
        self.end_readers()
        if self._task:
            await self._subscriber.close(self._task)
        await self._client.aclose()

    def _message(self, name: str, data: bytes) -> None:
        if channel := self._channels.get(name):
            for reader in channel.readers:
                reader.push(data)
        elif name == self._keys.revoked_channel:
            key_id, *live = data.decode().split()
            for callback in self._on_revoked:
                callback(key_id, frozenset(live))
        elif name == self._keys.prompts_channel:
            owner, _, prompt = data.decode().partition(" ")
            for told in self._on_prompt:
                told(owner, prompt)

    def _subscribed(self, name: str) -> None:
        if channel := self._channels.get(name):
            # Between the loss of the connection and now anything may have been published.
            if channel.lost:
                channel.lost = False
                for reader in channel.readers:
                    reader.fall_behind()
            channel.ready.set()

    def _lost(self, _: Exception) -> None:
        REDIS_OUTAGES.labels("api").inc()
        for channel in self._channels.values():
            channel.lost = True
            channel.ready.clear()

    @asynccontextmanager
    async def subscribe(
        self, job_id: str, on_news: Callable[[], None] | None = None, budget: Budget | None = None
    ) -> AsyncIterator[Subscription]:
        """A buffer of the job's live messages, subscribed before it is handed out: read the log after that.

        Without Redis the buffer is handed out all the same, as `behind`; it goes live when Redis is back.
        """
        name = self._keys.events_channel(job_id)
        reader = Subscription(on_news, budget)
        reader.closed = self.closing
        channel = self._channels.get(name)
        is_first = channel is None
        if channel is None:
            channel = self._channels[name] = _Channel()
        channel.readers.add(reader)
        try:
            if is_first:
                await self._subscriber.subscribe(name)
            if not channel.ready.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await channel.ready.wait()
            if not channel.ready.is_set():
                channel.lost = True
                reader.fall_behind()
            yield reader
        finally:
            channel.readers.discard(reader)
            reader.take()
            if not channel.readers and self._channels.get(name) is channel:
                del self._channels[name]
                await self._subscriber.unsubscribe(name)


class Gap(msgspec.Struct, frozen=True):
    """Events `first` to `last` are no longer in the log, or too many for a reader that is too slow."""

    first: int
    last: int


class ReplayEnd(msgspec.Struct, frozen=True):
    """What follows is live."""


class Closing(msgspec.Struct, frozen=True):
    """This process is stopping; the reader should come back to another."""


Frame = list[Event] | Gap | ReplayEnd | Closing


class Feed:
    """A job's events above `after`: from the log, then live, each exactly once and in order. `done` is set after a
    final event that is the log's newest, or after Closing. The caller has made sure that `after` is not that
    event already.

    With `max_lag` a reader that has gone live and is farther behind than that gets a Gap instead of the log.
    """

    __slots__ = ("_cursor", "_ended", "_events", "_job_id", "_live", "_max_lag", "_must_read", "_replaying", "done")

    def __init__(
        self, live: Subscription, events: EventsStore, job_id: str, after: int, max_lag: int | None = None
    ) -> None:
        self._live = live
        self._events = events
        self._job_id = job_id
        self._cursor = after
        self._max_lag = max_lag
        self._must_read = True
        self._replaying = True
        self._ended = False
        self.done = False

    async def step(self) -> list[Frame]:
        """What is there now; empty when that is nothing. Raises a member of OUTAGE: to be called again later."""
        live = self._live
        if live.closed:
            self.done = True
            return [Closing()]
        if self._must_read or live.behind:
            return await self._read()
        fresh: list[Event] = []
        for message in live.take():
            event = from_message(message)
            if event.seq <= self._cursor:
                continue
            if event.seq != self._cursor + 1:
                self._must_read = True
                break
            fresh.append(event)
            self._cursor = event.seq
        if not fresh:
            return await self._read() if self._must_read else []
        self._ended = fresh[-1].is_final
        self.done = self._ended and not self._must_read and not live.behind
        return [fresh]

    async def _read(self) -> list[Frame]:
        live, frames, cursor = self._live, list[Frame](), self._cursor
        if self._max_lag is not None and not self._replaying and live.newest - cursor > self._max_lag:
            # The last page is sent all the same: the final event may be in it.
            cursor = live.newest - PAGE
            frames.append(Gap(self._cursor + 1, cursor))
        self._must_read, live.behind = True, False
        page = await self._events.read(self._job_id, after=cursor, limit=PAGE)
        self._cursor = cursor
        # Messages that come from here on are buffered: a page that is not full was all.
        self._must_read = len(page) == PAGE
        if page:
            if page[0].seq > self._cursor + 1:
                frames.append(Gap(self._cursor + 1, page[0].seq - 1))
            self._cursor, self._ended = page[-1].seq, page[-1].is_final
            frames.append(page)
        if not self._must_read:
            live.forget(self._cursor)
            self.done = self._ended and not live.has_news
            if self._replaying and not self._ended:
                self._replaying = False
                frames.append(ReplayEnd())
        return frames

    async def next(self, patience_s: float) -> list[Frame]:
        """What comes next; empty when nothing does for `patience_s`, also while Redis is out of reach."""
        deadline = monotonic_s() + patience_s
        while True:
            try:
                frames = await self.step()
            except OUTAGE:
                REDIS_OUTAGES.labels("api").inc()
                if monotonic_s() >= deadline:
                    return []
                await asyncio.sleep(OUTAGE_S)
                continue
            if frames or self.done:
                return frames
            left_s = deadline - monotonic_s()
            if left_s <= 0:
                self._must_read = True  # the net under a live message that never came
                return []
            await self._live.wait(left_s)


@asynccontextmanager
async def follow(hub: Hub, events: EventsStore, job_id: str, *, after: int) -> AsyncIterator[Feed]:
    """The feed of a job, for as long as it is read."""
    async with hub.subscribe(job_id) as live:
        yield Feed(live, events, job_id, after)
