"""Vectors in vector sets of Redis 8: an HNSW graph for each version of an index, with components of eight bits.

Nothing runs in its background threads: no `CAS`, and `NOTHREAD` with every VSIM. Releases before August 2026 (8.2.9,
8.4.6, 8.6.6, 8.8.2, 8.10.1) use freed memory when a VREM comes while a thread searches (redis/redis#15669), and this
Redis is the queue as well. So each command holds up Redis for as long as it takes, and writes go in small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from redis.exceptions import NoPermissionError, ResponseError

from shared.keys import Keys
from shared.redis import OUTAGE, Redis, as_outage, shielded
from worker.search.engines import EngineStats, IndexName, Matrix, Neighbour, Place

# Candidates that a write and a search keep. 20,000 x 256: recall@10 .96 where the neighbours are hardly nearer than the
# rest, .99 (eight bits allow no more) in clusters. Redis's default of 200 for writes takes twice as long for .01 of it.
BUILD_EF: Final = 100
SEARCH_EF: Final = 400
EXACT_UP_TO: Final = 10_000  # elements: a millisecond; above, the graph is faster
MAX_LIMIT: Final = 100_000  # of neighbours
WRITE_BATCH: Final = 4  # commands on the way at a time, up to a millisecond each: Redis does them in one go
READ_BATCH: Final = 512
LEVELS: Final = 127.0  # of a component: -127..127 stand for -range..range
NODE_BYTES: Final = 800  # of an element beside its components, where MEMORY USAGE is refused

Command = tuple[str | bytes | int, ...]

# They change nothing: there is no such key, and a vector has components.
_PROBES: Final[tuple[Command, ...]] = (
    ("VADD", "errand:probe", "FP32", b"", "x"),
    ("VREM", "errand:probe", "x"),
    ("VSIM", "errand:probe", "FP32", b"\0\0\0\0"),
    ("VEMB", "errand:probe", "x", "RAW"),
    ("VCARD", "errand:probe"),
)


async def has_vector_sets(client: Redis) -> bool:
    """Whether this server knows the commands and lets us use them. Raises a member of OUTAGE.

    It tries them, so that it also works where COMMAND is refused, and where we may touch our own keys only.
    """
    for probe in _PROBES:
        try:
            await shielded(client.execute_command(*probe))
        except OUTAGE:
            raise
        except NoPermissionError as error:
            if "access a key" not in str(error) and "access one of the keys" not in str(error):
                return False
        except ResponseError as error:
            if "unknown command" in str(error).lower():
                return False
    return True


class VsetEngine:
    """The engine `redis-vset`: one vector set for each version of an index, never shared by tenants.

    Rows of zeros have no direction and are not in the set; which ones they are stands in a hash beside it.
    """

    name = "redis-vset"

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def put(self, index: IndexName, document_id: str, revision: int, vectors: Matrix) -> None:
        """Stores the vectors of a revision, less those that are there: Redis would take an element out of the graph and
        put it in again. Raises ValueError when the rows have another length than the index."""
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        if rows.ndim != 2 or rows.shape[1] != index.dimensions:
            raise ValueError(f"vectors of shape {rows.shape} do not fit an index of {index.dimensions} dimensions")
        key = self._key(index)
        names = [_element(document_id, revision, number) for number in range(len(rows))]
        there, stored = await self._read(key, names, index.dimensions)
        same = there & (np.abs(stored - rows) <= _step(stored)).all(axis=1)
        filled = rows.any(axis=1)
        commands: list[Command] = [
            ("VADD", key, "FP32", rows[at].tobytes(), names[at], "Q8", "EF", BUILD_EF)
            for at in np.flatnonzero(filled & ~same)
        ]
        commands += [("VREM", key, names[at]) for at in np.flatnonzero(there & ~filled)]
        empty, field = np.flatnonzero(~filled), _field(document_id, revision)
        if len(empty):
            commands.append(("HSET", self._empty_key(index), field, empty.astype("<u4").tobytes()))
        else:
            commands.append(("HDEL", self._empty_key(index), field))
        await self._run(commands, WRITE_BATCH)

    async def delete(self, index: IndexName, document_id: str, revision: int, count: int) -> None:
        """Removes a revision's vectors."""
        key = self._key(index)
        commands: list[Command] = [("VREM", key, _element(document_id, revision, number)) for number in range(count)]
        await self._run([*commands, ("HDEL", self._empty_key(index), _field(document_id, revision))], WRITE_BATCH)

    async def vectors(self, index: IndexName, document_id: str, revision: int, count: int) -> Matrix | None:
        """A revision's vectors, each component within a 254th of the row's largest."""
        names = [_element(document_id, revision, number) for number in range(count)]
        there, stored = await self._read(self._key(index), names, index.dimensions)
        if there.all():
            return stored
        packed = (await self._run([("HGET", self._empty_key(index), _field(document_id, revision))], 1))[0]
        empty = np.frombuffer(packed or b"", dtype="<u4")
        there[empty[empty < count]] = True
        return stored if there.all() else None

    async def search(self, index: IndexName, query: Matrix, limit: int) -> list[Neighbour]:
        """The nearest, approximately in a large index. A query of zeros finds nothing."""
        wanted = np.ascontiguousarray(query, dtype="<f4").reshape(-1)
        if limit < 1 or not wanted.any():
            return []
        limit, key = min(limit, MAX_LIMIT), self._key(index)
        count = int(await shielded(self._client.execute_command("VCARD", key)))
        if count == 0:
            return []
        # A graph does not reach every element, least of all equal ones; looking at each takes no longer for a few.
        every = count <= max(EXACT_UP_TO, 10 * limit)
        how = ("TRUTH",) if every else ("EF", max(SEARCH_EF, limit))
        found = await shielded(
            self._client.execute_command(
                "VSIM", key, "FP32", wanted.tobytes(), "WITHSCORES", "COUNT", limit, *how, "NOTHREAD"
            )
        )
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        # A score is (1 + cosine) / 2.
        return [Neighbour(_place(name), min(1.0, max(-1.0, 2.0 * float(score) - 1.0))) for name, score in pairs]

    async def cosines(self, index: IndexName, query: Matrix, places: Sequence[Place]) -> list[float | None]:
        """The cosines of these."""
        names = [_element(place.document_id, place.revision, place.number) for place in places]
        there, stored = await self._read(self._key(index), names, index.dimensions)
        wanted = np.asarray(query, dtype=np.float32).reshape(-1)
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(wanted)
        cosines = np.clip((stored @ wanted) / np.where(lengths > 0, lengths, 1), -1, 1)
        return [float(cosine) if here else None for cosine, here in zip(cosines, there, strict=True)]

    async def stats(self, index: IndexName) -> EngineStats:
        """How much there is, without rows of zeros; the bytes are an estimate where MEMORY USAGE is refused."""
        key = self._key(index)
        (count,) = await self._run([("VCARD", key)], 1)
        try:
            sizes = await self._run([("MEMORY", "USAGE", name) for name in (key, self._empty_key(index))], 2)
        except OUTAGE:
            raise
        except ResponseError:
            sizes = [count * (index.dimensions + NODE_BYTES)]
        return EngineStats(int(count), sum(int(size or 0) for size in sizes))

    async def drop(self, index: IndexName) -> None:
        """Removes all of an index."""
        await self._run([("UNLINK", self._key(index), self._empty_key(index))], 1)

    def _key(self, index: IndexName) -> str:
        return self._keys.vector_set(index.tenant, index.version, index.collection)

    def _empty_key(self, index: IndexName) -> str:
        return self._keys.vector_set_empty(index.tenant, index.version, index.collection)

    async def _read(self, key: str, names: Sequence[str], dimensions: int) -> tuple[Matrix, Matrix]:
        """Which elements are there, and their vectors, with zeros for the others."""
        # RAW: the plain reply has a bulk string for each component, twelve times as slow.
        replies = await self._run([("VEMB", key, name, "RAW") for name in names], READ_BATCH)
        there = np.array([reply is not None for reply in replies], dtype=bool)
        stored = np.zeros((len(names), dimensions), dtype=np.float32)
        if there.any():
            present = [reply for reply in replies if reply is not None]
            levels = np.frombuffer(b"".join(reply[1] for reply in present), dtype=np.int8).reshape(len(present), -1)
            # Redis keeps the direction, the length before that, and the largest component of the direction.
            scales = np.array([float(reply[2]) * float(reply[3]) / LEVELS for reply in present], dtype=np.float32)
            stored[there] = levels * scales[:, None]
        return there, stored

    async def _run(self, commands: Sequence[Command], batch: int) -> list[Any]:
        """The replies, in batches on a connection of the pool: on the shared one leases would wait behind them. Raises
        a member of OUTAGE, or the first ResponseError; what came before it was done."""
        replies: list[Any] = []
        for start in range(0, len(commands), batch):
            replies += await shielded(self._send(commands[start : start + batch]))
        return replies

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise as_outage(reply)
            if isinstance(reply, Exception):
                raise reply
        return replies


def _step(stored: Matrix) -> Matrix:
    """How far components may lie from those that were put, a row's in a column of one."""
    return np.abs(stored).max(axis=1, initial=0, keepdims=True) / LEVELS


def _field(document_id: str, revision: int) -> str:
    return f"{document_id}:{revision}"


def _element(document_id: str, revision: int, number: int) -> str:
    return f"{document_id}:{revision}:{number}"


def _place(name: bytes) -> Place:
    document_id, revision, number = name.decode().rsplit(":", 2)
    return Place(document_id, int(revision), int(number))
