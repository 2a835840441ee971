"""`reindex`: builds a version of a collection's index beside the one that answers, then switches to it in one step.

It may be lost and run again: documents that are in the new version are passed over, vectors that were bought staged.
Documents that come in meanwhile go into the current version, and the switch finds them missing in the new one.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from shared.collections import VSET, IndexSpec, default_spec
from shared.documents import DocumentStatus
from shared.errors import InternalError, InvalidInput, JobError, LeaseLostError, OverLimit, RefusedError
from shared.jobs import Output
from shared.redis import OUTAGE
from shared.specs import ReindexInput
from shared.stores.indexes import Collection, SupersededError, Switched
from shared.stores.records import Fields
from worker.context import JobContext
from worker.search.embedder import first_of
from worker.search.indexer import Document, Indexer, collection_of
from worker.search.vset import has_vector_sets
from worker.steady import RECONNECT_S

AT_ONCE: Final = 8  # documents that are worked on at a time
ROUNDS: Final = 100  # of documents that came in meanwhile
WARNED: Final = 20


class ReindexResult(Output, frozen=True, kw_only=True):
    """`documents` were put into the version by this job; `embedded` of their chunks had to be bought, `failed` could
    not be indexed. `previous` is the version that a rollback goes back to."""

    collection: str
    version: int
    previous: int | None
    documents: int
    chunks: int
    embedded: int
    failed: int


async def reindex(spec: ReindexInput, context: JobContext) -> ReindexResult:
    """Completes a version and makes it the current one. Raises JobError."""
    return await _Run(spec, context).carry_out()


class _Run:
    """One attempt."""

    def __init__(self, spec: ReindexInput, context: JobContext) -> None:
        self._spec = spec
        self._context = context
        self._tenant = context.job.tenant
        self._store = context.deps.indexes
        self._indexer = Indexer(context, context.worker)
        self._done = self._embedded = self._failed = self._total = 0
        self._lost: set[str] = set()

    async def carry_out(self) -> ReindexResult:
        """See `reindex`."""
        collection, target = await self._target()
        target = await self._indexer.prepared(collection, target)
        wanted = await self._missing(collection, target)
        for _ in range(ROUNDS):
            self._total += len(wanted)
            await self._index(wanted, collection, target)
            switched = await self._switch(collection, target)
            if switched.done:
                break
            if switched.current:
                raise InvalidInput(
                    f"Another version ({switched.current}) of the collection became the current one meanwhile."
                )
            wanted = [name for name in switched.missing if name not in self._lost]
            if not wanted:
                raise InternalError(f"{len(self._lost)} documents cannot be indexed in the new version.")
        else:
            raise InternalError("Documents come in faster than they are indexed; the version was not switched.")
        if switched.drop:
            await self._drop(collection, switched.drop)
        await self._indexer.finish()
        now = await self._store.collection(self._tenant, collection.name)
        self._context.report.progress(1.0, "done", f"Version {target.version} answers searches")
        return ReindexResult(
            collection=collection.name,
            version=target.version,
            previous=now.previous or None if now is not None else None,
            documents=self._done,
            chunks=now.chunks.get(target.version, 0) if now is not None else 0,
            embedded=self._embedded,
            failed=self._failed,
        )

    async def _target(self) -> tuple[Collection, IndexSpec]:
        """The version that is to become the current one, begun by this job if need be. Raises InvalidInput."""
        name, tenant = self._spec.collection, self._tenant
        if self._spec.version is not None:
            found = await self._store.collection(tenant, name)
            if found is None or self._spec.version not in found.specs:
                raise InvalidInput(f"The collection {name!r} has no version {self._spec.version} (any more).")
            return found, found.specs[self._spec.version]
        before = await self._store.collection(tenant, name)
        for spec in before.specs.values() if before is not None else ():
            # Its worker was lost: it goes on, or had switched to it.
            if before is not None and spec.job_id == self._context.job.job_id:
                return before, spec
        wanted = msgspec.convert({"version": 0, **(self._spec.spec or {})}, IndexSpec)
        if wanted.engine == VSET and not await has_vector_sets(self._store.client):
            raise InvalidInput(
                "This Redis has no vector sets: they come with Redis 8. The engine redis-exact needs none."
            )
        try:
            await self._store.open(tenant, name, default_spec(self._context.deps.settings))
            opened = await self._store.open(tenant, name, wanted, job=self._context.job.job_id, building=True)
        except RefusedError as error:
            raise InvalidInput(error.detail) from None
        if isinstance(opened, str):
            raise InvalidInput(f"The job {opened} builds a version of this collection already.")
        for number in opened.specs.keys() - {opened.current, opened.previous, opened.building}:
            await self._drop(opened, number)  # of a build that was given up
        return opened, opened.specs[opened.building]

    async def _missing(self, collection: Collection, target: IndexSpec) -> list[str]:
        """`_missing_now`, again where Redis went away in the middle of the list."""
        while True:
            try:
                return await self._missing_now(collection, target)
            except OUTAGE:
                await asyncio.sleep(RECONNECT_S)

    async def _missing_now(self, collection: Collection, target: IndexSpec) -> list[str]:
        """Documents that belong into the version and are not in it in their present content: those of the current one,
        and those that were stored before there was a search, or whose own job failed."""
        there = await self._store.entries(self._tenant, collection.name, target.version)
        have = {name: entry.revision for name, entry in there.items() if entry is not None}
        current = await self._store.entries(self._tenant, collection.name, collection.current)
        wanted = [name for name, entry in current.items() if entry is not None and have.get(name) != entry.revision]
        async for row in self._context.deps.documents.all(self._tenant):
            mine = collection_of(row) == collection.name and row.get("index") != "false" and "items" not in row
            if mine and row["status"] == DocumentStatus.READY and row["id"] not in current and row["id"] not in have:
                wanted.append(row["id"])
        return wanted

    async def _index(self, wanted: list[str], collection: Collection, target: IndexSpec) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(document_id: str) -> None:
            async with slots:
                await self._one(document_id, collection, target)

        try:
            async with asyncio.TaskGroup() as group:
                for document_id in wanted:
                    group.create_task(one(document_id))
        except* (JobError, LeaseLostError, OverLimit) as failed:
            raise first_of(failed) from None

    async def _one(self, document_id: str, collection: Collection, target: IndexSpec) -> None:
        library = self._context.deps.library
        try:
            before: Fields = await library.record(self._tenant, document_id)
            extracted, title = await library.load(self._tenant, document_id)
            row = await library.record(self._tenant, document_id)
        except InvalidInput:
            return  # deleted meanwhile
        if row.get("revision") != before.get("revision"):
            return  # the text may be that of either content; the switch will miss the document
        document = Document(
            document_id=document_id,
            revision=int(row.get("revision", "0")),
            collection=collection.name,
            extracted=extracted,
            text_blob=row["text_blob"],
            title=title,
            metadata=msgspec.json.decode(row.get("metadata", "{}"), type=dict[str, str]),
        )
        try:
            made = await self._indexer.put(document, collection, target, lambda *_: None, follows=False)
        except SupersededError:
            return  # its own job puts the newer content into the current version, and the switch will miss it here
        except InvalidInput as error:
            if await self._context.deps.documents.exists(self._tenant, document_id):
                self._failed += 1
                self._lost.add(document_id)
                if self._failed <= WARNED:
                    self._context.report.event("job.warning", code="document_failed", message=error.message)
            return
        self._done += 1
        self._embedded += made.embedded
        share = self._done / max(self._total, 1)
        self._context.report.progress(min(share, 0.99), "index", f"Indexed {self._done} of {self._total} documents")

    async def _switch(self, collection: Collection, target: IndexSpec) -> Switched:
        return await self._store.switch(collection, target.version, self._context.job, self._context.worker)

    async def _drop(self, collection: Collection, version: int) -> None:
        spec = collection.specs.get(version)
        if spec is not None:
            await self._indexer.engine(spec).drop(self._indexer.name(collection, spec))
        await self._store.drop(self._tenant, collection.name, version)
