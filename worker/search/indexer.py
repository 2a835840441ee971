"""Putting a document into its collection's index: chunks, vectors (bought only where nobody has them), one step that
makes them findable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import numpy as np

from shared.collections import EXACT, Calibration, Entry, IndexSpec, default_spec
from shared.documents import Extracted
from shared.errors import BlobsUnavailableError, InternalError, InvalidInput, RefusedError, UpstreamRefused
from shared.metrics import CHUNKS
from shared.search import DEFAULT_COLLECTION
from shared.stores.indexes import Collection, VersionSwitchedError, digests_of
from worker.context import JobContext
from worker.search.chunks import Chunk, cut
from worker.search.embedder import Embedder, calibrate, matrix_of
from worker.search.engines import IndexName, VectorEngine
from worker.search.pack import pack, unpack
from worker.search.quantised import to_bytes

MOST_HOMES: Final = 50  # documents that are asked for vectors of texts that they share with a new one
TRIES: Final = 5  # when the collection's version is switched while a document is made ready for it
WARNED: Final = 5  # texts that the model refused and that are named

Matrix = Any  # numpy.ndarray


class Document(msgspec.Struct, frozen=True):
    """What is to be indexed. `fields` go into its record in the same step; None: only the index changes."""

    document_id: str
    revision: int
    collection: str
    extracted: Extracted
    text_blob: str
    title: str | None
    metadata: dict[str, str]
    fields: Mapping[str, str] | None = None


class Indexed(msgspec.Struct, frozen=True):
    """What came of it: chunks in the index, how many of them had to be embedded, and how many the model refused."""

    chunks: int
    embedded: int
    refused: int


def collection_of(row: Mapping[str, str]) -> str:
    """The collection of a document's record."""
    return row.get("collection") or DEFAULT_COLLECTION


def name_of(collection: Collection, spec: IndexSpec) -> IndexName:
    """The name of a version of a collection's index. Without a model the stored rows have one number, a zero."""
    return IndexName(collection.tenant, collection.name, spec.version, spec.dimensions or int(not spec.model))


