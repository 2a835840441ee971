"""One search: which indexes, the query's vector, the best chunks of all of them, and their texts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from shared.clock import monotonic_s
from shared.collections import EXACT, Calibration, IndexSpec
from shared.errors import InvalidInput, JobError
from shared.filters import matches
from shared.search import IndexUsed, Mode, SearchRequest
from shared.stores.indexes import HASH_BYTES, Collection
from shared.tracing import Span
from worker.context import JobContext
from worker.search.chunks import chunk_id
from worker.search.embedder import embed_query
from worker.search.engines import Place
from worker.search.indexer import name_of
from worker.search.ranker import Given, Hit, Snapshot, rank
from worker.search.replica import Replica
from worker.search.segment import Segment
from worker.search.terms import query_terms

MOST_SEARCHED: Final = 200  # collections of one search that names none
INLINE: Final = 15_000  # chunks that are scanned within a millisecond
NEIGHBOURS: Final = 300  # that another engine is asked for
MOST_NEIGHBOURS: Final = 10_000  # with a filter that lets few through

Array = Any


class Found(msgspec.Struct, frozen=True):
    """A chunk that was considered, and where it is from."""

    hit: Hit
    collection: str
    chunk_id: str
    start: int
    end: int


class Retrieved(msgspec.Struct, frozen=True):
    """The best chunks, best first; what was looked through; what the client should know; milliseconds."""

    found: list[Found]
    indexes: list[IndexUsed]
    warnings: list[str]
    embed_ms: float
    retrieve_ms: float


class Searcher:
    """The search of one job."""

    def __init__(self, context: JobContext, request: SearchRequest) -> None:
        self._context = context
        self._request = request
        self._tenant = context.job.tenant
        self._warnings: list[str] = []
        self._embed_s = 0.0

    async def retrieve(self, limit: int) -> Retrieved:
        """The `limit` best chunks. Raises JobError: InvalidInput for a version that is not there, and the embedding
        model's errors in mode `vector`; `hybrid` goes on with the words alone, and says so."""
        with Span("search.retrieve", attributes={"errand.search.mode": self._request.mode.value}) as span:
            retrieved = await self._retrieve(limit)
            span.set({"errand.search.indexes": len(retrieved.indexes), "errand.search.found": len(retrieved.found)})
        return retrieved

    async def _retrieve(self, limit: int) -> Retrieved:
        started_s = monotonic_s()
        targets = await self._targets()
        held = await asyncio.gather(*(self._replica(collection, spec) for collection, spec in targets))
        replicas = [(collection, spec, replica) for (collection, spec), replica in zip(targets, held, strict=True)]
        queries = await self._vectors([spec for _, spec, replica in replicas if replica.chunks])
        mode = self._request.mode
        if mode is Mode.HYBRID and queries is None:
            mode = Mode.KEYWORD
        terms = query_terms(self._request.q)
        found: list[Found] = []
        for collection, spec, replica in replicas:
            if not replica.chunks:
                continue
            query = (queries or {}).get(spec.query_marks)
            segments = replica.segments
            allowed: list[Array | None] = [None] * len(segments)
            if self._request.filter:
                allowed = await asyncio.to_thread(_allowed, segments, self._request.filter)
            given = await self._given(collection, spec, segments, allowed, query, terms)
            snapshot = Snapshot(segments, spec.calibration or Calibration(0.0, 1.0), allowed)
            hits = await _ranked(snapshot, query, terms, mode, limit, given)
            found += [_found(hit, collection.name) for hit in hits]
        found.sort(key=lambda one: (-one.hit.score, one.chunk_id))
        return Retrieved(
            found=found[:limit],
            indexes=[_used(collection, spec, replica) for collection, spec, replica in replicas],
            warnings=self._warnings,
            embed_ms=self._embed_s * 1000,
            retrieve_ms=(monotonic_s() - started_s - self._embed_s) * 1000,
        )

    async def _targets(self) -> list[tuple[Collection, IndexSpec]]:
        store, named = self._context.deps.indexes, self._request.collections
        more = False
        if named is None:
            names, more = await store.names(self._tenant, limit=MOST_SEARCHED)
        else:
            names = named
        if more:
            self._warnings.append(
                f"Only the first {MOST_SEARCHED} collections were searched; name those that you mean."
            )
        found = []
        collections = await asyncio.gather(*(store.collection(self._tenant, name) for name in names))
        for name, collection in zip(names, collections, strict=True):
            if collection is None:
                self._warnings.append(f"There is no collection {name!r}, or nothing in it yet.")
                continue
            version = self._request.version or collection.current
            spec = collection.specs.get(version)
            if spec is None:
                raise InvalidInput(f"The collection {name!r} has no index version {version}.")
            found.append((collection, spec))
        return found

    async def _replica(self, collection: Collection, spec: IndexSpec) -> Replica:
        replica: Replica = await self._context.deps.replicas.get(name_of(collection, spec), spec)
        return replica

    async def _vectors(self, specs: Sequence[IndexSpec]) -> dict[str, Array] | None:
        """The query's vector by what it depends on; None when the words alone are to do."""
        if self._request.mode is Mode.KEYWORD:
            return None
        if specs and not any(spec.model for spec in specs):
            if self._request.mode is Mode.VECTOR:
                raise InvalidInput("These collections have no vectors: there is no embedding model.")
            return None
        started_s = monotonic_s()
        vectors: dict[str, Array] = {}
        try:
            for spec in specs:
                marks = spec.query_marks
                if spec.model and marks not in vectors:
                    vectors[marks] = await embed_query(self._context, spec, self._request.q)
        except JobError as error:
            if self._request.mode is Mode.VECTOR:
                raise
            self._warnings.append(f"The embedding model did not answer, so only words were looked for: {error.message}")
            return None
        finally:
            self._embed_s = monotonic_s() - started_s
        return vectors

    async def _given(
        self,
        collection: Collection,
        spec: IndexSpec,
        segments: Sequence[Segment],
        allowed: Sequence[Array | None],
        query: Array | None,
        terms: Sequence[int],
    ) -> Given | None:
        """What another engine than that in memory says of this query; None where there is none to ask."""
        if query is None or spec.engine == EXACT:
            return None
        engine, name = self._context.deps.engines[spec.engine], name_of(collection, spec)
        where = {
            (document.document_id, document.entry.revision): (place, document.first)
            for place, segment in enumerate(segments)
            for document in segment.held
        }
        cosines = [np.full(len(segment), np.nan, dtype=np.float32) for segment in segments]
        limit = NEIGHBOURS
        while True:
            neighbours = await engine.search(name, query, limit)
            good = 0
            for neighbour in neighbours:
                place = neighbour.place
                at = where.get((place.document_id, place.revision))
                if at is None:
                    continue
                row = at[1] + place.number
                cosines[at[0]][row] = neighbour.cosine
                mask = allowed[at[0]]
                good += bool(segments[at[0]].alive[row]) and (mask is None or bool(mask[row]))
            if good >= 2 * self._request.top_k or len(neighbours) < limit or limit >= MOST_NEIGHBOURS:
                break
            limit *= 4
        await self._fill(name, engine, segments, cosines, query, terms)
        return Given(cosines)

    async def _fill(
        self,
        name: Any,
        engine: Any,
        segments: Sequence[Segment],
        cosines: Sequence[Array],
        query: Array,
        terms: Sequence[int],
    ) -> None:
        """The cosines of chunks that the words alone would put first."""
        snapshot = Snapshot(list(segments), Calibration(0.0, 1.0), [None] * len(segments))
        hits = await _ranked(snapshot, None, terms, Mode.KEYWORD, NEIGHBOURS)
        places: list[tuple[Place, int, int]] = []
        at = {id(document): place for place, segment in enumerate(segments) for document in segment.held}
        for hit in hits:
            place, row = at[id(hit.held)], hit.held.first + hit.number
            if np.isnan(cosines[place][row]):
                wanted = Place(hit.held.document_id, hit.held.entry.revision, hit.number)
                places.append((wanted, place, row))
        known = await engine.cosines(name, query, [wanted for wanted, _, _ in places])
        for (_, place, row), cosine in zip(places, known, strict=True):
            if cosine is not None:
                cosines[place][row] = cosine


