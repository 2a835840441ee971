"""The store of a tenant's erasure: what the API begins, and the steps of the job that does it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.errors import ErrandError, RefusedError
from shared.ids import random_part
from shared.keys import Keys
from shared.redis import Redis, Scripts
from shared.scope import origin
from shared.specs import Lane
from shared.stores.jobs import Admitted

PAGE: Final = 100  # jobs of one call: some twenty commands each, about 10 ms
NAMES: Final = 500  # keys of one call

# Below `<kind>/<tenant>` lie all blobs of a tenant.
BLOB_KINDS: Final = ("files", "texts", "inputs", "outputs")


class NotMarkedError(ErrandError):
    """The tenant does not exist (any more), or is not being deleted."""


class UnderWay(msgspec.Struct, frozen=True):
    """The job that erases the tenant already, and whose job it is."""

    job_id: str
    tenant: str


class Erased(msgspec.Struct, frozen=True):
    """What was erased, in the end. `ledger` counts entries; `tokens` and `nano` are what the tenant had used ever."""

    name: str
    requested_ms: int
    erased_ms: int
    jobs: int
    documents: int
    blobs: int
    keys: int
    ledger: int
    redis_keys: int
    tokens: int
    nano: int
    deliveries: int = 0  # of webhooks; a release before them says nothing of it


class ErasureStore:
    """Marks, empties and removes a tenant. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._scripts = Scripts(client, keys.prefix)

    # -- the API's side ------------------------------------------------------------------------------------------

    async def begin(
        self,
        target: str,
        *,
        tenant: str,
        lane: Lane,
        record: Mapping[str, Any],
        class_ms: int,
        expires_in_ms: int,
        audit: Mapping[str, Any],
    ) -> Admitted | UnderWay:
        """In one step `target` is marked as being deleted, its keys end, and the job of `tenant` is admitted that
        erases it; `audit` is the entry for that. Raises RefusedError `not_found`."""
        reply = await self._scripts.run(
            "admit",
            [self._keys.jobs(tenant), self._keys.idem(tenant, "-"), self._keys.tenant(tenant)],
            tenant=tenant,
            lane=lane,
            random=random_part(),
            record={**record, **origin()},
            class_ms=class_ms,
            expires_in_ms=expires_in_ms,
            erases=target,
            audit=audit,
        )
        match [part.decode() for part in reply]:
            case ["ok", job_id, now, status, due, *_]:
                return Admitted(job_id, int(now), status, int(due), None, replayed=False)
            case ["erasing", job_id, owner]:
                return UnderWay(job_id, owner)
            case ["no_tenant"]:
                raise RefusedError("unauthenticated", "The key's tenant does not exist any more.")
            case _:
                raise RefusedError("not_found", f"There is no tenant {target[:64]!r}.")

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def erase_jobs(self, target: str, jobs: Sequence[str], *, erase: bool) -> list[str]:
        """Cancels those of the jobs that have not ended, and with `erase` removes those that have; which of them a
        worker still holds. Raises NotMarkedError."""
        reply = await self._scripts.run(
            "erase_jobs",
            [self._keys.tenant(target), self._keys.jobs(target)],
            tenant=target,
            jobs=jobs,
            erase=erase,
        )
        return _ids(_marked(reply))

    async def erase(self, target: str, names: Sequence[str], *, blobs: int = 0) -> tuple[int, list[str]]:
        """Takes away what these keys hold of the tenant: how many did, and the jobs among them, which are left alone.
        `blobs` were deleted besides. Raises NotMarkedError."""
        reply = await self._scripts.run(
            "erase",
            [self._keys.tenant(target), self._keys.api_keys(target)],
            tenant=target,
            names=names,
            blobs=blobs,
        )
        found, jobs = _marked(reply)
        return int(found), _ids(jobs)

    async def finish(self, target: str, job_id: str, audit: Mapping[str, Any]) -> Erased | None:
        """The last step, once all else is gone; again for the same job: what it had come to. None when there is no such
        tenant (any more)."""
        reply = await self._scripts.run(
            "erase_tenant",
            [
                self._keys.tenant(target),
                self._keys.api_keys(target),
                self._keys.tenants,
                self._keys.journal(job_id),
            ],
            tenant=target,
            audit=audit,
        )
        return None if reply == b"none" else msgspec.json.decode(reply, type=Erased)

    async def size(self, target: str) -> int:
        """How many jobs the tenant has."""
        return int(await self._client.pipe.execute("ZCARD", self._keys.jobs(target)))

    async def jobs(self, target: str) -> AsyncIterator[list[str]]:
        """Ids of the tenant's jobs, page by page; they may be removed meanwhile."""
        async for page in self._index(self._keys.jobs(target), PAGE):
            yield page

    async def documents(self, target: str) -> AsyncIterator[list[str]]:
        """The records of the tenant's documents, by their keys, page by page."""
        async for page in self._index(self._keys.documents(target), NAMES):
            yield [self._keys.document(document_id) for document_id in page]

    async def _index(self, index: str, size: int) -> AsyncIterator[list[str]]:
        low = "-"
        while page := _ids(await self._client.pipe.execute("ZRANGEBYLEX", index, low, "+", "LIMIT", 0, size)):
            yield page
            low = f"({page[-1]}"

    async def learn_keys(self, target: str) -> None:
        """Adds the keys that the tenant had and has no more to the index of its keys: they too have counters. Whoever
        admitted a job stands in the usage of that day."""
        async for names in self.scan(f"{self._keys.prefix}usage:{target}:*"):
            for name in names:
                await self._learn_keys(target, name)

    async def _learn_keys(self, target: str, usage: str) -> None:
        cursor = b"0"
        while True:
            cursor, pairs = await self._client.pipe.execute("HSCAN", usage, cursor, "COUNT", NAMES)
            known = {str(msgspec.json.decode(field.removeprefix(b"#"))[-1]) for field in pairs[::2]} - {""}
            if known:
                members = [part for key in known for part in (0, key)]
                await self._client.pipe.execute("ZADD", self._keys.api_keys(target), *members)
            if cursor == b"0":
                return

    async def scan(self, pattern: str | None = None) -> AsyncIterator[list[str]]:
        """The names of all keys of this installation, or of those that match, in portions; perhaps one twice."""
        cursor = b"0"
        while True:
            cursor, raw = await self._client.pipe.execute(
                "SCAN", cursor, "MATCH", pattern or f"{self._keys.prefix}*", "COUNT", NAMES
            )
            if names := [text for name in raw if (text := _text(name)) is not None]:
                yield names
            if cursor == b"0":
                return

    async def all_keys(self) -> int:
        """How many keys this Redis has, about as many as `scan` looks at."""
        return int(await self._client.pipe.execute("DBSIZE"))

    async def clear_turns(self, target: str) -> int:
        """Takes the tenant out of what all tenants' webhooks share: endpoints that have something to send, and what
        was not delivered; how many entries."""
        found = 0
        for name in (self._keys.hooks, self._keys.undelivered):
            cursor = b"0"
            while True:
                cursor, pairs = await self._client.pipe.execute(
                    "ZSCAN", name, cursor, "MATCH", f"{target}:*", "COUNT", NAMES
                )
                if pairs:
                    found += int(await self._client.pipe.execute("ZREM", name, *pairs[::2]))
                if cursor == b"0":
                    break
        return found

    async def clear_trash(self, target: str) -> int:
        """Takes the tenant's blobs, which are gone, from the list of those that are to be deleted; how many."""
        cursor, found = b"0", 0
        while True:
            cursor, keys = await self._client.pipe.execute(
                "SSCAN", self._keys.trash, cursor, "MATCH", f"*/{target}*", "COUNT", NAMES
            )
            if keys:
                found += int(await self._client.pipe.execute("SREM", self._keys.trash, *keys))
            if cursor == b"0":
                return found


def _marked(reply: Any) -> Any:
    if reply == b"none":
        raise NotMarkedError
    return reply


def _text(name: bytes) -> str | None:
    """A key's name; None for what is not UTF-8, and so somebody else's."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _ids(raw: Sequence[bytes]) -> list[str]:
    return [identifier.decode() for identifier in raw]
