"""Documents: upload, list, read, delete. The file is stored here; an `ingest` job reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from aiohttp import BodyPartReader, web

from api.admission import record_of, timing_of
from api.keys import BLOBS, DOCUMENTS, INDEXES, JOBS, OUTPUTS, PRICES, PRINCIPAL, REDIS, SEARCHES, SETTINGS, STANDING
from api.wire import answer, idempotency, invalid, page_answer, page_of, query, read_json, too_large
from shared.batch import HEAD_BYTES, MEDIA_TYPE, is_batch
from shared.blobs import BlobMissingError, BlobTooLargeError, Stored
from shared.collections import DocumentDeleted
from shared.documents import (
    DocumentAccepted,
    DocumentPatch,
    DocumentSource,
    DocumentStatus,
    DocumentView,
    Extracted,
    NewTextDocument,
)
from shared.errors import BlobsUnavailableError, RefusedError
from shared.ids import is_id, new_id
from shared.metrics import JOBS_ADMITTED, JOBS_REFUSED
from shared.redis import OUTAGE, redis_now_ms
from shared.search import DEFAULT_COLLECTION
from shared.settings import Settings
from shared.specs import IngestInput, IngestJob, Metadata, NewContent
from shared.stores.documents import document_view
from shared.stores.jobs import Admitted, Companion

MAX_FIELD_BYTES = 64 * 1024
MOST_CONTENTS = 20  # of a document that may be waiting at a time, when it is deleted
MOST_ESTIMATED = 4 * 1024 * 1024  # bytes of a file that count for its job's size: much of a PDF is no text
TEXT_FIELDS = ("title", "collection", "metadata", "index")


async def create(request: web.Request) -> web.Response:
    """POST /api/documents: a multipart file, or JSON with a text or a URL."""
    query(request, ())
    document_id = new_id("doc", await redis_now_ms(request.app[REDIS]))
    blob = f"files/{request[PRINCIPAL].tenant}/{document_id}"
    async with _taken(request, blob) as taken:
        stored, fields, body = await _read(request, blob, NewTextDocument)
        accepted, taken.replayed = await _admit(request, document_id, blob, stored, fields, body)
    return _accepted(accepted, taken.replayed)


async def replace(request: web.Request) -> web.Response:
    """PUT /api/documents/{id}: new content; what the document holds can be found until that can."""
    query(request, ())
    row = await _record(request)
    if row.get("media_type") == MEDIA_TYPE or row.get("index") == "false":
        raise RefusedError("conflict", "The document is not searched; delete it, and store the other one.")
    revision = await request.app[DOCUMENTS].next_revision(request[PRINCIPAL].tenant, row["id"])
    blob = f"files/{request[PRINCIPAL].tenant}/{row['id']}.{revision}"
    async with _taken(request, blob) as taken:
        stored, fields, body = await _read(request, blob, DocumentSource)
        if fields.get("media_type") == MEDIA_TYPE or fields.get("collection") or fields.get("index") == "false":
            raise invalid("$", "a document keeps its collection, and stays one that is searched")
        content = NewContent(
            revision=revision,
            blob=blob,
            size_bytes=stored.size_bytes if stored else None,
            sha256=stored.sha256 if stored else None,
            filename=fields.get("filename"),
            url=fields.get("url"),
            title=fields.get("title"),
            metadata=fields.get("metadata"),
        )
        job = IngestJob(input=IngestInput(document_id=row["id"], content=content))
        admitted = await _take_in(request, job, stored, body, companion=None)
        taken.replayed = admitted.replayed
        if not taken.replayed:
            await request.app[DOCUMENTS].change(row["id"], {"job_id": admitted.job_id})
    return _accepted(DocumentAccepted(document_id=row["id"], job_id=admitted.job_id), taken.replayed)


def _accepted(accepted: DocumentAccepted, replayed: bool) -> web.Response:
    headers = {"Location": f"/api/documents/{accepted.document_id}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return answer(accepted, status=202, headers=headers)


class _Taken:
    """Whether what was sent had come before."""

    replayed = False


@asynccontextmanager
async def _taken(request: web.Request, blob: str) -> AsyncIterator[_Taken]:
    """Discards the blob when it is not needed."""
    kept, taken = False, _Taken()
    try:
        yield taken
        kept = not taken.replayed
    except (*OUTAGE, asyncio.CancelledError):
        kept = True  # the admission may have happened: better an orphaned file than a document without one
        raise
    finally:
        if not kept:
            await _discard(request, blob)


async def _read(
    request: web.Request, blob: str, kind: type[DocumentSource]
) -> tuple[Stored | None, dict[str, Any], bytes]:
    """The content, stored (None: its URL is among the fields); the fields beside it; what an idempotency key is bound
    to."""
    upload = Upload(request.app[SETTINGS])
    if request.content_type == "multipart/form-data":
        try:
            async with asyncio.timeout(request.app[SETTINGS].upload_seconds):
                return await _read_upload(request, blob, upload)
        except TimeoutError:
            raise RefusedError("request_timeout", "The upload took too long.") from None
    new, body = await read_json(request, kind)
    fields: dict[str, Any] = {"title": new.title, "metadata": new.metadata}
    if isinstance(new, NewTextDocument):
        fields |= {"collection": new.collection, "index": None if new.index else "false"}
    if new.url is not None:
        if not request.app[SETTINGS].fetch_enabled:
            raise invalid("$.url", "fetching is switched off on this installation (ERRAND_FETCH_ENABLED)")
        return None, {**fields, "url": new.url}, body
    content = _one((new.text or "").encode("utf-8", "replace"))
    return await _store(request, blob, content, upload.max_file_bytes), fields, body


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _discard(request: web.Request, blob: str) -> None:
    """Deletes a blob, or has it deleted when its store can be reached again."""
    try:
        await request.app[BLOBS].delete(blob)
    except BlobsUnavailableError:
        await request.app[OUTPUTS].discard(blob)


async def _store(request: web.Request, blob: str, chunks: AsyncIterator[bytes], limit: int) -> Stored:
    try:
        return await request.app[BLOBS].put_stream(blob, chunks, limit_bytes=limit)
    except BlobTooLargeError:
        raise too_large(limit) from None


class Upload:
    """A file as it arrives: its first bytes say whether it is a batch file, and so how long it may be."""

    def __init__(self, settings: Settings) -> None:
        self.max_file_bytes = settings.max_upload_bytes
        self.max_bytes = max(settings.max_upload_bytes, settings.max_batch_bytes)
        self._max_batch_bytes = settings.max_batch_bytes
        self._head = b""
        self._size = 0

    @property
    def is_batch(self) -> bool:
        """What it is, now that it is all there."""
        return is_batch(self._head, whole=self._size <= HEAD_BYTES)

    async def bounded(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks. Raises RefusedError `too_large` when there are more than a file of this kind may have."""
        limit = min(self.max_file_bytes, self._max_batch_bytes)
        async for chunk in chunks:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
            self._size += len(chunk)
            if self._size > limit:
                so_far = is_batch(self._head, whole=False)
                limit = self._max_batch_bytes if so_far else self.max_file_bytes
                if self._size > limit:
                    raise too_large(limit)
            yield chunk


