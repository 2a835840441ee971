"""Documents: upload, list, read, delete. The file is stored here; an `ingest` job reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import BodyPartReader, web

from api.admission import record_of, timing_of
from api.keys import BLOBS, DOCUMENTS, JOBS, OUTPUTS, PRINCIPAL, REDIS, SETTINGS
from api.wire import answer, idempotency, invalid, page_answer, page_of, query, read_json, too_large, traceparent_of
from shared.batch import HEAD_BYTES, MEDIA_TYPE, is_batch
from shared.blobs import BlobMissingError, BlobTooLargeError, Stored
from shared.documents import DocumentAccepted, DocumentStatus, Extracted, NewTextDocument
from shared.errors import BlobsUnavailableError, RefusedError
from shared.ids import new_id
from shared.metrics import JOBS_ADMITTED
from shared.redis import OUTAGE, redis_now_ms
from shared.settings import Settings
from shared.specs import IngestInput, IngestJob, Metadata
from shared.stores.documents import document_view

MAX_FIELD_BYTES = 64 * 1024
TEXT_FIELDS = ("title", "collection", "metadata", "index")


async def create(request: web.Request) -> web.Response:
    """POST /api/documents: a multipart file, or JSON with the text."""
    query(request, ())
    document_id = new_id("doc", await redis_now_ms(request.app[REDIS]))
    blob = f"files/{request[PRINCIPAL].tenant}/{document_id}"
    kept, upload = False, Upload(request.app[SETTINGS])
    try:
        if request.content_type == "multipart/form-data":
            try:
                async with asyncio.timeout(request.app[SETTINGS].upload_seconds):
                    stored, fields, body = await _read_upload(request, blob, upload)
            except TimeoutError:
                raise RefusedError("request_timeout", "The upload took too long.") from None
        else:
            new, body = await read_json(request, NewTextDocument)
            if not new.text.strip() or "\0" in new.text:
                raise invalid("$.text", "holds a NUL character, or nothing but white space")
            stored = await _store(request, blob, _one(new.text.encode("utf-8", "replace")), upload.max_file_bytes)
            fields = {"title": new.title, "collection": new.collection, "metadata": new.metadata}
        accepted, replayed = await _admit(request, document_id, blob, stored, fields, body)
        kept = not replayed
    except (*OUTAGE, asyncio.CancelledError):
        kept = True  # the admission may have happened: better an orphaned file than a document without one
        raise
    finally:
        if not kept:
            await _discard(request, blob)
    headers = {"Location": f"/api/documents/{accepted.document_id}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return answer(accepted, status=202, headers=headers)


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
    request: web.Request, document_id: str, blob: str, stored: Stored, fields: dict[str, Any], body: bytes
) -> tuple[DocumentAccepted, bool]:
    """Stores the record and its ingest job in one step; on a replay the first request's ids."""
    settings = request.app[SETTINGS]
    tenant = request[PRINCIPAL].tenant
    job = IngestJob(input=IngestInput(document_id=document_id))
    record = {
        "title": fields.get("title"),
        "filename": fields.get("filename"),
        "media_type": fields.get("media_type"),
        "collection": fields.get("collection"),
        "metadata": msgspec.json.encode(fields.get("metadata") or {}).decode(),
        "file_blob": blob,
        "size_bytes": stored.size_bytes,
        "sha256": stored.sha256,
    }
    digest, body_hash = idempotency(request, body)
    admitted = await request.app[JOBS].admit(
        tenant=tenant,
        lane=job.LANE,
        record=record_of(job, settings, traceparent_of(request)),
        idem_digest=digest,
        idem_body=body_hash,
        companion=request.app[DOCUMENTS].companion(tenant, document_id, record),
        **timing_of(job, settings),
    )
    if admitted.replayed:
        _, spec = await request.app[JOBS].spec(tenant, admitted.job_id)
        document_id = msgspec.json.decode(spec, type=IngestJob).input.document_id
    else:
        JOBS_ADMITTED.labels("ingest", job.priority.value).inc()
    return DocumentAccepted(document_id=document_id, job_id=admitted.job_id), admitted.replayed


async def list_documents(request: web.Request) -> web.Response:
    """GET /api/documents."""
    limit, after = page_of(query(request, ("limit", "after")), "doc")
    rows, more = await request.app[DOCUMENTS].documents(request[PRINCIPAL].tenant, limit=limit, after=after)
    return page_answer(request, rows, rows[-1].document_id if more else None)


async def show(request: web.Request) -> web.Response:
    """GET /api/documents/{id}."""
    query(request, ())
    return answer(document_view(await _record(request)))


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


async def delete(request: web.Request) -> web.Response:
    """DELETE /api/documents/{id}."""
    query(request, ())
    row = await _record(request)
    tenant = request[PRINCIPAL].tenant
    await request.app[DOCUMENTS].delete(tenant, row["id"])
    # By its known name: the record may have been read just before the text was there.
    await _discard(request, f"texts/{tenant}/{row['id']}")
    await _discard(request, row["file_blob"])
    return web.Response(status=204)
