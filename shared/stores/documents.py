"""The store of document records. Files and texts are blobs; the record names them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec

from shared.clock import rfc3339
from shared.documents import DocumentStatus, DocumentView, Extracted
from shared.errors import RefusedError
from shared.ids import is_id
from shared.jobs import FINAL, JobStatus
from shared.keys import Keys
from shared.redis import Redis
from shared.search import DEFAULT_COLLECTION
from shared.stores.jobs import Companion
from shared.stores.records import Fields, RecordsStore

MOST_LISTED: Final = 2_000  # records that one page with filters looks at
MAX_SCANNED: Final = 20_000  # records of a tenant that are looked at for those of one collection


class ReadyDocument(msgspec.Struct, frozen=True):
    """A document that can be searched. `characters` is 0 where it is not known."""

    id: str
    characters: int = 0


class DocumentsStore(RecordsStore):
    """Documents of all tenants. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        super().__init__(client, keys.prefix)
        self.keys = keys

    def companion(self, tenant: str, document_id: str, fields: dict[str, Any]) -> Companion:
        """The record as what `admit` stores in the same step as the document's ingest job."""
        record = {name: value for name, value in fields.items() if value is not None}
        return Companion(
            key=self.keys.document(document_id),
            index=self.keys.documents(tenant),
            id=document_id,
            fields={**record, "tenant": tenant, "status": DocumentStatus.PENDING},
        )

    async def record(self, tenant: str, document_id: str) -> Fields:
        """A document's fields. Raises RefusedError `not_found`."""
        row = await self.get(self.keys.document(document_id)) if is_id("doc", document_id) else None
        if row is None or row["tenant"] != tenant:
            raise RefusedError("not_found", f"There is no document {document_id[:64]!r}.")
        return (await self._with_fates([row]))[0]

    async def _with_fates(self, rows: Sequence[Fields]) -> list[Fields]:
        """A pending document whose ingest job has ended will not become ready by itself, nor a new content whose job
        has: that is its error."""
        statuses: dict[str, bytes | None] = {}
        if ids := [row.get("job_id", "") for row in rows if _is_open(row)]:
            async with self.client.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hget(self.keys.job(job_id), "status")
                statuses = dict(zip(ids, await pipe.execute(), strict=True))
        return [_with_fate(row, statuses[row.get("job_id", "")]) if _is_open(row) else row for row in rows]

    async def documents(
        self, tenant: str, *, limit: int, after: str | None, fits: Callable[[DocumentView], bool] | None = None
    ) -> tuple[list[DocumentView], str | None]:
        """One page, newest first, of those that fit; and the cursor of the next, None at the end. With `fits` a page
        may be short though there are more."""
        found: list[DocumentView] = []
        scanned = 0
        while True:
            ids, more = await self.page(self.keys.documents(tenant), limit=limit, after=after)
            rows = await self._with_fates(await self._records(ids))
            for row in rows:
                view = document_view(row)
                if fits is None or fits(view):
                    found.append(view)
                    if len(found) == limit:
                        return found, view.document_id if more or row is not rows[-1] else None
            scanned += len(ids)
            after = ids[-1] if ids else None
            if not more or scanned >= MOST_LISTED:
                return found, after if more else None

    async def _records(self, ids: Sequence[str]) -> list[Fields]:
        """The records of these documents, without those that are gone."""
        async with self.client.pipeline(transaction=False) as pipe:
            for document_id in ids:
                pipe.hgetall(self.keys.document(document_id))
            found: list[dict[bytes, bytes]] = await pipe.execute()
        return [{name.decode(): value.decode() for name, value in raw.items()} for raw in found if raw]

    async def ready(self, tenant: str, *, collection: str | None, limit: int) -> tuple[list[ReadyDocument], bool]:
        """The newest `limit` documents that were read, of one collection or of all; and whether there may be more."""
        found: list[ReadyDocument] = []
        after, more, scanned = None, True, 0
        while more and len(found) < limit and scanned < MAX_SCANNED:
            ids, more = await self.page(self.keys.documents(tenant), limit=500, after=after)
            async with self.client.pipeline(transaction=False) as pipe:
                for document_id in ids:
                    pipe.hmget(self.keys.document(document_id), ["status", "collection", "characters"])
                rows = await pipe.execute()
            for document_id, (status, named, characters) in zip(ids, rows, strict=True):
                where = named.decode() if named else DEFAULT_COLLECTION
                if status != b"ready" or collection not in (None, where):
                    continue
                if len(found) == limit:
                    return found, True
                found.append(ReadyDocument(document_id, int(characters or 0)))
            scanned += len(ids)
            after = ids[-1] if ids else None
        return found, more

    async def set_ready(self, document_id: str, extracted: Extracted, text_blob: str, revision: int) -> bool | None:
        """This content of the document was read; False when it was deleted meanwhile, None when it has a newer one."""
        reply = await self.scripts.run(
            "update",
            [self.keys.document(document_id)],
            revision=revision,
            fields={
                "status": DocumentStatus.READY,
                "media_type": extracted.media_type,
                "characters": str(len(extracted.text)),
                "pages": str(len(extracted.pages)),
                "skipped": msgspec.json.encode(extracted.skipped).decode(),
                "text_blob": text_blob,
                "error": "",
                **({"found_title": extracted.title} if extracted.title else {}),
            },
        )
        return None if int(reply) == 2 else int(reply) == 1

    async def set_batch_ready(self, document_id: str, items: int) -> bool:
        """The batch file was read and has so many lines; False when it was deleted meanwhile."""
        return await self._update(document_id, {"status": DocumentStatus.READY, "items": str(items), "error": ""})

    async def set_rejected(self, document_id: str, reason: str) -> None:
        """The document cannot be read, for the reason given."""
        await self._update(document_id, {"status": DocumentStatus.REJECTED, "error": reason})

    async def change(self, document_id: str, fields: Fields) -> bool:
        """Changes fields of a record; False when the document was deleted meanwhile."""
        return await self._update(document_id, fields)

    async def exists(self, tenant: str, document_id: str) -> bool:
        """Whether the tenant has such a document."""
        found = await self.client.pipe.execute("HGET", self.keys.document(document_id), "tenant")
        return bool(found == tenant.encode())

    async def all(self, tenant: str) -> AsyncIterator[Fields]:
        """The records of all documents of a tenant, newest first."""
        after, more = None, True
        while more:
            ids, more = await self.page(self.keys.documents(tenant), limit=500, after=after)
            async with self.client.pipeline(transaction=False) as pipe:
                for document_id in ids:
                    pipe.hgetall(self.keys.document(document_id))
                rows = await pipe.execute()
            for row in rows:
                if row:
                    yield {name.decode(): value.decode() for name, value in row.items()}
            after = ids[-1] if ids else None

    async def next_revision(self, tenant: str, document_id: str) -> int:
        """A number for the document's next content; gaps do no harm. Raises RefusedError `not_found`."""
        reply = await self.scripts.run("next_revision", [self.keys.document(document_id)], tenant=tenant)
        if not int(reply):
            raise RefusedError("not_found", f"There is no document {document_id[:64]!r}.")
        return int(reply)

    async def _update(self, document_id: str, fields: Fields) -> bool:
        return int(await self.scripts.run("update", [self.keys.document(document_id)], fields=fields)) == 1