async def _read_upload(request: web.Request, blob: str, upload: Upload) -> tuple[Stored, dict[str, Any], bytes]:
    """The file, stored as it arrives; the text fields beside it; and what an idempotency key is bound to."""
    stored: Stored | None = None
    fields: dict[str, Any] = {}
    seconds = request.app[SETTINGS].body_seconds
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise RefusedError("unsupported_media_type", "An upload has no Content-Encoding; send the bytes as they are.")
    reader = await _parsed(request.multipart(), seconds)
    while (part := await _parsed(reader.next(), seconds)) is not None:
        if not isinstance(part, BodyPartReader):
            raise invalid("multipart", "a part is itself multipart; send the file as it is")
        if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
            raise invalid(f"multipart.{part.name}", "has a Content-Transfer-Encoding; send the bytes as they are")
        if part.name == "file":
            if stored is not None:
                raise invalid("multipart.file", "given more than once")
            stored = await _store(request, blob, upload.bounded(_chunks(part, seconds)), upload.max_bytes)
            fields["filename"] = _clean_name(part.filename)
        elif part.name in TEXT_FIELDS:
            if part.name in fields:
                raise invalid(f"multipart.{part.name}", "given more than once")
            content = b"".join([chunk async for chunk in _chunks(part, seconds, limit=MAX_FIELD_BYTES)])
            fields[part.name] = content.decode("utf-8", "replace")
        else:
            known = ", ".join(("file", *TEXT_FIELDS))
            raise invalid("multipart", f"there is an unknown field; known are {known}")
    if stored is None:
        raise invalid("multipart.file", "this field is required")
    if stored.size_bytes == 0:
        raise invalid("multipart.file", "the file is empty")
    if "metadata" in fields:
        fields["metadata"] = _metadata(fields["metadata"])
    for name in ("title", "collection"):
        if name in fields and not 1 <= len(fields[name]) <= 256:
            raise invalid(f"multipart.{name}", "must have 1 to 256 characters")
    index = fields.pop("index", "true")
    if index not in ("true", "false"):
        raise invalid("multipart.index", "must be true or false")
    if upload.is_batch:
        if index != "false":
            raise invalid(
                "multipart.index",
                "this is a batch file (NDJSON), which is stored for batch jobs and not searched: send index=false",
            )
        fields["media_type"] = MEDIA_TYPE
    if index == "false":
        fields["index"] = "false"
    identity = msgspec.json.encode([stored.sha256, sorted(fields.items(), key=lambda item: item[0])])
    return stored, fields, identity


