"""One connection that all callers of a process share, in the manner of a group commit.

Commands that come in while a batch is under way are sent together as the next one. With `appendfsync always` Redis
syncs once per batch, and the client library's cost per command falls to packing and parsing. Connecting, TLS, AUTH and
parsing are redis-py's, through its public Connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any, Final

import redis.asyncio as redis_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

MAX_BATCH: Final = 512  # commands
MAX_BATCH_BYTES: Final = 1024 * 1024


class Pipe:
    """Runs commands in batches on one connection; made at the first command, made anew after it broke."""

    def __init__(self, pool: redis_asyncio.ConnectionPool) -> None:
        self._pool = pool
        self._waiting: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._wake = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None
        self._connection: Any = None
        self._packer: Any = None

    async def execute(self, *command: Any) -> Any:
        """A command's reply. A cancelled caller leaves its command to run: it was sent, or will be.

        Raises the ResponseError that Redis answered, or a connection error: the command then ran or did not.
        """
        if self._packer is None:
            self._packer = self._pool.make_connection()
        packed = b"".join(self._packer.pack_command(*command))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((packed, future))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive(), name="redis-pipe")
        self._wake.set()
        return await future

    async def _drive(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = self._take()
                try:
                    await self._exchange(batch)
                except (RedisError, OSError) as error:
                    await self._fail(batch, error)
                except Exception as error:
                    await self._fail(batch, RedisConnectionError(f"{type(error).__name__}: {error}"))
                except asyncio.CancelledError:
                    await self._fail(batch, RedisConnectionError("the connection is being closed"))
                    raise

    def _take(self) -> list[tuple[bytes, asyncio.Future[Any]]]:
        batch: list[tuple[bytes, asyncio.Future[Any]]] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0])
        return batch

    async def _exchange(self, batch: list[tuple[bytes, asyncio.Future[Any]]]) -> None:
        if self._connection is None:
            self._connection = self._pool.make_connection()
        if not self._connection.is_connected:
            await self._connection.connect()
        await self._connection.send_packed_command(b"".join(packed for packed, _ in batch), check_health=False)
        for _, future in batch:
            try:
                reply = await self._connection.read_response()
            except ResponseError as error:
                if not future.done():
                    future.set_exception(error)
                continue
            if not future.done():
                future.set_result(reply)

    async def _fail(self, batch: list[tuple[bytes, asyncio.Future[Any]]], error: BaseException) -> None:
        """The connection broke: what has no reply yet fails, also what was not sent yet (nobody waits for one time-out
        after the other), and the next command begins on a new one."""
        broken = error if isinstance(error, RedisError) else RedisConnectionError(str(error))
        unsent = list(self._waiting)
        self._waiting.clear()
        for _, future in (*batch, *unsent):
            if not future.done():
                future.set_exception(broken)
        if self._connection is not None:
            with suppress(RedisError, OSError):
                await self._connection.disconnect(nowait=True)
            self._connection = None

    async def aclose(self) -> None:
        """Closes the connection; callers that still wait get a connection error."""
        driver, self._driver = self._driver, None
        # Again and again: redis-py can swallow a cancellation.
        while driver is not None and not driver.done():
            driver.cancel()
            await asyncio.wait([driver], timeout=0.2)
        await self._fail([], RedisConnectionError("the connection is closed"))
