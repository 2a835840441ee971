"""Collections of documents, and the versions of their search index."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.jobs import Output
from shared.settings import Settings
from shared.specs import ShortText, Wire

EXACT: Final = "redis-exact"
VSET: Final = "redis-vset"
MIN_CHUNK: Final = 200
MAX_CHUNK: Final = 20_000


class VersionState(StrEnum):
    """`building` beside the current one; `current` answers searches; `previous` is what a rollback goes back to."""

    BUILDING = "building"
    CURRENT = "current"
    PREVIOUS = "previous"


class Calibration(msgspec.Struct, frozen=True, rename="camel"):
    """Mean cosines of texts that have nothing to do with each other, and of questions with their answers, as this model
    sees them: from them a cosine becomes a relevance (worker.search.calibration). `dimensions` of its vectors."""

    unrelated: float
    related: float
    dimensions: int = 0


class IndexSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How one version of an index is made; it never changes. `dimensions` 0: what the model gives, not yet measured;
    `asked` of the model, 0 where it is not told (many models refuse to be told)."""

    version: int
    model: str
    dimensions: int = 0
    asked: int = 0
    chunk_characters: int
    document_prefix: str = ""
    query_prefix: str = ""
    engine: str = EXACT
    calibration: Calibration | None = None
    created_ms: int = 0
    job_id: str | None = None  # that builds it

    @property
    def marks(self) -> str:
        """What the vectors of texts depend on, apart from the text: with the same marks one may stand for another."""
        return _marks([self.model, self.dimensions, self.document_prefix])

    @property
    def query_marks(self) -> str:
        """The same, for queries."""
        return _marks([self.model, self.dimensions, self.document_prefix, self.query_prefix])


def _marks(named: list[Any]) -> str:
    return hashlib.blake2b(msgspec.json.encode(named), digest_size=8).hexdigest()


def default_spec(settings: Settings) -> IndexSpec:
    """How the index of a new collection is made."""
    return IndexSpec(
        version=0,
        model=settings.embedding_model,
        dimensions=settings.embedding_dimensions,
        asked=settings.embedding_dimensions,
        chunk_characters=settings.search_chunk_characters,
        document_prefix=settings.search_document_prefix,
        query_prefix=settings.search_query_prefix,
    )


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """A document in an index: what search shows of it. `revision` counts its contents, `chunks` those in the index."""

    revision: int
    chunks: int
    text_blob: str
    title: str | None
    metadata: dict[str, str]
    characters: int = 0


class IndexView(Output, frozen=True, kw_only=True):
    """A version of a collection's index. `jobId` is the job that builds or built it, if one did."""

    version: int
    state: VersionState
    model: str
    dimensions: int | None
    chunk_characters: int
    engine: str
    documents: int
    chunks: int
    created_at: str
    job_id: str | UnsetType = UNSET


class CollectionView(Output, frozen=True, kw_only=True):
    """A collection: its counts are those of the current version; null before its first document is indexed."""

    name: str
    version: int | None
    documents: int
    chunks: int
    versions: list[IndexView]
    created_at: str


class Reindex(Wire, frozen=True, kw_only=True):
    """Body of `POST /api/collections/{name}/reindex`: what is to be different; what is absent stays as it is."""

    model: ShortText | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    chunk_characters: Annotated[int, Meta(ge=MIN_CHUNK, le=MAX_CHUNK)] | None = None
    document_prefix: Annotated[str, Meta(max_length=256)] | None = None
    query_prefix: Annotated[str, Meta(max_length=256)] | None = None
    engine: Annotated[str, Meta(pattern=r"^redis-(exact|vset)$")] | None = None


class DocumentDeleted(Output, frozen=True, kw_only=True):
    """What was removed: chunks from search, and searches in whose log the document stood."""

    document_id: str
    deleted: bool
    chunks: int
    searches: int
