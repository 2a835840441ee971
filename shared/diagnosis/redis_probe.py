"""Measures a Redis: what it says of itself, how fast it answers, and how long it takes to make a write durable."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from shared.clock import monotonic_s, wall_ms
from shared.diagnosis.findings import Timing, timing
from shared.keys import Keys
from shared.redis import Durability, Redis, check_durability
from shared.redis_url import redacted

SAMPLES: Final = 50
SAMPLING_S: Final = 2.0  # of one measurement: a slow Redis gives fewer samples, never a slow diagnosis
PROBE_TTL_MS: Final = 10_000
PROBE_BYTES: Final = 256  # of a small record's size
CLOCK_SAMPLES: Final = 5


class Replica(msgspec.Struct, frozen=True):
    """One replica, as its primary sees it."""

    is_online: bool
    behind_bytes: int


class RedisReading(msgspec.Struct, frozen=True, kw_only=True):
    """What was read and measured. None: the server does not say, or refused. `offset_ms`: how far this host's clock is
    ahead of Redis's, give or take half of `round_trip_ms`. `replicas_wanted`: that REDIS_URL asks a write to have."""

    product: str
    version: str
    durability: Durability
    aof_write: str | None
    aof_rewrite: str | None
    snapshot: str | None
    used_bytes: int
    bound_bytes: int | None
    machine_bytes: int | None
    resident_bytes: int | None
    evicted: int
    clients: int
    clients_bound: int | None
    is_primary: bool
    replicas: tuple[Replica, ...]
    replicas_wanted: int
    ping: Timing
    read: Timing
    write: Timing | None
    write_refusal: str
    offset_ms: int
    round_trip_ms: float


async def read_redis(client: Redis, keys: Keys) -> RedisReading:
    """Asks and measures, within some seconds. Writes one small key of its own, which it deletes.

    Raises ConfigurationError when the server is older than 6.2, a member of OUTAGE when it is out of reach, and
    another RedisError when it refuses a command that Errand cannot be without.
    """
    durability = await check_durability(client)
    said: dict[str, Any] = await client.info()
    ping = timing(await _sample(lambda: client.execute_command("PING")))
    key = keys.probe(secrets.token_hex(8))
    read = timing(await _sample(lambda: client.execute_command("GET", key)))
    write, refusal = None, ""
    content = secrets.token_hex(PROBE_BYTES // 2)
    try:
        write = timing(await _sample(lambda: client.execute_command("SET", key, content, "PX", PROBE_TTL_MS)))
    except RedisError as error:
        refusal = redacted(str(error))[:200]
    finally:
        with suppress(RedisError):
            await client.execute_command("DEL", key)
    offset_ms, round_trip_ms = await _clock(client)
    product = str(said.get("server_name") or "redis")
    is_valkey = product == "valkey" and "valkey_version" in said
    return RedisReading(
        product="Valkey" if is_valkey else "Redis",
        version=str(said["valkey_version"]) if is_valkey else durability.version,
        durability=durability,
        aof_write=_text(said, "aof_last_write_status"),
        aof_rewrite=_text(said, "aof_last_bgrewrite_status"),
        snapshot=_text(said, "rdb_last_bgsave_status"),
        used_bytes=int(said.get("used_memory", 0)),
        bound_bytes=_number(said, "maxmemory"),
        machine_bytes=_number(said, "total_system_memory"),
        resident_bytes=_number(said, "used_memory_rss"),
        evicted=int(said.get("evicted_keys", 0)),
        clients=int(said.get("connected_clients", 0)),
        clients_bound=_number(said, "maxclients"),
        is_primary=said.get("role", "master") == "master",
        replicas=_replicas(said),
        replicas_wanted=client.replicas,
        ping=ping,
        read=read,
        write=write,
        write_refusal=refusal,
        offset_ms=offset_ms,
        round_trip_ms=round_trip_ms,
    )


async def _sample(call: Callable[[], Awaitable[Any]]) -> list[float]:
    """Seconds of calls one after the other. The first, which may have to connect, does not count."""
    await call()
    taken: list[float] = []
    begun = monotonic_s()
    while len(taken) < SAMPLES and (not taken or monotonic_s() - begun < SAMPLING_S):
        started = monotonic_s()
        await call()
        taken.append(monotonic_s() - started)
    return taken


async def _clock(client: Redis) -> tuple[int, float]:
    """How far our clock is ahead, and the round trip of that reading, both in ms: the fastest of some."""
    readings: list[tuple[float, int]] = []
    for _ in range(CLOCK_SAMPLES):
        started, before_ms = monotonic_s(), wall_ms()
        moment = await client.time()
        round_trip_ms = (monotonic_s() - started) * 1000
        redis_ms = int(moment[0]) * 1000 + int(moment[1]) // 1000
        readings.append((round_trip_ms, (before_ms + wall_ms()) // 2 - redis_ms))
    round_trip_ms, offset_ms = min(readings)
    return offset_ms, round(round_trip_ms, 3)


def _replicas(said: dict[str, Any]) -> tuple[Replica, ...]:
    at = int(said.get("master_repl_offset", 0))
    found = []
    for number in range(int(said.get("connected_slaves", 0))):
        one = said.get(f"slave{number}")
        if isinstance(one, dict):
            found.append(Replica(one.get("state") == "online", max(0, at - int(one.get("offset", at)))))
    return tuple(found)


def _text(said: dict[str, Any], name: str) -> str | None:
    return str(said[name]) if name in said else None


def _number(said: dict[str, Any], name: str) -> int | None:
    return int(said[name]) if name in said else None
