"""Live events: one subscriber connection for the whole process, fanned out in memory, and the merge of a job's
log with what comes live."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec

from shared.clock import monotonic_s
from shared.events import Event, from_message
from shared.keys import Keys
from shared.log import get_logger
from shared.metrics import REDIS_OUTAGES
from shared.redis import OUTAGE, Redis, shielded
from shared.stores.events import EventsStore

log = get_logger()

MAX_BUFFERED: Final = 256  # messages a reader may lag behind
MAX_BUFFERED_BYTES: Final = 256 * 1024
RECONNECT_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)


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
        self.ready = asyncio.Event()
        self.unconfirmed = 0


class Hub:
    """The process's one subscriber connection. After a reconnect every reader is sent back to its log."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._channels: dict[str, _Channel] = {}
        self._pubsub: Any = None
        self._task: asyncio.Task[None] | None = None
        self._on_revoked: list[Any] = []
        self.closing = False

    def on_revoked(self, callback: Any) -> None:
        """`callback(key_id)` is called when a key was revoked anywhere."""
        self._on_revoked.append(callback)

    async def start(self) -> None:
        """Connects in the background and stays connected."""
        self._task = asyncio.create_task(self._run(), name="hub")

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
            # Again and again: redis-py can swallow a cancellation.
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task], timeout=0.2)
        await self._client.aclose()

    async def _run(self) -> None:
        attempt = 0
        while True:
            pubsub = self._client.pubsub()
            try:
                names = list(self._channels)
                for name in names:
                    self._channels[name].unconfirmed = 1
                await pubsub.subscribe(self._keys.revoked_channel, *names)
                self._pubsub = pubsub
                attempt = 0
                # Readers that came while this connected.
                for name in [name for name in self._channels if name not in names]:
                    if (late := self._channels.get(name)) is not None:
                        late.unconfirmed = 1
                        await pubsub.subscribe(name)
                for channel in self._channels.values():
                    for reader in channel.readers:
                        reader.fall_behind()
                async for message in pubsub.listen():
                    self._dispatch(message)
            except OUTAGE as error:
                REDIS_OUTAGES.labels("api").inc()
                log.warning("hub.disconnected", error=str(error))
            except Exception:
                log.exception("hub.failed")
            finally:
                self._pubsub = None
                with suppress(*OUTAGE):
                    await pubsub.aclose()
            await asyncio.sleep(RECONNECT_S[min(attempt, len(RECONNECT_S) - 1)])
            attempt += 1

    def _dispatch(self, message: dict[str, Any]) -> None:
        name = message["channel"].decode()
        if message["type"] == "message":
            if name == self._keys.revoked_channel:
                for callback in self._on_revoked:
                    callback(message["data"].decode())
            elif channel := self._channels.get(name):
                for reader in channel.readers:
                    reader.push(message["data"])
        elif message["type"] == "subscribe" and (channel := self._channels.get(name)):
            channel.unconfirmed -= 1
            if channel.unconfirmed <= 0:
                channel.ready.set()

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
            if is_first and self._pubsub is not None:
                channel.unconfirmed += 1
                with suppress(*OUTAGE):
                    await shielded(self._pubsub.subscribe(name))
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await channel.ready.wait()
            yield reader
        finally:
            channel.readers.discard(reader)
            if not channel.readers and self._channels.get(name) is channel:
                del self._channels[name]
                if self._pubsub is not None:
                    with suppress(*OUTAGE):
                        await shielded(self._pubsub.unsubscribe(name))


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


async def follow(hub: Hub, events: EventsStore, job_id: str, *, after: int, heartbeat_s: float) -> AsyncIterator[Frame]:
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
