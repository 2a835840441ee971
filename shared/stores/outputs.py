"""The store of jobs' outputs: which blobs make one up, and which blobs are to be deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shared.ids import random_part
from shared.keys import Keys
from shared.redis import Redis


class Part(msgspec.Struct, frozen=True):
    """A piece of a job's output: `number` from 0, and the blob that holds it."""

    number: int
    size_bytes: int
    blob: str


def output_prefix(tenant: str, job_id: str) -> str:
    """Below it lie all parts of a job's output; `sweep.lua` spells it too."""
    return f"outputs/{tenant}/{job_id}"


def part_key(tenant: str, job_id: str, number: int) -> str:
    """A blob key for a part: never the same again, so that deleting what an earlier run wrote harms no later one."""
    return f"{output_prefix(tenant, job_id)}/{number}-{random_part()}"


class OutputsStore:
    """Reads outputs, and keeps the list of what is to be deleted. Raises a member of OUTAGE when Redis is out of
    reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def parts(self, job_id: str) -> list[Part]:
        """All parts that are kept, by their number; there may be gaps while the job runs."""
        raw: Mapping[bytes, bytes] = await self._client.hgetall(self._keys.output(job_id))  # type: ignore[misc]
        found = []
        for number, value in raw.items():
            size, _, blob = value.decode().partition(" ")
            found.append(Part(int(number), int(size), blob))
        return sorted(found, key=lambda part: part.number)

    async def discard(self, *keys: str) -> None:
        """Puts blobs (keys, or prefixes of keys) on the list of what is to be deleted."""
        await self._client.sadd(self._keys.trash, *keys)  # type: ignore[misc]

    async def discarded(self, limit: int) -> list[str]:
        """Some of that list."""
        found: Any = await self._client.srandmember(self._keys.trash, limit)  # type: ignore[misc]
        return [key.decode() for key in found]

    async def deleted(self, keys: Sequence[str]) -> None:
        """Takes from that list what is gone."""
        if keys:
            await self._client.srem(self._keys.trash, *keys)  # type: ignore[misc]


def contiguous(parts: Sequence[Part]) -> list[Part]:
    """The run from part 0 that has no gap: what will stand in this place at the end, too."""
    return [part for place, part in enumerate(parts) if part.number == place]
