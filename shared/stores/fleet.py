"""Reads what `shared.fleet` shows: the queues by a script of our own, Redis by its INFO."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from redis.exceptions import RedisError

from shared.clock import monotonic_s
from shared.errors import ConfigurationError
from shared.fleet import FleetCollector, Samples
from shared.keys import Keys
from shared.log import get_logger
from shared.redis import OUTAGE, Redis, Scripts, check_durability
from shared.specs import Lane, Priority

log = get_logger()

FRESH_S: Final = 2.0  # a reading serves all scrapes of so long
DURABLE_S: Final = 30.0  # settings change seldom
PER_LANE: Final = {
    "running": "errand_jobs_running",
    "delayed": "errand_jobs_delayed",
    "parked": "errand_tenants_parked",
    "rated": "errand_tenants_rated",
    "workers": "errand_fleet_workers",
    "slots": "errand_fleet_slots",
}
ALONE: Final = {"paused": "errand_jobs_paused", "kept": "errand_jobs_kept", "trash": "errand_blobs_to_delete",
               "webhooks": "errand_webhooks_pending"}  # fmt: skip
OF_INFO: Final = {
    "used_memory": "errand_redis_memory_bytes",
    "mem_fragmentation_ratio": "errand_redis_memory_fragmentation_ratio",
    "connected_clients": "errand_redis_clients",
    "maxclients": "errand_redis_clients_max",
    "connected_slaves": "errand_redis_replicas",
    "uptime_in_seconds": "errand_redis_uptime_seconds",
    "total_commands_processed": "errand_redis_commands",
    "evicted_keys": "errand_redis_evicted_keys",
}
WRITES: Final = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")


class FleetStore:
    """Keeps a collector up to date, one reading at a time."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.collector = FleetCollector()
        self._client = client
        self._scripts = Scripts(client, keys.prefix)
        self._turn = asyncio.Lock()
        self._read_s = -FRESH_S
        self._durable: float | None = None
        self._durable_s = -DURABLE_S

    async def refresh(self) -> None:
        """Reads anew unless that was just done. Never raises for a Redis that is away: the figures then say so."""
        async with self._turn:
            if monotonic_s() - self._read_s < FRESH_S:
                return
            try:
                self.collector.samples = await self._read()
            except OUTAGE:
                self.collector.samples = None
            self._read_s = monotonic_s()

    async def _read(self) -> Samples:
        reply = await self._scripts.run("fleet", [])
        found = {name.decode(): float(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}
        samples = queue_samples(found)
        samples["errand_redis_up"] = [((), 1.0)]
        try:
            samples |= redis_samples(await self._client.info())
        except OUTAGE:
            raise
        except RedisError as error:
            log.warning("redis.info_refused", error=str(error)[:200])
        if (durable := await self._is_durable()) is not None:
            samples["errand_redis_durable"] = [((), durable)]
        return samples

    async def _is_durable(self) -> float | None:
        """1 or 0; None where it cannot be seen."""
        if monotonic_s() - self._durable_s > DURABLE_S:
            try:
                checked = await check_durability(self._client)
                self._durable = 0.0 if checked.wrong else None if checked.unknown else 1.0
            except ConfigurationError:
                self._durable = 0.0
            self._durable_s = monotonic_s()
        return self._durable


def queue_samples(found: Mapping[str, float]) -> Samples:
    """The reply of `fleet.lua` as samples."""
    samples: Samples = {name: [] for name in (*PER_LANE.values(), "errand_queue_jobs", "errand_queue_oldest_seconds")}
    for lane in Lane:
        for mark, name in PER_LANE.items():
            samples[name].append(((lane.value,), found[f"{lane.value} {mark}"]))
        for priority in Priority:
            labels = (lane.value, priority.value)
            samples["errand_queue_jobs"].append((labels, found[f"{lane.value} ready {priority.value}"]))
            since_ms = found.get(f"{lane.value} oldest {priority.value}", found["now"])
            age_s = max(0.0, (found["now"] - since_ms) / 1000)
            samples["errand_queue_oldest_seconds"].append((labels, age_s))
    since_ms = found.get("webhook", found["now"])
    samples["errand_webhooks_oldest_seconds"] = [((), max(0.0, (found["now"] - since_ms) / 1000))]
    for mark, name in ALONE.items():
        samples[name] = [((), found[mark])]
    return samples


def redis_samples(info: Mapping[str, Any]) -> Samples:
    """The reply of INFO as samples; what this server does not say is left out."""
    samples: Samples = {name: [((), float(info[field]))] for field, name in OF_INFO.items() if field in info}
    most = float(info.get("maxmemory") or info.get("total_system_memory") or 0)
    if most:
        samples["errand_redis_memory_max_bytes"] = [((), most)]
    samples["errand_redis_persistence_ok"] = [((), float(all(info.get(field, "ok") == "ok" for field in WRITES)))]
    keys = sum(int(value["keys"]) for name, value in info.items() if name.startswith("db") and isinstance(value, dict))
    samples["errand_redis_keys"] = [((), float(keys))]
    return samples
