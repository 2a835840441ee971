"""Checking the books against the ledger, and making them anew from it, while calls go on being booked.

A script reads figures together with the ledger's last id, in one step; the ledger is summed up to exactly that id, and
then both must agree. Nothing is stopped, and nothing is read twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from shared.books import (
    BooksReport,
    Counters,
    Difference,
    Field,
    Sums,
    TenantBooks,
    books_of,
    counter_differences,
    entry_of,
    job_differences,
    row_amounts,
    row_differences,
    scopes_of,
    window_of,
)
from shared.keys import Keys
from shared.log import get_logger
from shared.redis import Redis, Scripts, redis_now_ms

log = get_logger()

PAGE: Final = 1_000  # ledger entries, or job ids, of one command
SCOPES: Final = 500  # of one step of the check
JOBS: Final = 200
WRITTEN: Final = 5_000  # scopes, rows and jobs of one step of a rebuild: most tenants' books are fewer

T = TypeVar("T")
_decode_field: Final = msgspec.json.Decoder(tuple[str, str, str, str, str]).decode


class _Books:
    """One tenant's books, as they are read."""

    def __init__(self, client: Redis, keys: Keys, tenant: str) -> None:
        self._client = client
        self._keys = keys
        self._scripts = Scripts(client, keys.prefix)
        self.tenant = tenant
        self.sums = Sums(tenant)
        self.at = "0-0"  # the entry up to which the sums go
        self.fields: dict[str, set[Field]] = {}  # usage rows that there are, by day
        self.scopes: set[str] = {tenant}
        self.wrong_jobs: set[str] = set()

    async def begin(self) -> None:
        """Looks which jobs there are, and reads the ledger once."""
        self.sums = Sums(self.tenant, [job async for job in self._job_ids()])
        await self._read_to("+")

    async def differences(self) -> list[Difference]:
        """All that differs now."""
        found = await self._of_rows()
        found += await self._of_scopes()
        return found + await self._of_jobs()

    async def rebuild(self) -> None:
        """Writes what has been read of, anew."""
        rows = [
            (day, field)
            for day in {*self.fields, *self.sums.days}
            for field in self.fields.get(day, set()) | set(self.sums.days.get(day, ()))
        ]
        items: list[tuple[str, Any]] = [("scope", scope) for scope in sorted(self.scopes)]
        items += [("row", row) for row in sorted(rows)]
        items += [("job", job) for job in sorted(self.wrong_jobs)]
        for batch in _batches(items, WRITTEN):
            while not await self._write(batch):
                pass

    async def _write(self, items: Sequence[tuple[str, Any]]) -> bool:
        await self._read_to("+")
        day, month = window_of(await redis_now_ms(self._client))
        none = Counters()
        scopes = [
            [scope, *self.sums.scopes.get(scope, none).within(day, month)] for kind, scope in items if kind == "scope"
        ]
        rows = [
            [row[0], *row[1], *self.sums.days.get(row[0], {}).get(row[1], [0] * 7)]
            for kind, row in items
            if kind == "row"
        ]
        jobs = [[job, *self.sums.jobs[job]] for kind, job in items if kind == "job"]
        reply = await self._scripts.run(
            "rebuild",
            [self._keys.ledger(self.tenant)],
            tenant=self.tenant,
            after=self.at,
            d=day,
            m=month,
            scopes=scopes,
            rows=rows,
            jobs=jobs,
        )
        return bool(reply == b"ok")

    async def _of_rows(self) -> list[Difference]:
        listed = await self._client.pipe.execute("ZRANGE", self._keys.usage_days(self.tenant), 0, -1)
        found: list[Difference] = []
        for day in sorted({name.decode() for name in listed} | set(self.sums.days)):
            flat = await self._ask(day=day)
            stored = {
                _decode_field(field): row_amounts(value)
                for field, value in zip(flat[::2], flat[1::2], strict=True)
                if not field.startswith(b"#")
            }
            self.fields[day] = set(stored)
            for field in stored:
                self.scopes.update(scopes_of(self.tenant, field))
            found += row_differences(day, self.sums.days.get(day, {}), stored)
        return found

    async def _of_scopes(self) -> list[Difference]:
        keys = await self._client.pipe.execute("ZRANGE", self._keys.api_keys(self.tenant), 0, -1)
        self.scopes.update(key.decode() for key in keys)
        self.scopes.update(scope.decode() for scope in await self._ask(holds=True))
        self.scopes.update(self.sums.scopes)
        found: list[Difference] = []
        for batch in _batches(sorted(self.scopes), SCOPES):
            stored = await self._ask(scopes=batch)
            for scope, row in zip(batch, stored, strict=True):
                found += counter_differences(scope, self.sums.scopes.get(scope, Counters()), row)
        return found

    async def _of_jobs(self) -> list[Difference]:
        found: list[Difference] = []
        self.wrong_jobs = set()
        for batch in _batches(sorted(self.sums.jobs), JOBS):
            stored = await self._ask(jobs=batch)
            for job, row in zip(batch, stored, strict=True):
                if row[0].decode() == self.tenant and (wrong := job_differences(job, self.sums.jobs[job], row)):
                    found += wrong
                    self.wrong_jobs.add(job)
        return found

    async def _ask(self, **what: Any) -> list[Any]:
        """What the books say; the sums go up to that very instant afterwards."""
        last, _, found = await self._scripts.run(
            "reconcile", [self._keys.ledger(self.tenant)], tenant=self.tenant, **what
        )
        await self._read_to(last.decode())
        return list(found)

    async def _read_to(self, last: str) -> None:
        while self.at != last:
            entries = await self._client.pipe.execute(
                "XRANGE", self._keys.ledger(self.tenant), f"({self.at}", last, "COUNT", PAGE
            )
            for entry_id, flat in entries:
                self.sums.add(entry_of(flat))
                self.at = entry_id.decode()
            if len(entries) < PAGE:
                return
            await asyncio.sleep(0)

    async def _job_ids(self) -> Any:
        after = "-"
        while True:
            ids = await self._client.pipe.execute(
                "ZRANGEBYLEX", self._keys.jobs(self.tenant), after, "+", "LIMIT", 0, PAGE
            )
            for job in ids:
                yield job.decode()
            if len(ids) < PAGE:
                return
            after = "(" + ids[-1].decode()


class BooksStore:
    """Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys

    async def check(self, tenants: Iterable[str]) -> BooksReport:
        """Whether counters, reservations, usage rows and jobs of these tenants are what their ledgers say."""
        found = [await self._check(tenant) for tenant in tenants]
        return BooksReport(ok=not any(books.found for books in found), tenants=found)

    async def rebuild(self, tenants: Iterable[str]) -> BooksReport:
        """Makes them anew. The differences are those that were there before; `ok` when there are none after."""
        mended = [await self._rebuild(tenant) for tenant in tenants]
        return BooksReport(ok=all(ok for _, ok in mended), tenants=[books for books, _ in mended])

    async def _check(self, tenant: str) -> TenantBooks:
        books = _Books(self.client, self.keys, tenant)
        await books.begin()
        found = await books.differences()
        if found:
            log.warning("books.differ", tenant=tenant, found=len(found))
        return books_of(books.sums, found)

    async def _rebuild(self, tenant: str) -> tuple[TenantBooks, bool]:
        books = _Books(self.client, self.keys, tenant)
        await books.begin()
        found = await books.differences()
        await books.rebuild()
        left = await books.differences()
        log.warning("books.rebuilt", tenant=tenant, found=len(found), left=len(left))
        return books_of(books.sums, found), not left


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
