"""Live events: one subscriber connection for the whole process, fanned out in memory, and the merge of a job's
log with what comes live."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

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


class Subscription:
    """A reader's bounded buffer of one job's live messages. Over its bound it is emptied and `behind` is set: the
    reader goes back to the log, which has everything."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self.behind = False
        self.closed = False

    def push(self, message: bytes) -> None:
        """Adds a message, or gives up the buffer when it would grow over its bound."""
        if not self.behind:
            self._messages.append(message)
            self._size += len(message)
            if len(self._messages) > MAX_BUFFERED or self._size > MAX_BUFFERED_BYTES:
                self.fall_behind()
        self._wake.set()

    def fall_behind(self) -> None:
        """Forgets what is buffered; the reader must look into the log."""
        self._messages.clear()
        self._size = 0
        self.behind = True
        self._wake.set()

    def close(self) -> None:
        """The process is stopping."""
        self.closed = True
        self._wake.set()

    async def take(self, timeout_s: float) -> list[bytes]:
        """What has come, at once or within `timeout_s`; empty when nothing did, or when `behind` or `closed` is set."""
        if not self._messages and not self.behind and not self.closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        self._wake.clear()
        taken = list(self._messages)
        self._messages.clear()
        self._size = 0
        return taken


class _Channel:
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
        self._on_revoked: list[Any] = []
        self.closing = False

    def on_revoked(self, callback: Any) -> None:
        """`callback(key_id)` is called when a key was revoked anywhere."""
        self._on_revoked.append(callback)

    async def start(self) -> None:
        """Connects in the background and stays connected."""
        await self._subscriber.subscribe(self._keys.revoked_channel)
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
            for callback in self._on_revoked:
                callback(data.decode())

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
    async def subscribe(self, job_id: str) -> AsyncIterator[Subscription]:
        """A buffer of the job's live messages, subscribed before it is handed out: read the log after that.

        Without Redis the buffer is handed out all the same, as `behind`; it goes live when Redis is back.
        """
        name = self._keys.events_channel(job_id)
        reader = Subscription()
        reader.closed = self.closing
        channel = self._channels.get(name)
        is_first = channel is None
        if channel is None:
            channel = self._channels[name] = _Channel()
        channel.readers.add(reader)
        try:
            if is_first:
                await self._subscriber.subscribe(name)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await channel.ready.wait()
            if not channel.ready.is_set():
                channel.lost = True
                reader.fall_behind()
            yield reader
        finally:
            channel.readers.discard(reader)
            if not channel.readers and self._channels.get(name) is channel:
                del self._channels[name]
                await self._subscriber.unsubscribe(name)


class Gap(msgspec.Struct, frozen=True):
    """Events `first` to `last` are no longer in the log."""

    first: int
    last: int


class ReplayEnd(msgspec.Struct, frozen=True):
    """What follows is live."""


class Heartbeat(msgspec.Struct, frozen=True):
    """Nothing has happened for the heartbeat's time."""


class Closing(msgspec.Struct, frozen=True):
    """This process is stopping; the reader should come back to another."""


Frame = list[Event] | Gap | ReplayEnd | Heartbeat | Closing


async def follow(
    hub: Hub, events: EventsStore, job_id: str, *, after: int, heartbeat_s: float
) -> AsyncGenerator[Frame, None]:
    """A job's events above `after`: from the log, then live, each exactly once and in order.

    Ends after a final event that is the log's newest, or with Closing; the caller has made sure that `after` is not
    that event already. While Redis is out of reach it yields
    heartbeats, and goes on where it was when Redis is back.
    """
    async with hub.subscribe(job_id) as live:
        cursor, replaying, last_sent = after, True, monotonic_s()
        must_read, ended = True, False
        while True:
            if live.closed:
                yield Closing()
                return
            if must_read:
                live.behind = False
                try:
                    page = await events.read(job_id, after=cursor)
                except OUTAGE:
                    REDIS_OUTAGES.labels("api").inc()
                    page = []
                    live.behind = True
                    await asyncio.sleep(0.25)
                if page:
                    if page[0].seq > cursor + 1:
                        yield Gap(cursor + 1, page[0].seq - 1)
                    cursor, ended = page[-1].seq, page[-1].is_final
                    yield page
                    last_sent = monotonic_s()
                    continue
                must_read = live.behind
                if not must_read:
                    if ended:
                        return
                    if replaying:
                        replaying = False
                        yield ReplayEnd()
            patience = heartbeat_s - (monotonic_s() - last_sent)
            if patience <= 0:
                # The log is looked at as well: the net under a live message that never came.
                must_read = True
                last_sent = monotonic_s()
                yield Heartbeat()
                continue
            if must_read:
                continue
            fresh: list[Event] = []
            for message in await live.take(patience):
                event = from_message(message)
                if event.seq <= cursor:
                    continue
                if event.seq != cursor + 1:
                    must_read = True
                    break
                fresh.append(event)
                cursor = event.seq
            must_read = must_read or live.behind
            if fresh:
                yield fresh
                last_sent = monotonic_s()
                if fresh[-1].is_final and not must_read:
                    return
