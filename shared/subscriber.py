"""One pub/sub connection that stays connected. Connecting, TLS, AUTH and parsing are redis-py's, through its public
Connection; its PubSub class costs several times as much per message, which a sleeping worker waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from shared.log import get_logger
from shared.redis import OUTAGE, Redis, shielded
from shared.sentinel import FollowingConnection, FollowingSSLConnection

log = get_logger()

RECONNECT_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)
SILENCE_S: Final = 10.0  # after this a PING is sent; after as much again the connection is taken for dead


class Subscriber:
    """Calls `on_message(channel, data)` for each message, `on_subscribed(channel)` whenever Redis has confirmed a
    subscription (also after each reconnect: what was published before is lost), `on_lost(error)` when the connection
    breaks. All are called on the event loop and must return at once."""

    def __init__(
        self,
        client: Redis,
        *,
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[str], None],
        on_lost: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`client` has no socket time-out."""
        self._client = client
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._on_lost = on_lost
        self._channels: dict[str, None] = {}
        self._unconfirmed: dict[str, int] = {}
        self._connection: Any = None
        self._closing = False

    async def subscribe(self, *channels: str) -> None:
        """Adds channels, now and after each reconnect. Without Redis it takes effect when Redis is back."""
        self._channels.update(dict.fromkeys(channels))
        for channel in channels:
            self._unconfirmed[channel] = self._unconfirmed.get(channel, 0) + 1
        await self._send("SUBSCRIBE", channels)

    async def unsubscribe(self, *channels: str) -> None:
        """Drops channels."""
        for channel in channels:
            self._channels.pop(channel, None)
        await self._send("UNSUBSCRIBE", channels)

    async def _send(self, command: str, channels: Iterable[str]) -> None:
        connection = self._connection
        if connection is not None:
            with suppress(*OUTAGE, OSError):
                await shielded(connection.send_command(command, *channels, check_health=False))

    async def run(self) -> None:
        """Connects and reads until it is cancelled or closed."""
        failures = 0
        while not self._closing:
            connection = self._client.connection_pool.make_connection()
            try:
                await connection.connect()
                # In the same breath: a channel that is added from here on is sent by `subscribe`.
                names, self._connection = list(self._channels), connection
                self._unconfirmed = dict.fromkeys(names, 1)
                if names:
                    await connection.send_command("SUBSCRIBE", *names, check_health=False)
                failures = 0
                await self._read(connection)
            except (RedisError, OSError) as error:
                if not self._closing:
                    if failures == 0:
                        log.warning("subscriber.disconnected", error=f"{type(error).__name__}: {error}")
                    self._on_lost(error)
            except Exception as error:
                log.exception("subscriber.failed")
                self._on_lost(error)
            finally:
                self._connection = None
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            if not self._closing:
                await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
            failures += 1

    async def _read(self, connection: Any) -> None:
        asked = False
        while not self._closing:
            reply = await connection.read_response(timeout=SILENCE_S)
            if reply is None:
                if asked:
                    raise RedisConnectionError("the subscriber's connection is silent")
                asked = True
                following = isinstance(connection, FollowingConnection | FollowingSSLConnection)
                if following and not await connection.is_current():
                    raise RedisConnectionError("another server is the primary now")
                await connection.send_command("PING", check_health=False)
                continue
            asked = False
            if reply[0] == b"message":
                self._on_message(reply[1].decode(), reply[2])
            elif reply[0] == b"subscribe":
                channel = reply[1].decode()
                # Dropped and added again: only the last confirmation says that it stands.
                if (left := self._unconfirmed.pop(channel, 1) - 1) > 0:
                    self._unconfirmed[channel] = left
                else:
                    self._on_subscribed(channel)

    async def close(self, task: asyncio.Task[None]) -> None:
        """Ends `task`, which is this subscriber's `run`, and its connection."""
        self._closing = True
        # Again and again: redis-py can swallow a cancellation.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
