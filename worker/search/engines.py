"""Where vectors lie, behind one interface: raw cosines only, no tenants, no filters, no scores. Engines hold vectors by
document, revision and place; which of them are current is for the index (worker.search.index) to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

Matrix = Any  # numpy.ndarray, float32, a row per vector


class IndexName(msgspec.Struct, frozen=True):
    """One version of the index of a tenant's collection."""

    tenant: str
    collection: str
    version: int
    dimensions: int


class Place(msgspec.Struct, frozen=True):
    """A vector: the chunk of this number (from 0) of a revision of a document."""

    document_id: str
    revision: int
    number: int


class Neighbour(msgspec.Struct, frozen=True):
    """A vector that was found, and its cosine with the query (-1..1)."""

    place: Place
    cosine: float


class EngineStats(msgspec.Struct, frozen=True):
    """Vectors of an index, and the bytes of Redis that they take."""

    vectors: int
    redis_bytes: int


class VectorEngine(Protocol):
    """An engine. Raises a member of OUTAGE when Redis is out of reach; all writes may be repeated."""

    name: str

    async def put(self, index: IndexName, document_id: str, revision: int, vectors: Matrix) -> None:
        """Stores the vectors of a revision (rows of length one, or of zeros for a chunk that has none)."""
        ...

    async def delete(self, index: IndexName, document_id: str, revision: int, count: int) -> None:
        """Removes a revision's vectors; `count` is how many there are. Nothing happens where there are none."""
        ...

    async def vectors(self, index: IndexName, document_id: str, revision: int, count: int) -> Matrix | None:
        """A revision's vectors as they were put, within quantisation; None when they are not all there."""
        ...

    async def search(self, index: IndexName, query: Matrix, limit: int) -> list[Neighbour]:
        """The `limit` nearest, nearest first (approximately, where the engine is); also of revisions that the index
        does not name any more. Rows of zeros are never found."""
        ...

    async def cosines(self, index: IndexName, query: Matrix, places: Sequence[Place]) -> list[float | None]:
        """The cosines of these; None for one that is not there."""
        ...

    async def stats(self, index: IndexName) -> EngineStats:
        """How much there is."""
        ...

    async def drop(self, index: IndexName) -> None:
        """Removes all of an index."""
        ...
