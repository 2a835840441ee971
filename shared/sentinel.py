"""Connections to the primary that Redis Sentinel names, wherever it is just now.

Each new connection asks all Sentinels at once and goes where the newest answer of a majority of them says: after a
failover the promoted server has the higher configuration epoch, and a Sentinel that is cut off from the others still
names the old one. Then the server itself is asked for its role. Connecting, TLS, AUTH and parsing are redis-py's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.redis_url import Address

ASK_S: Final = 0.5  # a Sentinel that has not answered by then is not waited for

# A server that has lost its office, or its replicas: who is the primary must be asked anew. Also inside a script's
# error.
_DEPOSED: Final = re.compile(r"(?:^|[\s-])(READONLY|NOREPLICAS|MASTERDOWN)\b")


class NoPrimaryError(RedisConnectionError):
    """No Sentinel names a primary just now; a member of OUTAGE."""


class Named(msgspec.Struct, frozen=True):
    """What one Sentinel says: the primary's address, how new that is, and whether it holds it for down."""

    host: str
    port: int
    epoch: int
    is_down: bool


def newest(answers: Sequence[Named]) -> Named | None:
    """The answer to go by: of the highest epoch; a Sentinel that sees the primary goes before one that does not."""
    return max(answers, key=lambda answer: (answer.epoch, not answer.is_down), default=None)


class Primary:
    """Finds the primary of `address`; callers that ask at the same time share the questions."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._asking: asyncio.Task[tuple[str, int]] | None = None

    async def find(self) -> tuple[str, int]:
        """Host and port. Raises NoPrimaryError; AuthenticationError when a Sentinel refuses us."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all(), name="sentinels")
            # Whoever asked may be gone by the time that it fails.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        # One caller's cancellation must not end the others' question.
        return await asyncio.shield(self._asking)

    async def _ask_all(self) -> tuple[str, int]:
        sentinels = self._address.sentinels
        tasks = [asyncio.create_task(self._ask(host, port)) for host, port in sentinels]
        answers: list[Named] = []
        faults: list[BaseException] = []
        try:
            async with asyncio.timeout(ASK_S):
                for done in asyncio.as_completed(tasks):
                    try:
                        answers.append(await done)
                    except (RedisError, OSError, ValueError) as error:
                        faults.append(error)
                    if len(answers) * 2 > len(sentinels):
                        break
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        found = newest(answers)
        if found is None:
            for fault in faults:
                if isinstance(fault, AuthenticationError | NoPermissionError):
                    raise fault
            raise NoPrimaryError(
                f"no Sentinel of {len(sentinels)} named the primary {self._address.service!r}"
                + (f": {faults[0]}" if faults else "")
            )
        if found.is_down:
            raise NoPrimaryError(
                f"the primary {self._address.service!r} is down; the Sentinels have not replaced it yet"
            )
        return found.host, found.port

    async def _ask(self, host: str, port: int) -> Named:
        options = dict(self._address.sentinel_options)
        kind = options.pop("connection_class", Connection)
        connection: Any = kind(host=host, port=port, socket_timeout=ASK_S, retry=Retry(NoBackoff(), 0), **options)
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "MASTER", self._address.service)
            reply = await connection.read_response()
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
        fields = {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply) - 1, 2)}
        flags = fields.get("flags", "").split(",")
        return Named(
            fields["ip"],
            int(fields["port"]),
            int(fields.get("config-epoch", "0")),
            bool({"o_down", "s_down"} & {*flags}),
        )


class _Following(AbstractConnection):
    """Mixed into redis-py's connections: finds the primary whenever it connects, and leaves one that is none."""

    host: str
    port: int

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary

    async def connect(self) -> None:
        """Connects to the server that is the primary now. Raises NoPrimaryError or what redis-py raises."""
        if self.is_connected:
            return
        self.host, self.port = await self._primary.find()
        await super().connect()  # type: ignore[no-untyped-call]  # redis-py's own

    async def on_connect(self) -> None:
        """After AUTH: a server that was just demoted, or not promoted yet, is no primary."""
        await super().on_connect()
        await self.send_command("ROLE", check_health=False)
        role = await super().read_response()
        if role[0] != b"master":
            raise NoPrimaryError(f"{self.host}:{self.port} is not the primary yet, or no longer")

    async def is_current(self) -> bool:
        """Whether this is still a connection to the primary: a server that was cut off does not know that it was
        replaced, and a subscriber would hear nothing there. When no Sentinel can say, it is believed."""
        try:
            return await self._primary.find() == (self.host, self.port)
        except RedisError:
            return True

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """A reply; one that says that this is no primary that can write ends the connection."""
        try:
            return await super().read_response(*arguments, **options)
        except ResponseError as error:
            if _DEPOSED.search(str(error)[:500]):
                await self.disconnect(nowait=True)
                raise RedisConnectionError(f"{self.host}:{self.port} takes no writes: {str(error)[:200]}") from None
            raise


class FollowingConnection(_Following, Connection):
    """In the clear."""


class FollowingSSLConnection(_Following, SSLConnection):
    """Over TLS."""


def following_pool(address: Address, **options: Any) -> ConnectionPool:
    """A pool whose connections go to the primary; `options` as for redis-py's ConnectionPool, where
    the URL says nothing else."""
    own = dict(address.options)
    kind = FollowingSSLConnection if own.pop("connection_class", None) is SSLConnection else FollowingConnection
    return ConnectionPool(connection_class=kind, primary=Primary(address), **{**options, **own})