async def _parsed(awaitable: Any, seconds: float) -> Any:
    """What aiohttp's multipart reader gives. Raises RefusedError: `malformed_request` for whatever it stumbles over
    (it raises many kinds), `request_timeout` when nothing came for `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError:
        raise RefusedError("request_timeout", f"Nothing arrived for {seconds:g} s.") from None
    except Exception as error:
        raise RefusedError(
            "malformed_request", f"The multipart body cannot be read ({type(error).__name__})."
        ) from None


async def _chunks(part: BodyPartReader, seconds: float, limit: int | None = None) -> AsyncIterator[bytes]:
    size = 0
    while chunk := await _parsed(part.read_chunk(256 * 1024), seconds):
        size += len(chunk)
        if limit is not None and size > limit:
            raise invalid(f"multipart.{part.name}", f"is longer than {limit} bytes")
        yield bytes(chunk)


def _clean_name(filename: str | None) -> str | None:
    """A file name as it may be stored and shown: for people only, never a path."""
    text = (filename or "").encode("utf-8", "replace").decode()
    return "".join(character for character in text if character.isprintable())[:255] or None


def _metadata(text: str) -> dict[str, str]:
    try:
        return msgspec.json.decode(text, type=Metadata)
    except msgspec.DecodeError as error:
        raise invalid("multipart.metadata", f"must be a JSON object of strings: {error}") from None


async def _admit(
    request: web.Request, document_id: str, blob: str, stored: Stored | None, fields: dict[str, Any], body: bytes
) -> tuple[DocumentAccepted, bool]:
    """Stores the record and its ingest job in one step; on a replay the first request's ids."""
    tenant = request[PRINCIPAL].tenant
    record = {
        **{name: fields.get(name) for name in ("title", "filename", "media_type", "collection", "url", "index")},
        "metadata": msgspec.json.encode(fields.get("metadata") or {}).decode(),
        "file_blob": blob,
        "size_bytes": stored.size_bytes if stored else None,
        "sha256": stored.sha256 if stored else None,
        "revision": 1,
        "next": 1,
    }
    job = IngestJob(input=IngestInput(document_id=document_id))
    companion = request.app[DOCUMENTS].companion(tenant, document_id, record)
    admitted = await _take_in(request, job, stored, body, companion)
    if admitted.replayed:
        _, spec = await request.app[JOBS].spec(tenant, admitted.job_id)
        document_id = msgspec.json.decode(spec, type=IngestJob).input.document_id
    return DocumentAccepted(document_id=document_id, job_id=admitted.job_id), admitted.replayed


async def _take_in(
    request: web.Request, job: IngestJob, stored: Stored | None, body: bytes, companion: Companion | None
) -> Admitted:
    """Admits an ingest job. Raises RefusedError."""
    settings, principal = request.app[SETTINGS], request[PRINCIPAL]
    digest, body_hash = idempotency(request, body)
    size_bytes = min(stored.size_bytes, MOST_ESTIMATED) if stored else 0
    record = record_of(job, settings, size_bytes=size_bytes, key=principal.key_id)
    try:
        admitted = await request.app[JOBS].admit(
            tenant=principal.tenant,
            lane=job.LANE,
            record=record,
            idem_digest=digest,
            idem_body=body_hash,
            companion=companion,
            unpriced=request.app[PRICES].price(record["model"]) is None,
            **timing_of(job, settings),
        )
    except RefusedError as error:
        JOBS_REFUSED.labels(error.code).inc()
        raise
    request[STANDING] = admitted.standing
    if not admitted.replayed:
        JOBS_ADMITTED.labels("ingest", job.priority.value).inc()
    return admitted