async def _ranked(
    snapshot: Snapshot,
    query: Array | None,
    terms: Sequence[int],
    mode: Mode,
    limit: int,
    given: Given | None = None,
) -> list[Hit]:
    """`rank`, in a thread where it takes longer than the change to one."""
    if sum(map(len, snapshot.segments)) < INLINE:
        return rank(snapshot, query, terms, mode, limit, given)
    return await asyncio.to_thread(rank, snapshot, query, terms, mode, limit, given)


def _allowed(segments: Sequence[Segment], wanted: dict[str, Any]) -> list[Array | None]:
    """For a thread: a microsecond and more for each document."""
    return [
        segment.allowed({place: matches(wanted, one.entry.metadata) for place, one in enumerate(segment.held)})
        for segment in segments
    ]


def _found(hit: Hit, collection: str) -> Found:
    places = hit.held.places
    digest = places.digests[hit.number * HASH_BYTES : (hit.number + 1) * HASH_BYTES]
    return Found(
        hit=hit,
        collection=collection,
        chunk_id=chunk_id(hit.held.document_id, digest, int(places.occurrences[hit.number])),
        start=int(places.starts[hit.number]),
        end=int(places.ends[hit.number]),
    )


def _used(collection: Collection, spec: IndexSpec, replica: Replica) -> IndexUsed:
    return IndexUsed(
        collection=collection.name,
        version=spec.version,
        model=spec.model,
        dimensions=spec.dimensions,
        engine=spec.engine,
        chunks=replica.chunks,
    )
