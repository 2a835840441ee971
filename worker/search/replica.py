"""A version of an index as one worker holds it: loaded once, then kept up with its changes before each search.

Whatever was put into the index before a search began is found by it: the changes are read first (one round trip).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from shared.clock import monotonic_s
from shared.collections import EXACT, Entry, IndexSpec
from shared.log import get_logger
from shared.metrics import REPLICA_BYTES, REPLICAS
from shared.stores.indexes import IndexesStore
from worker.search.engines import IndexName
from worker.search.exact import ExactEngine
from worker.search.pack import Pack, unpack
from worker.search.quantised import from_bytes
from worker.search.segment import Segment, build, merge

log = get_logger()

PAGE: Final = 200  # documents that are read at a time,
PAGE_CHUNKS: Final = 4_000  # and about so many chunks
MOST_SEGMENTS: Final = 8
TRIES: Final = 3  # of reading a document that changes while it is read
IDLE_S: Final = 900.0  # an index that was not searched for so long goes: its version or its tenant may be gone
DEAD_SHARE: Final = 0.3  # of the chunks, from which on they are cleared away

Array = Any


class Replica:
    """The chunks of one index version. `refresh` brings it up to date; what it gave to a search stays as it was."""

    def __init__(self, name: IndexName, spec: IndexSpec, store: IndexesStore, engine: ExactEngine) -> None:
        self.name = name
        self.spec = spec
        self._store = store
        self._engine = engine
        self._place: str | None = None
        self._segments: list[Segment] = []
        self._where: dict[str, tuple[Segment, int]] = {}
        self._turn = asyncio.Lock()
        self._asked = self._answered = 0  # refreshes
        self.asked_s = 0.0  # monotonic; when it was last searched

    @property
    def segments(self) -> list[Segment]:
        """What there is, for one search: later changes make new lists."""
        return list(self._segments)

    @property
    def chunks(self) -> int:
        """How many chunks can be found."""
        return sum(int(segment.alive.sum()) for segment in self._segments)

    @property
    def size_bytes(self) -> int:
        """Memory, about."""
        return sum(segment.size_bytes for segment in self._segments)

    async def refresh(self) -> None:
        """Reads what has changed. Searches that come while it is read share the next reading. Raises a member of
        OUTAGE."""
        self._asked += 1
        mine = self._asked
        async with self._turn:
            if self._answered >= mine:
                return  # by a reading that began after this was asked
            began = self._asked
            for _ in range(TRIES):
                if await self._follow():
                    break
            self._answered = began

    async def _follow(self) -> bool:
        """Whether all that was read is what there is: a document may change again while it is."""
        tenant, collection, version = self.name.tenant, self.name.collection, self.name.version
        if self._place is None:
            return await self._load()
        place, changed = await self._store.changed(tenant, collection, version, self._place)
        if changed is None:
            return await self._load()
        if not changed:
            return True
        is_whole = await self._apply(await self._store.entries(tenant, collection, version, changed))
        self._place = place
        return is_whole

    async def _load(self) -> bool:
        """All of it, or what differs from what is held."""
        started_s = monotonic_s()
        tenant, collection, version = self.name.tenant, self.name.collection, self.name.version
        place = await self._store.latest_change(tenant, collection, version)
        now = await self._store.entries(tenant, collection, version)
        gone = {document_id: None for document_id in self._where if document_id not in now}
        is_whole = await self._apply({**now, **gone})
        self._place = place
        log.info("search.loaded", collection=collection, version=version, documents=len(now), chunks=self.chunks,
                 ms=round((monotonic_s() - started_s) * 1000))  # fmt: skip
        return is_whole

    async def _apply(self, now: dict[str, Entry | None]) -> bool:
        """Documents as they are now; None for those that are gone. Nothing is seen of it until all of it is there.
        False when one of them was changed again before it was read."""
        differing = {name: entry for name, entry in now.items() if self._held(name) != entry}
        if not differing:
            return True
        fresh = [(name, entry) for name, entry in differing.items() if entry is not None and entry.chunks]
        parts: list[tuple[str, Entry, Pack]] = []
        matrices: list[Array] = []
        for page in _pages(fresh):
            for (name, entry), pack, matrix in zip(page, *await self._read(page), strict=True):
                if pack is not None:
                    parts.append((name, entry, pack))
                    matrices.append(matrix)
        added = None
        if parts:
            added = await asyncio.to_thread(build, parts, matrices if self.spec.engine == EXACT else None)
        doomed: dict[int, list[int]] = {}
        for name in differing:
            if name in self._where:
                segment, place = self._where[name]
                doomed.setdefault(id(segment), []).append(place)
        segments = [
            segment.without(doomed[id(segment)]) if id(segment) in doomed else segment for segment in self._segments
        ]
        if added is not None:
            segments.append(added)
        self._segments = await asyncio.to_thread(_tidied, segments)
        self._where = {
            document.document_id: (segment, place)
            for segment in self._segments
            for place, document in enumerate(segment.held)
            if segment.is_alive(place)
        }
        return len(parts) == len(fresh)

    def _held(self, document_id: str) -> Entry | None:
        where = self._where.get(document_id)
        return where[0].held[where[1]].entry if where is not None else None

    async def _read(self, page: Sequence[tuple[str, Entry]]) -> tuple[list[Pack | None], list[Array]]:
        """Chunks and vectors of documents; None for one that changed again meanwhile, which the changes will tell."""
        wanted = [(name, entry.revision) for name, entry in page]
        packs = await self._store.packs(self.name.tenant, self.name.version, wanted)
        stored: list[bytes | None] = [None] * len(page)
        if self.spec.engine == EXACT:
            stored = await self._engine.many(self.name, wanted)
        return await asyncio.to_thread(self._unpacked, packs, stored)

    def _unpacked(
        self, packs: Sequence[bytes | None], stored: Sequence[bytes | None]
    ) -> tuple[list[Pack | None], list[Array]]:
        found: list[Pack | None] = []
        matrices: list[Array] = []
        for content, vectors in zip(packs, stored, strict=True):
            pack = unpack(content) if content is not None else None
            matrix = None
            if pack is not None and self.spec.engine == EXACT:
                size = self.name.dimensions
                matrix = from_bytes(vectors, size) if vectors is not None else np.zeros((0, size), dtype=np.float32)
                if len(matrix) != len(pack):
                    pack = None
            found.append(pack)
            matrices.append(matrix)
        return found, matrices


def _pages(documents: Sequence[tuple[str, Entry]]) -> Iterator[list[tuple[str, Entry]]]:
    """The documents in portions that are read at a time."""
    page: list[tuple[str, Entry]] = []
    chunks = 0
    for document in documents:
        if page and (len(page) == PAGE or chunks + document[1].chunks > PAGE_CHUNKS):
            yield page
            page, chunks = [], 0
        page.append(document)
        chunks += document[1].chunks
    if page:
        yield page


def _tidied(segments: list[Segment]) -> list[Segment]:
    """Small segments made one, the dead cleared away: the number of segments grows with the logarithm of the chunks."""
    kept = [segment for segment in segments if segment.alive.any()]
    whole = [segment for segment in kept if segment.alive.mean() >= 1 - DEAD_SHARE]
    doomed = [segment for segment in kept if segment.alive.mean() < 1 - DEAD_SHARE]
    whole.sort(key=len, reverse=True)
    if len(whole) > MOST_SEGMENTS:
        size = 0
        while whole and (len(whole) >= MOST_SEGMENTS or 4 * size > len(whole[-1])):
            size += len(whole[-1])
            doomed.append(whole.pop())
    return [*whole, merge(doomed)] if doomed else whole


class Replicas:
    """The indexes that a worker holds; those that were not asked for the longest go when memory is short, or after
    `idle_s` in any case."""

    def __init__(self, store: IndexesStore, engine: ExactEngine, limit_bytes: int, *, idle_s: float = IDLE_S) -> None:
        self._store = store
        self._idle_s = idle_s
        self._engine = engine
        self._limit = limit_bytes
        self._held: OrderedDict[IndexName, Replica] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    async def get(self, name: IndexName, spec: IndexSpec) -> Replica:
        """An index as it is now. Raises a member of OUTAGE."""
        replica = self._held.get(name)
        if replica is None:
            replica = self._held[name] = Replica(name, spec, self._store, self._engine)
        self._held.move_to_end(name)
        replica.asked_s = monotonic_s()
        await replica.refresh()
        self._make_room(name)
        REPLICAS.set(len(self._held))
        REPLICA_BYTES.set(sum(one.size_bytes for one in self._held.values()))
        return replica

    def _make_room(self, used: IndexName) -> None:
        size = sum(replica.size_bytes for replica in self._held.values())
        forgotten_s = monotonic_s() - self._idle_s
        while len(self._held) > 1:
            name, replica = next(iter(self._held.items()))
            if name == used or (size <= self._limit and replica.asked_s >= forgotten_s):
                break
            del self._held[name]
            size -= replica.size_bytes