async def list_documents(request: web.Request) -> web.Response:
    """GET /api/documents."""
    parameters = query(request, ("limit", "after", "collection", "status"), prefix="metadata.")
    limit, after = page_of(parameters, "doc")
    wanted = {name.partition(".")[2]: value for name, value in parameters.items() if name.startswith("metadata.")}
    collection, status = parameters.get("collection"), parameters.get("status")
    if status is not None and status not in list(DocumentStatus):
        raise invalid("?status", f"must be one of {', '.join(DocumentStatus)}")

    def fits(view: DocumentView) -> bool:
        return (
            (collection is None or (view.collection or DEFAULT_COLLECTION) == collection)
            and (status is None or view.status == status)
            and all(view.metadata.get(name) == value for name, value in wanted.items())
        )

    rows, cursor = await request.app[DOCUMENTS].documents(
        request[PRINCIPAL].tenant,
        limit=limit,
        after=after,
        fits=fits if collection is not None or status is not None or wanted else None,
    )
    return page_answer(request, await _counted(request, rows), cursor)


async def _counted(request: web.Request, views: Sequence[DocumentView]) -> list[DocumentView]:
    """The documents with their chunks in search: those of the current version of their collection's index."""
    tenant, store = request[PRINCIPAL].tenant, request.app[INDEXES]
    names: dict[str, list[str]] = {}
    for view in views:
        names.setdefault(view.collection or DEFAULT_COLLECTION, []).append(view.document_id)
    chunks: dict[str, int] = {}
    for name, documents in names.items():
        if (collection := await store.collection(tenant, name)) is not None:
            entries = await store.entries(tenant, name, collection.current, documents)
            chunks |= {document_id: entry.chunks for document_id, entry in entries.items() if entry is not None}
    return [msgspec.structs.replace(view, chunks=chunks.get(view.document_id, 0)) for view in views]


async def show(request: web.Request) -> web.Response:
    """GET /api/documents/{id}."""
    query(request, ())
    (view,) = await _counted(request, [document_view(await _record(request))])
    return answer(view)


async def _record(request: web.Request) -> dict[str, str]:
    """The document; one whose ingest job ended without reading it says so."""
    return await request.app[DOCUMENTS].record(request[PRINCIPAL].tenant, request.match_info["id"])


async def text(request: web.Request) -> web.Response:
    """GET /api/documents/{id}/text: the normalised text into which all offsets point."""
    query(request, ())
    row = await _record(request)
    if row.get("media_type") == MEDIA_TYPE:
        raise RefusedError(
            "conflict", "The document is a batch file (NDJSON): it holds many texts, and is none itself."
        )
    if row["status"] != DocumentStatus.READY:
        raise RefusedError("conflict", f"The document is {row['status']}; its text is there once it is ready.")
    try:
        extracted = msgspec.json.decode(await request.app[BLOBS].get(row["text_blob"]), type=Extracted)
    except BlobMissingError:
        raise RefusedError("gone", "The document's text was removed.") from None
    return web.Response(text=extracted.text, content_type="text/plain", charset="utf-8")


async def change(request: web.Request) -> web.Response:
    """PATCH /api/documents/{id}: title and metadata, at once in search too."""
    query(request, ())
    patch, _ = await read_json(request, DocumentPatch)
    row = await _record(request)
    fields = {}
    if patch.title is not None:
        fields["title"] = patch.title
    if patch.metadata is not None:
        fields["metadata"] = msgspec.json.encode(patch.metadata).decode()
    collection = row.get("collection") or DEFAULT_COLLECTION
    await request.app[INDEXES].patch(request[PRINCIPAL].tenant, row["id"], collection, fields)
    (view,) = await _counted(request, [document_view(await _record(request))])
    return answer(view)


async def delete(request: web.Request) -> web.Response:
    """DELETE /api/documents/{id}."""
    query(request, ())
    tenant = request[PRINCIPAL].tenant
    try:
        row = await _record(request)
    except RefusedError:
        if is_id("doc", request.match_info["id"]):  # an earlier call may have come no further than its record
            await request.app[SEARCHES].erase_document(tenant, request.match_info["id"])
        raise
    collection = row.get("collection") or DEFAULT_COLLECTION
    # By its known name: the record may have been read just before the text was there.
    named = {f"texts/{tenant}/{row['id']}", row["file_blob"], row.get("text_blob", "")} - {""}
    newest = int(row.get("next", "0"))
    for number in range(max(2, newest - MOST_CONTENTS), newest + 1):  # contents that were sent and never read
        named |= {f"{kind}/{tenant}/{row['id']}.{number}" for kind in ("files", "texts")}
    chunks, _ = await request.app[INDEXES].remove(tenant, row["id"], collection, blobs=sorted(named))
    searches = await request.app[SEARCHES].erase_document(tenant, row["id"])
    gone = []
    with suppress(BlobsUnavailableError):  # what is left stays on the list
        for blob in named:
            await request.app[BLOBS].delete(blob)
            gone.append(blob)
    await request.app[OUTPUTS].deleted(gone)
    return answer(DocumentDeleted(document_id=row["id"], deleted=True, chunks=chunks, searches=searches))
