"""`ingest`: reads a document, keeps its text and puts it into its collection's index; of a batch file it counts the
lines."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from shared.blobs import BlobMissingError
from shared.documents import DocumentStatus, Extracted, Skipped
from shared.errors import BlobsUnavailableError, DocumentRejected, InvalidInput, ReaderFailed
from shared.redis import OUTAGE
from shared.specs import IngestInput, NewContent
from shared.stores.indexes import SupersededError
from shared.stores.records import Fields
from worker.context import JobContext
from worker.journal import Step
from worker.search.growth import look
from worker.search.indexer import Document, Indexer, collection_of

READ: Final = 0.1


class IngestResult(msgspec.Struct, frozen=True, rename="camel"):
    """`chunks` counts the parts in the search index, `embedded` those whose vectors had to be bought; `skipped` names
    what has no readable text. Of a batch file: its `items`, and how many of them cannot be used."""

    document_id: str
    chunks: int
    skipped: list[Skipped]
    embedded: int | UnsetType = UNSET
    items: int | UnsetType = UNSET
    bad_items: int | UnsetType = UNSET


async def ingest(spec: IngestInput, context: JobContext) -> IngestResult:
    """Extracts the text and indexes it. When the job is complete, searches find it. Raises DocumentRejected, and then
    marks the document so."""
    tenant, library = context.job.tenant, context.deps.library
    try:
        row = await library.record(tenant, spec.document_id)
    except InvalidInput:
        if spec.content is not None:
            await _forget(spec.content, context)
        raise
    if library.is_batch_file(row):
        return await _count(spec.document_id, context)
    if spec.content is not None:
        return await _replace(spec.document_id, row, spec.content, context)
    if "url" in row and row.get("fetched") != "1":
        row = await _fetch(spec.document_id, row, context)
    context.report.progress(None, "extract", "Reading the document")
    extracted, title = await library.load(tenant, spec.document_id, again=True)
    if row.get("index") == "false":
        context.report.progress(1.0, "extract", f"Read {len(extracted.text)} characters")
        return IngestResult(spec.document_id, 0, extracted.skipped)
    revision = int(row.get("revision", "0"))
    row = await library.record(tenant, spec.document_id)
    if int(row.get("revision", "0")) != revision:
        raise InvalidInput("A newer content of the document was indexed meanwhile; this one is not needed.")
    return await _index(spec.document_id, row, extracted, title, revision, {}, context)


async def _index(
    document_id: str,
    row: Fields,
    extracted: Extracted,
    title: str | None,
    revision: int,
    fields: Fields,
    context: JobContext,
) -> IngestResult:
    """Indexes a text, which is kept already. Raises JobError."""

    def told(fraction: float, message: str) -> None:
        context.report.progress(READ + (1 - READ) * fraction, "embed", message)

    told(0.0, "Cutting the text into chunks")
    metadata = msgspec.json.decode(fields.get("metadata") or row.get("metadata", "{}"), type=dict[str, str])
    document = Document(
        document_id=document_id,
        revision=revision,
        collection=collection_of(row),
        extracted=extracted,
        text_blob=fields.get("text_blob") or row["text_blob"],
        title=title,
        metadata=metadata,
        fields={**fields, "revision": str(revision), "error": ""},
    )
    try:
        indexer = Indexer(context, context.worker)
        made = await indexer.index(document, told)
        await indexer.finish()
    except SupersededError:
        raise InvalidInput("A newer content of the document was indexed meanwhile; this one is not needed.") from None
    moving = None
    with suppress(*OUTAGE):  # the next document asks again
        moving = await look(context, document.collection)
    if moving is not None:
        context.report.event(
            "job.warning",
            code="collection_moves",
            message=f"The collection has grown: {moving} moves it to a vector set.",
        )
    new = f", {made.embedded} of them embedded now" if made.embedded != made.chunks else ""
    context.report.progress(1.0, "index", f"Indexed {made.chunks} chunks{new}")
    return IngestResult(document_id, made.chunks, extracted.skipped, made.embedded)


async def _fetch(document_id: str, row: Fields, context: JobContext) -> Fields:
    """Gets the file of a document that was given by its URL. Raises DocumentRejected."""
    context.report.progress(None, "fetch", "Fetching the document")
    blob, url = row["file_blob"], row["url"]
    try:
        size, digest = await _fetched(url, blob, context)
    except DocumentRejected as error:
        if not error.retryable:
            await context.deps.documents.set_rejected(document_id, error.message)
        raise
    fields = {"size_bytes": str(size), "sha256": digest, "fetched": "1"}
    if not await context.deps.documents.change(document_id, fields):
        await context.deps.blobs.delete(blob)
        raise InvalidInput(f"The document {document_id} was deleted while it was fetched.")
    return {**row, **fields}


class _Fetched(msgspec.Struct, frozen=True):
    size_bytes: int
    sha256: str


async def _fetched(url: str, blob: str, context: JobContext) -> tuple[int, str]:
    """The page as a blob, once in this job: its size and hash."""

    async def make(_: Step) -> bytes:
        content, _where = await context.deps.tools.pages.fetch(url)
        await context.deps.blobs.put(blob, content)
        return msgspec.json.encode(_Fetched(len(content), hashlib.sha256(content).hexdigest()))

    journaled, _ = await context.journal.step("fetch", url.encode(), make)
    found = msgspec.json.decode(journaled, type=_Fetched)
    return found.size_bytes, found.sha256


async def _replace(document_id: str, row: Fields, content: NewContent, context: JobContext) -> IngestResult:
    """The document's new content: what it had stays until this one can be found. Raises DocumentRejected: then the
    document is as it was, and its record says why."""
    library, blobs = context.deps.library, context.deps.blobs
    if int(row.get("revision", "0")) > content.revision:
        await _forget(content, context)
        raise InvalidInput("A newer content of the document was indexed meanwhile; this one is not needed.")
    size, digest = content.size_bytes, content.sha256
    try:
        if content.url is not None:
            context.report.progress(None, "fetch", "Fetching the document")
            size, digest = await _fetched(content.url, content.blob, context)
        context.report.progress(None, "extract", "Reading the document")
        extracted = await library.extract(await blobs.get(content.blob))
    except BlobMissingError:
        raise InvalidInput(f"The document {document_id} was deleted.") from None
    except ReaderFailed:
        raise
    except DocumentRejected as error:
        if not error.retryable:
            reason = f"The new content was rejected, the one before is still there: {error.message}"
            await context.deps.documents.change(document_id, {"error": reason})
            await blobs.delete(content.blob)
        raise
    text_blob = content.blob.replace("files/", "texts/", 1)
    await blobs.put(text_blob, msgspec.json.encode(extracted))
    fields: Fields = {
        "status": DocumentStatus.READY,
        "media_type": extracted.media_type,
        "characters": str(len(extracted.text)),
        "pages": str(len(extracted.pages)),
        "skipped": msgspec.json.encode(extracted.skipped).decode(),
        "text_blob": text_blob,
        "file_blob": content.blob,
        "size_bytes": str(size or 0),
        "sha256": digest or "",
        "found_title": extracted.title or "",
        "filename": content.filename or "",
        "url": content.url or "",
    }
    if content.title is not None:
        fields["title"] = content.title
    if content.metadata is not None:
        fields["metadata"] = msgspec.json.encode(content.metadata).decode()
    title = content.title or row.get("title") or extracted.title or content.filename or row.get("filename")
    try:
        made = await _index(document_id, row, extracted, title, content.revision, fields, context)
    except InvalidInput:
        # Deleted, or a newer content is there: this one is nobody's any more.
        await _forget(content, context)
        raise
    return made


async def _forget(content: NewContent, context: JobContext) -> None:
    for blob in (content.blob, content.blob.replace("files/", "texts/", 1)):
        with suppress(BlobsUnavailableError):
            await context.deps.blobs.delete(blob)


async def _count(document_id: str, context: JobContext) -> IngestResult:
    def told(fraction: float, items: int) -> None:
        context.report.progress(fraction, "count", f"Read {items} items")

    count = await context.deps.library.count_batch(context.job.tenant, document_id, told)
    bad = count.items - count.good
    faulty = f", {bad} of them cannot be used" if bad else ""
    context.report.progress(1.0, "count", f"Read {count.items} items{faulty}")
    return IngestResult(document_id, 0, [], items=count.items, bad_items=bad)