def _is_searchable(row: Fields) -> bool:
    """Whether it is in search, or was never to be."""
    return row.get("index") == "false" or "revision" not in row or "indexed" in row


def _is_open(row: Fields) -> bool:
    """Whether something of the document is still to be read: then its job says what becomes of it."""
    if row.get("error"):
        return row["status"] == DocumentStatus.PENDING
    has_newer = int(row.get("next", "0")) > int(row.get("revision", "0"))
    return row["status"] == DocumentStatus.PENDING or has_newer or not _is_searchable(row)


def _with_fate(row: Fields, status: bytes | None) -> Fields:
    """The record with what the end of its job means, `status` being the job's."""
    fate = status.decode() if status else "gone"
    if fate == JobStatus.COMPLETE or (status is not None and fate not in FINAL):
        return row
    if row["status"] == DocumentStatus.PENDING:
        what = "read it, or analyse the document"
    elif not _is_searchable(row):
        what = "make it searchable"
    elif status is not None:
        what = "put the new content in place of the one before"
    else:
        return row  # a content that was refused before it had a job, and the job before it is of the past
    return {**row, "error": f"Its ingest job is {fate}; retry that job to {what}."}


def document_view(row: Fields) -> DocumentView:
    """How a stored document is shown."""
    ready = row["status"] == DocumentStatus.READY
    pages = int(row.get("pages", "0"))
    return DocumentView(
        document_id=row["id"],
        job_id=row.get("job_id"),
        title=row.get("title") or row.get("found_title"),
        filename=row.get("filename") or None,
        collection=row.get("collection"),
        metadata=msgspec.json.decode(row.get("metadata", "{}"), type=dict[str, str]),
        media_type=row.get("media_type"),
        url=row.get("url") or msgspec.UNSET,
        size_bytes=int(row["size_bytes"]) if row.get("size_bytes") else None,
        sha256=row.get("sha256") or None,
        revision=int(row.get("revision", "0")) or 1,
        status=DocumentStatus(row["status"]),
        characters=int(row["characters"]) if ready and "characters" in row else None,
        pages=pages or None,
        chunks=0,
        items=int(row["items"]) if ready and "items" in row else msgspec.UNSET,
        skipped=msgspec.Raw(row["skipped"].encode()) if ready and "skipped" in row else msgspec.UNSET,
        error=row.get("error") or msgspec.UNSET,
        created_at=rfc3339(int(row["created_ms"])),
    )
