"""One connection that all callers of a process share, in the manner of a group commit.

Commands that come in while batches are under way are sent together as the next one. With `appendfsync always` Redis
syncs once per batch, and the client library's cost per command falls to packing and parsing. A few batches may be
under way: Redis works on one while we work on the replies of another. Where replicas must confirm what is written, each
batch ends with a WAIT, and its replies count when that is answered. Connecting, TLS, AUTH and parsing are redis-py's,
through its public Connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any, Final

import redis.asyncio as redis_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from shared.scope import apart

MAX_BATCH: Final = 512  # commands
MAX_BATCH_BYTES: Final = 1024 * 1024
WINDOW: Final = 4  # batches under way

Batch = list[tuple[bytes, asyncio.Future[Any]]]


class Pipe:
    """Runs commands in batches on one connection; made at the first command, made anew after it broke."""

    def __init__(self, pool: redis_asyncio.ConnectionPool, *, replicas: int = 0, replicas_ms: int = 0) -> None:
        """`replicas` of Redis must have confirmed each batch, within `replicas_ms`."""
        self._pool = pool
        self._replicas = replicas
        self._replicas_ms = replicas_ms
        self._confirm = b""  # the packed WAIT
        self._waiting: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._sent: deque[Batch] = deque()
        self._work = asyncio.Event()  # something to send, room in the window, or the reader has ended
        self._replies = asyncio.Event()  # something to read
        self._driver: asyncio.Task[None] | None = None
        self._packer: Any = None

    async def execute(self, *command: Any) -> Any:
        """A command's reply. A cancelled caller leaves its command to run: it was sent, or will be.

        Raises the ResponseError that Redis answered, or a connection error: the command then ran or did not.
        """
        if self._packer is None:
            self._packer = self._pool.make_connection()
            if self._replicas:
                self._confirm = b"".join(self._packer.pack_command("WAIT", self._replicas, self._replicas_ms))
        packed = b"".join(self._packer.pack_command(*command))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((packed, future))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive(), name="redis-pipe", context=apart())
        self._work.set()
        return await future

    async def _drive(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if not self._waiting:
                continue
            try:
                await self._session()
            except (RedisError, OSError) as error:
                self._fail(error)
            except Exception as error:
                self._fail(RedisConnectionError(f"{type(error).__name__}: {error}"))
            except asyncio.CancelledError:
                self._fail(RedisConnectionError("the connection is being closed"))
                raise

    async def _session(self) -> None:
        """Serves callers on one connection until it breaks."""
        connection: Any = self._pool.make_connection()
        reading: asyncio.Task[None] | None = None
        try:
            await connection.connect()
            reading = asyncio.create_task(self._read(connection), name="redis-pipe-reader")
            reading.add_done_callback(lambda _: self._work.set())
            while not reading.done():
                if self._waiting and len(self._sent) < WINDOW:
                    batch = self._take()
                    self._sent.append(batch)
                    packed = b"".join(packed for packed, _ in batch) + self._confirm
                    await connection.send_packed_command(packed, check_health=False)
                    self._replies.set()
                else:
                    self._work.clear()
                    await self._work.wait()
            reading.result()
        finally:
            # Again and again: redis-py can swallow a cancellation.
            while reading is not None and not reading.done():
                reading.cancel()
                await asyncio.wait([reading], timeout=0.2)
            if reading is not None and not reading.cancelled():
                reading.exception()  # where sending failed first, nobody else asks for it
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def _read(self, connection: Any) -> None:
        while True:
            while not self._sent:
                self._replies.clear()
                await self._replies.wait()
            if self._replicas:
                await self._read_confirmed(connection, self._sent[0])
                self._sent.popleft()
                self._work.set()
                continue
            for _, future in self._sent[0]:
                try:
                    reply = await connection.read_response()
                except ResponseError as error:
                    if not future.done():
                        future.set_exception(error)
                    continue
                if not future.done():
                    future.set_result(reply)
            self._sent.popleft()
            self._work.set()

    async def _read_confirmed(self, connection: Any, batch: Batch) -> None:
        """A batch's replies, told when enough replicas have what it wrote. Raises RedisConnectionError when they have
        not in time: the commands ran, and whether they outlast a failover is unknown."""
        replies: list[Any] = []
        for _ in batch:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        confirmed = await connection.read_response()
        if confirmed < self._replicas:
            raise RedisConnectionError(f"{confirmed} of {self._replicas} replicas confirmed what was written")
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if isinstance(reply, ResponseError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

    def _take(self) -> Batch:
        batch: Batch = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0])
        return batch

    def _fail(self, error: BaseException) -> None:
        """The connection broke: what has no reply yet fails, also what was not sent yet (nobody waits for one time-out
        after the other), and the next command begins on a new one."""
        broken = error if isinstance(error, RedisError) else RedisConnectionError(str(error))
        lost = [command for batch in self._sent for command in batch]
        unsent = list(self._waiting)
        self._sent.clear()
        self._waiting.clear()
        for _, future in (*lost, *unsent):
            if not future.done():
                future.set_exception(broken)

    async def aclose(self) -> None:
        """Closes the connection; callers that still wait get a connection error."""
        driver, self._driver = self._driver, None
        # Again and again: redis-py can swallow a cancellation.
        while driver is not None and not driver.done():
            driver.cancel()
            await asyncio.wait([driver], timeout=0.2)
        self._fail(RedisConnectionError("the connection is closed"))
