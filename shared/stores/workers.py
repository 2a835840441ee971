"""The store of live workers; their heartbeats write it (`renew.lua`)."""

from __future__ import annotations

import msgspec

from shared.keys import Keys
from shared.log import get_logger
from shared.redis import Redis, redis_now_ms
from shared.workers import WorkerRecord

log = get_logger()


class WorkersStore:
    """Reads. Raises a member of `shared.redis.OUTAGE` when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys

    async def live(self) -> list[WorkerRecord]:
        """All that beat within the last lease, by id: also those that drain. Workers of releases before 0.2 have no
        record."""
        now_ms = await redis_now_ms(self.client)
        ids = [name.decode() for name in await self.client.zrangebyscore(self.keys.fleet, now_ms, "+inf")]
        if not ids:
            return []
        found = []
        for text in await self.client.mget([self.keys.worker(name) for name in sorted(ids)]):
            if text is None:
                continue  # it left just now
            try:
                found.append(msgspec.json.decode(text, type=WorkerRecord))
            except msgspec.DecodeError as error:
                log.warning("worker.record_unreadable", error=str(error))
        return found
