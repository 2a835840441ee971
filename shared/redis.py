"""Redis: the connection, the Lua scripts, and the check that this Redis keeps what it acknowledged."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import Awaitable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final, TypeVar, cast

import msgspec
import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.clock import monotonic_s
from shared.errors import ConfigurationError
from shared.metrics import SCRIPT_SECONDS
from shared.pipe import Pipe
from shared.redis_url import read_address, redacted
from shared.sentinel import following_pool

T = TypeVar("T")


# What says that Redis cannot serve us just now (also while it loads, fails over, or is out of memory); everything
# else from redis-py is a defect.
OUTAGE: Final = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError)

# Refusals of a server that is full, read-only, saving in vain, or without its replicas; also inside a script's error.
_REFUSALS: Final = re.compile(
    r"(?:^|[\s-])(OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|LOADING)\b"
)


class RedisRefusedError(RedisConnectionError):
    """Redis answers, but cannot take writes just now; a member of OUTAGE."""


def as_outage(error: ResponseError) -> RedisError:
    """A refusal that will pass as a member of OUTAGE; any other error as it is."""
    if not isinstance(error, OUTAGE) and _REFUSALS.search(str(error)[:500]):
        return RedisRefusedError(str(error)[:200])
    return error


class Redis(redis_asyncio.Redis):
    """redis-py's client, with the shared connection on which the scripts run."""

    _pipe: Pipe | None = None
    follows = False  # Sentinels say which server it is
    replicas = 0  # that must have confirmed a write before it counts
    replicas_ms = 0  # how long they have for it

    @property
    def pipe(self) -> Pipe:
        """The connection that all scripts of this client share; made at its first use."""
        if self._pipe is None:
            self._pipe = Pipe(self.connection_pool, replicas=self.replicas, replicas_ms=self.replicas_ms)
        return self._pipe

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """A command on a connection of the pool. Raises RedisRefusedError for a refusal that will pass."""
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's own
        except ResponseError as error:
            raise as_outage(error) from None

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Closes all connections."""
        if self._pipe is not None:
            await self._pipe.aclose()
            self._pipe = None
        await super().aclose(close_connection_pool)


MIN_VERSION: Final = (6, 2)
_INCLUDE: Final = re.compile(r"^--@include (\w+)$", re.MULTILINE)


def connect(url: str, *, timeout_s: float | None = 5.0, max_connections: int = 512) -> Redis:
    """A client with its own pool. Answers must come within `timeout_s` (None: a subscriber, which waits); nothing is
    retried behind our back. Raises ConfigurationError when `url` is no address (`shared/redis_url.py`)."""
    address = read_address(url)
    options: dict[str, Any] = {
        "socket_connect_timeout": 1.0,
        "socket_timeout": timeout_s,
        "max_connections": max_connections,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0 if timeout_s else 10,
        # Else each connection says CLIENT SETINFO, which a least-privileged user may not, and Redis logs.
        "lib_name": None,
        "lib_version": None,
    }
    if "path" not in address.options:
        options["socket_keepalive"] = True
    if address.sentinels:
        pool = following_pool(address, **options)
    else:
        pool = redis_asyncio.ConnectionPool(**{**options, **address.options})
    try:
        pool.make_connection()
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"REDIS_URL={redacted(url)!r} has an option that is not right: {error}") from None
    client = cast(Redis, Redis.from_pool(pool))  # redis-py promises its own class, and makes this one
    client.follows = bool(address.sentinels)
    client.replicas = address.replicas
    client.replicas_ms = round((timeout_s or 5.0) * 800)  # their silence is told before the socket's time-out
    return client


async def shielded(command: Awaitable[T]) -> T:
    """A command of redis-py that a cancellation leaves alone: it ends by itself, and the caller is cancelled at once.

    Without it redis-py 5.3 closes the connection, and while it connects or checks one it can swallow the cancellation:
    a job that was to stop, or a time-out, would then go on.
    """
    return await asyncio.shield(asyncio.ensure_future(command))


def script_source(name: str) -> str:
    """The full text of `shared/lua/<name>.lua`, with its includes in place."""
    folder = resources.files("shared") / "lua"
    body = (folder / f"{name}.lua").read_text()
    return _INCLUDE.sub(lambda match: (folder / "lib" / f"{match[1]}.lua").read_text(), body)


# Looking a labelled metric up costs more than counting.
_seconds: Final = cache(SCRIPT_SECONDS.labels)


class Scripts:
    """Runs Lua scripts by their SHA; loads one the first time, and again after Redis forgot it."""

    def __init__(self, client: Redis, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self._encode = msgspec.msgpack.Encoder().encode
        self._loaded: dict[str, tuple[str, str]] = {}

    def _script(self, name: str) -> tuple[str, str]:
        if name not in self._loaded:
            source = script_source(name)
            self._loaded[name] = (source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        return self._loaded[name]

    async def run(self, name: str, keys: Sequence[str], /, *raw: bytes, **arguments: Any) -> Any:
        """Runs `shared/lua/<name>.lua`; `arguments` go as one MessagePack map, absent where None, and never bytes
        (Redis's cmsgpack knows no binary type): these go as they are, in `raw`, from ARGV[2] on.

        Raises a member of OUTAGE when Redis cannot be reached: the script then ran or did not.
        """
        source, sha = self._script(name)
        packed = self._encode(
            {"prefix": self.prefix, **{key: value for key, value in arguments.items() if value is not None}}
        )
        started_s = monotonic_s()
        try:
            try:
                return await self.client.pipe.execute("EVALSHA", sha, len(keys), *keys, packed, *raw)
            except NoScriptError:
                return await self.client.pipe.execute("EVAL", source, len(keys), *keys, packed, *raw)
        except ResponseError as error:
            raise as_outage(error) from None
        finally:
            _seconds(name).observe(monotonic_s() - started_s)


async def redis_now_ms(client: Redis) -> int:
    """Redis TIME in milliseconds: the one clock of what is stored."""
    seconds, micros = await client.pipe.execute("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


class Durability(msgspec.Struct, frozen=True):
    """What the check of a Redis found. `wrong`: known to lose writes or jobs. `unknown`: could not be read."""

    version: str
    wrong: tuple[str, ...]
    unknown: tuple[str, ...]


WANTED: Final[tuple[tuple[str, str, str], ...]] = (
    ("appendonly", "yes", "without it a restart loses every job"),
    ("appendfsync", "always", "plain everysec loses acknowledged writes when Redis is killed"),
    ("maxmemory-policy", "noeviction", "any other policy drops jobs when memory is short"),
)


MIN_REPLICAS: Final = "min-replicas-to-write"


async def check_durability(client: Redis) -> Durability:
    """Looks whether this Redis keeps what it acknowledges. Managed services refuse CONFIG: that is `unknown`.

    Raises ConfigurationError when it is older than 6.2, and a member of OUTAGE when it cannot be reached.
    """
    info = await client.info("server")
    version = str(info.get("redis_version", "0"))
    parts = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if parts < MIN_VERSION:
        raise ConfigurationError(f"This Redis is version {version}; Errand needs 6.2 or later.")
    wrong, unknown = [], []
    for name, wanted, reason in WANTED:
        try:
            found = (await client.config_get(name)).get(name)
        except ResponseError as error:
            unknown.append(f"{name} could not be read ({error}); it should be {wanted}: {reason}")
            continue
        if found is None:
            unknown.append(f"{name} is not known to this server; it should be {wanted}: {reason}")
        elif found != wanted:
            wrong.append(f"{name} is {found}: {reason}. Mend it with: redis-cli CONFIG SET {name} {wanted}")
    if client.follows and not client.replicas:
        try:
            if (await client.config_get(MIN_REPLICAS)).get(MIN_REPLICAS) == "0":
                wrong.append(
                    f"{MIN_REPLICAS} is 0: a primary that was cut off goes on to acknowledge what a failover undoes. "
                    f"Mend it with ?replicas=1 in REDIS_URL, or with: redis-cli CONFIG SET {MIN_REPLICAS} 1"
                )
        except ResponseError as error:
            unknown.append(f"{MIN_REPLICAS} could not be read ({error}); it should be 1 under Sentinel")
    return Durability(version, tuple(wrong), tuple(unknown))


_HOPELESS: Final = (AuthenticationError, AuthenticationWrongNumberOfArgsError, socket.gaierror)


async def wait_until_durable(url: str, *, allow_volatile: bool, patience_s: float = 10.0) -> Durability:
    """The check at every start; waits for a Redis that starts beside it, or is restarted just now. Raises
    ConfigurationError with the command that mends it when a setting is known to be wrong and that was not allowed with
    ERRAND_ALLOW_VOLATILE=1."""
    client = connect(url)
    try:
        deadline = monotonic_s() + patience_s
        while True:
            try:
                await client.ping()
                found = await check_durability(client)
                break
            except RedisError as error:
                # A name that does not resolve, a wrong password, no Redis at all: waiting mends none of these.
                # redis-py wraps what happens while it connects in an error of its own.
                behind = (error, error.__cause__, error.__context__)
                hopeless = not isinstance(error, OUTAGE) or any(isinstance(one, _HOPELESS) for one in behind)
                if hopeless or monotonic_s() > deadline:
                    raise ConfigurationError(f"Redis cannot be used: {error}. Is REDIS_URL right?") from None
                await asyncio.sleep(0.1)
    finally:
        await client.aclose()
    if found.wrong and not allow_volatile:
        raise ConfigurationError(
            "This Redis would lose jobs. " + " ".join(found.wrong) + " (or accept it with ERRAND_ALLOW_VOLATILE=1)"
        )
    return found