class Indexer:
    """Indexes documents for one job."""

    def __init__(self, context: JobContext, worker: str) -> None:
        self._context = context
        self._worker = worker
        self._store = context.deps.indexes
        self._tenant = context.job.tenant
        self._marks: set[str] = set()  # of the vectors that were bought

    def engine(self, spec: IndexSpec) -> VectorEngine:
        """The engine of a version. Raises InvalidInput when this worker has none of its name."""
        found = self._context.deps.engines.get(spec.engine)
        if found is None:
            raise InvalidInput(f"There is no vector engine {spec.engine!r} in this release.")
        return found

    @staticmethod
    def name(collection: Collection, spec: IndexSpec) -> IndexName:
        """The name of a version of a collection's index."""
        return name_of(collection, spec)

    async def index(self, document: Document, told: Callable[[float, str], None]) -> Indexed:
        """Into the current version of its collection, which is made where there is none. `told` hears the fraction and
        a sentence. Raises JobError, LeaseLostError, and SupersededError when a newer content is there already."""
        for _ in range(TRIES):
            spec = default_spec(self._context.deps.settings)
            try:
                found = await self._store.open(self._tenant, document.collection, spec)
            except RefusedError as error:
                raise InvalidInput(error.detail) from None
            assert isinstance(found, Collection)
            try:
                ready = await self.prepared(found, found.spec)
                return await self.put(document, found, ready, told, follows=True)
            except VersionSwitchedError:
                continue
        raise InternalError("The index of the collection was switched again and again meanwhile.")

    async def finish(self) -> None:
        """Lets go of what was staged: all of it is in an index."""
        for marks in self._marks:
            await self._store.unstage(self._tenant, self._context.job.job_id, marks)

    async def prepared(self, collection: Collection, spec: IndexSpec) -> IndexSpec:
        """The same version with its dimensions and calibration, measured now if that was not done. Raises JobError."""
        if spec.calibration is not None and spec.dimensions:
            return spec
        if not spec.model:  # words only
            return msgspec.structs.replace(spec, calibration=Calibration(0.0, 1.0, 1), dimensions=1)
        found = await calibrate(self._context, spec)
        spec = msgspec.structs.replace(spec, calibration=found, dimensions=found.dimensions)
        await self._store.describe(self._tenant, collection.name, spec)
        return spec

    async def put(
        self,
        document: Document,
        collection: Collection,
        spec: IndexSpec,
        told: Callable[[float, str], None],
        *,
        follows: bool,
    ) -> Indexed:
        """Into this version. Raises as `index`, and VersionSwitchedError with `follows`."""
        text, name, engine = document.extracted.text, name_of(collection, spec), self.engine(spec)
        chunks = await asyncio.to_thread(cut, text, spec.chunk_characters)
        before = await self._store.entry(self._tenant, collection.name, spec.version, document.document_id)
        rows, embedded, refused = await self._vectors(document, collection, spec, chunks, before, told)
        if follows and rows and spec.model and refused == len(rows):
            raise UpstreamRefused("The embedding model refused every text of the document; the job's events say why.")
        matrix = await asyncio.to_thread(matrix_of, [rows[chunk.digest] for chunk in chunks], spec.dimensions)
        await engine.put(name, document.document_id, document.revision, matrix)
        packed = await asyncio.to_thread(pack, text, chunks)
        old = await self._digests(document, spec, before)
        await self._store.write_pack(self._tenant, document.document_id, spec.version, document.revision, packed)
        entry = Entry(
            revision=document.revision,
            chunks=len(chunks),
            text_blob=document.text_blob,
            title=document.title,
            metadata=document.metadata,
            characters=len(text),
        )
        done = await self._store.put(
            self._context.job,
            self._worker,
            collection=collection.name,
            version=spec.version,
            document_id=document.document_id,
            entry=entry,
            fields=document.fields,
            follows=follows,
            has_vectors=spec.engine == EXACT,
        )
        new = {chunk.digest for chunk in chunks}
        marks = spec.marks
        gone = [digest for digest in old if digest not in new]
        await self._store.forget_homes(self._tenant, marks, gone, document.document_id)
        await self._store.note_homes(self._tenant, marks, [*new], document.document_id, collection.name, spec.version)
        self._marks.add(marks)
        CHUNKS.labels("bought").inc(embedded)
        CHUNKS.labels("reused" if spec.model else "none").inc(max(0, len(chunks) - embedded - refused))
        CHUNKS.labels("none").inc(refused)
        had = done.before
        if had is not None and had != document.revision and before is not None:
            await engine.delete(name, document.document_id, had, before.chunks)
        for blob in done.blobs:
            with suppress(BlobsUnavailableError):
                await self._context.deps.blobs.delete(blob)
        return Indexed(len(chunks), embedded, refused)

    async def _digests(self, document: Document, spec: IndexSpec, before: Entry | None) -> list[bytes]:
        """The texts that the document had in this version until now."""
        if before is None:
            return []
        wanted = [(document.document_id, before.revision)]
        (stored,) = await self._store.packs(self._tenant, spec.version, wanted)
        return await asyncio.to_thread(digests_of, stored) if stored is not None else []

    async def _vectors(
        self,
        document: Document,
        collection: Collection,
        spec: IndexSpec,
        chunks: Sequence[Chunk],
        before: Entry | None,
        told: Callable[[float, str], None],
    ) -> tuple[dict[bytes, bytes], int, int]:
        """A stored row for each different text: from this document as it was, from others of the tenant, or bought."""
        text = document.extracted.text
        wanted = {chunk.digest: spec.document_prefix + text[chunk.start : chunk.end] for chunk in chunks}
        if not spec.model:
            return dict.fromkeys(wanted, b""), 0, 0
        rows: dict[bytes, bytes] = {}
        if before is not None:
            rows |= await self._of(document.document_id, collection, spec, before, wanted)
        missing = [digest for digest in wanted if digest not in rows]
        if missing:
            rows |= await self._from_others(spec, missing)
        missing = [digest for digest in wanted if digest not in rows]
        if not missing:
            return rows, 0, 0
        reused = len(wanted) - len(missing)

        def progress(done: int) -> None:
            told((reused + done) / len(wanted), f"Embedded {done} of {len(missing)} chunks")

        embedder = Embedder(self._context, spec, "embed")
        bought = await embedder.buy({digest: wanted[digest] for digest in missing}, progress)
        if bought.dimensions not in (None, spec.dimensions):
            raise InvalidInput(
                f"The model {spec.model} gives {bought.dimensions} dimensions now; the index of the collection "
                f"{collection.name!r} has {spec.dimensions}. Make a new version of it: POST /api/collections/…/reindex."
            )
        for reason in list(bought.refused.values())[:WARNED]:
            self._context.report.event(
                "job.warning", code="chunk_refused", message=f"A chunk is found by its words only: {reason}"
            )
        return rows | bought.rows, len(missing) - len(bought.refused), len(bought.refused)

    async def _from_others(self, spec: IndexSpec, missing: Sequence[bytes]) -> dict[bytes, bytes]:
        """Vectors of texts that other documents of the tenant have too."""
        homes = await self._store.homes(self._tenant, spec.marks, missing)
        named = Counter(home for home in homes if home is not None)
        rows: dict[bytes, bytes] = {}
        for (document_id, name, version), _ in named.most_common(MOST_HOMES):
            collection = await self._store.collection(self._tenant, name)
            theirs = collection.specs.get(version) if collection is not None else None
            if collection is None or theirs is None or theirs.marks != spec.marks:
                continue
            entry = await self._store.entry(self._tenant, name, version, document_id)
            if entry is not None:
                rows |= await self._of(document_id, collection, theirs, entry, missing)
        return rows

    async def _of(
        self, document_id: str, collection: Collection, spec: IndexSpec, entry: Entry, wanted: Any
    ) -> dict[bytes, bytes]:
        """The vectors that a document has of these texts."""
        (stored,) = await self._store.packs(self._tenant, spec.version, [(document_id, entry.revision)])
        if stored is None:
            return {}
        name = name_of(collection, spec)
        matrix = await self.engine(spec).vectors(name, document_id, entry.revision, entry.chunks)
        if matrix is None:
            return {}
        return await asyncio.to_thread(_common, stored, matrix, set(wanted))


def _common(stored: bytes, matrix: Matrix, wanted: set[bytes]) -> dict[bytes, bytes]:
    found = unpack(stored)
    rows = {}
    for row in range(len(found)):
        digest = found.digest(row)
        if digest in wanted and np.any(matrix[row]):
            rows[digest] = to_bytes(matrix[row : row + 1])
    return rows
