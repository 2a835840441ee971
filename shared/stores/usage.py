"""The store of usage rows: reads only, the scripts write them with each call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import date
from typing import Any, Final

import msgspec

from shared.keys import Keys
from shared.redis import Redis
from shared.usage import Amounts, Cell, Sums, UsageQuery, amounts_of, day_name, sum_up

SLICE: Final = 2_000  # fields that are decoded before other requests have their turn

_decode_field: Final = msgspec.json.Decoder(tuple[str, str, str, str, str]).decode


class UsageStore:
    """Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys

    async def sums(self, tenants: list[str], query: UsageQuery) -> Sums:
        """What these tenants used, by group."""
        sums: Sums = {}
        for tenant in tenants:
            async for rows in self.rows(tenant, query.first, query.last):
                sum_up(rows, query, sums)
        return sums

    async def rows(self, tenant: str, first: date, last: date) -> AsyncIterator[Iterator[tuple[Cell, Amounts]]]:
        """A tenant's rows of the days from `first` to `last`, both included, in slices."""
        days = await self.client.pipe.execute(
            "ZRANGEBYSCORE", self.keys.usage_days(tenant), day_name(first), day_name(last)
        )
        for name in days:
            day = name.decode()
            flat: list[bytes] = await self.client.pipe.execute("HGETALL", self.keys.usage(tenant, day))
            for start in range(0, len(flat), 2 * SLICE):
                yield _cells(tenant, day, flat[start : start + 2 * SLICE])
                await asyncio.sleep(0)

    async def all_tenants(self) -> list[str]:
        """The ids of all tenants."""
        found: list[Any] = await self.client.pipe.execute("ZRANGE", self.keys.tenants, 0, -1)
        return [tenant.decode() for tenant in found]


def _cells(tenant: str, day: str, flat: list[bytes]) -> Iterator[tuple[Cell, Amounts]]:
    for field, value in zip(flat[::2], flat[1::2], strict=True):
        is_jobs = field.startswith(b"#")
        cell = Cell(day, tenant, *_decode_field(field[1:] if is_jobs else field))
        yield cell, Amounts(jobs=int(value)) if is_jobs else amounts_of(value.decode())
