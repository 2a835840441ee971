"""`redis-exact`: vectors packed per document in Redis, scanned exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from shared.collections import EXACT
from shared.keys import Keys
from shared.redis import Redis, shielded
from shared.stores.indexes import STAGED_S
from worker.search.engines import EngineStats, IndexName, Matrix, Neighbour, Place
from worker.search.quantised import SCALE_BYTES, from_bytes, to_bytes

PAGE: Final = 200


class ExactEngine:
    """The engine that is always there. A worker that answers searches keeps the vectors in memory
    (worker.search.replica); what this class searches, it reads from Redis."""

    name = EXACT

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def _key(self, index: IndexName, document_id: str, revision: int) -> str:
        return self._keys.vectors(index.tenant, document_id, index.version, revision, index.collection)

    def _list(self, index: IndexName) -> str:
        return self._keys.vectors_of(index.tenant, index.version, index.collection)

    async def put(self, index: IndexName, document_id: str, revision: int, vectors: Matrix) -> None:
        """See VectorEngine. They go after a day, unless the document is put into the index."""
        content = await asyncio.to_thread(to_bytes, vectors)
        # One that is there is the same: a revision and a version never change.
        key = self._key(index, document_id, revision)
        await self._client.pipe.execute("HSET", self._list(index), f"{document_id}:{revision}", "")
        await shielded(self._client.execute_command("SET", key, content, "EX", STAGED_S, "NX"))

    async def delete(self, index: IndexName, document_id: str, revision: int, count: int) -> None:
        """See VectorEngine."""
        await self._client.pipe.execute("UNLINK", self._key(index, document_id, revision))
        await self._client.pipe.execute("HDEL", self._list(index), f"{document_id}:{revision}")

    async def vectors(self, index: IndexName, document_id: str, revision: int, count: int) -> Matrix | None:
        """See VectorEngine."""
        content = await shielded(self._client.execute_command("GET", self._key(index, document_id, revision)))
        if content is None or len(content) != count * (index.dimensions + SCALE_BYTES):
            return None
        return from_bytes(content, index.dimensions)

    async def many(self, index: IndexName, wanted: Sequence[tuple[str, int]]) -> list[bytes | None]:
        """The stored vectors of these (document, revision)."""
        if not wanted:
            return []
        keys = [self._key(index, document_id, revision) for document_id, revision in wanted]
        # Not on the shared connection: leases would wait behind megabytes.
        return list(await shielded(self._client.execute_command("MGET", *keys)))

    async def search(self, index: IndexName, query: Matrix, limit: int) -> list[Neighbour]:
        """See VectorEngine."""
        found: list[Neighbour] = []
        async for document_id, revision, content in self._all(index):
            rows = from_bytes(content, index.dimensions)
            cosines = rows @ query
            for number in np.flatnonzero(np.any(rows, axis=1)):
                found.append(Neighbour(Place(document_id, revision, int(number)), float(cosines[number])))
        found.sort(key=lambda one: -one.cosine)
        return found[:limit]

    async def cosines(self, index: IndexName, query: Matrix, places: Sequence[Place]) -> list[float | None]:
        """See VectorEngine."""
        named = list(dict.fromkeys((place.document_id, place.revision) for place in places))
        stored = dict(zip(named, await self.many(index, named), strict=True))
        found: list[float | None] = []
        for place in places:
            content = stored[place.document_id, place.revision]
            rows = from_bytes(content, index.dimensions) if content is not None else ()
            there = place.number < len(rows) and bool(np.any(rows[place.number]))
            found.append(float(rows[place.number] @ query) if there else None)
        return found

    async def stats(self, index: IndexName) -> EngineStats:
        """See VectorEngine."""
        vectors = size = 0
        async for _, _, content in self._all(index):
            vectors += int(np.any(from_bytes(content, index.dimensions), axis=1).sum())
            size += len(content)
        return EngineStats(vectors, size)

    async def drop(self, index: IndexName) -> None:
        """See VectorEngine."""
        async for document_id, revision, _ in self._all(index):
            await self._client.pipe.execute("UNLINK", self._key(index, document_id, revision))
        await self._client.pipe.execute("UNLINK", self._list(index))

    async def _all(self, index: IndexName) -> Any:
        """(document, revision, stored vectors) of all that there is."""
        cursor: bytes = b"0"
        seen: set[tuple[str, int]] = set()
        while True:
            cursor, flat = await self._client.pipe.execute("HSCAN", self._list(index), cursor, "COUNT", PAGE)
            names = [name.decode().rpartition(":") for name in flat[::2]]
            pairs = [pair for name, _, revision in names if (pair := (name, int(revision))) not in seen]
            seen.update(pairs)
            for (document_id, revision), content in zip(pairs, await self.many(index, pairs), strict=True):
                if content is not None:
                    yield document_id, revision, content
                else:
                    await self._client.pipe.execute("HDEL", self._list(index), f"{document_id}:{revision}")
            if cursor == b"0":
                return
