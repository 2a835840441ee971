"""Documents as tasks use them: the stored file, read once in a process of its own, its text kept as a blob."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

import msgspec

from shared.batch import MAX_LINE_BYTES, MEDIA_TYPE, LineTooLong, lines, read_line
from shared.blobs import BlobMissingError, Blobs
from shared.documents import DocumentStatus, Extracted
from shared.errors import DocumentRejected, InvalidInput, ReaderFailed, RefusedError
from shared.settings import Settings
from shared.stores.documents import DocumentsStore, ReadyDocument
from shared.stores.records import Fields
from worker.documents.extract import Limits, RejectedError, detect, extract

MAX_LISTED: Final = 1_000
TELL_BYTES: Final = 32 * 1024 * 1024  # of a batch file, between two reports of progress
PLAIN: Final = frozenset({"text/plain", "text/markdown"})
PLAIN_BYTES: Final = 1024 * 1024
FOREIGN: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
PARALLEL: Final = 2  # readers at a time per worker; each may take ERRAND_EXTRACT_MEMORY_MB


class Count(msgspec.Struct, frozen=True):
    """The lines of a batch file that are not blank, and how many of them hold a text."""

    items: int
    good: int


class Library:
    """The documents of all tenants, for the tasks of one worker."""

    def __init__(self, settings: Settings, documents: DocumentsStore, blobs: Blobs) -> None:
        self._settings = settings
        self._documents = documents
        self._blobs = blobs
        self._readers = asyncio.Semaphore(PARALLEL)

    async def load(self, tenant: str, document_id: str, *, again: bool = False) -> tuple[Extracted, str | None]:
        """A document's text and title, read now if that was not done yet; `again` also tries one that was rejected.

        Raises InvalidInput when there is no such document, DocumentRejected when it cannot be read.
        """
        try:
            row = await self._documents.record(tenant, document_id)
            if row["status"] == DocumentStatus.REJECTED and not again:
                raise DocumentRejected(row.get("error", "The document could not be read."))
            if row.get("media_type") == MEDIA_TYPE:
                raise DocumentRejected("This is a batch file (NDJSON): it holds many texts and is no document to read.")
            if "url" in row and row.get("fetched") != "1" and "text_blob" not in row:
                raise DocumentRejected("The document was not fetched yet: its ingest job does that.")
            if "text_blob" in row:
                extracted = msgspec.json.decode(await self._blobs.get(row["text_blob"]), type=Extracted)
            else:
                extracted = await self._read(tenant, row)
        except RefusedError as error:
            raise InvalidInput(error.detail) from None
        except BlobMissingError:
            raise InvalidInput(f"The document {document_id} was deleted.") from None
        return extracted, row.get("title") or extracted.title or row.get("filename")

    async def record(self, tenant: str, document_id: str) -> Fields:
        """A document's fields. Raises InvalidInput when there is no such document."""
        return await self._record(tenant, document_id)

    @staticmethod
    def is_batch_file(row: Fields) -> bool:
        """Whether a document is a batch file, by its record."""
        return row.get("media_type") == MEDIA_TYPE

    async def is_batch(self, tenant: str, document_id: str) -> bool:
        """Whether a document is a batch file. Raises InvalidInput when there is no such document."""
        return (await self._record(tenant, document_id)).get("media_type") == MEDIA_TYPE

    async def _record(self, tenant: str, document_id: str) -> Fields:
        try:
            return await self._documents.record(tenant, document_id)
        except RefusedError as error:
            raise InvalidInput(error.detail) from None

    async def count_batch(self, tenant: str, document_id: str, progress: Callable[[float, int], None]) -> Count:
        """Reads a batch file through once, and counts its lines; `progress` hears now and then how far it is: the
        fraction (0..1), and the lines so far.

        Raises InvalidInput when there is no such document, DocumentRejected when no line of it is good.
        """
        row = await self._record(tenant, document_id)
        items = good = read = told = 0
        first_fault = ""
        size = int(row["size_bytes"])

        async def watched(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            nonlocal read, told
            async for chunk in chunks:
                read += len(chunk)
                yield chunk
                if read - told >= TELL_BYTES:
                    told = read
                    progress(min(1.0, read / size), items)

        try:
            async with aclosing(self._blobs.stream(row["file_blob"])) as stream:
                async for line in lines(watched(stream), max_line_bytes=MAX_LINE_BYTES):
                    items += 1
                    if not (fault := _fault(line)):
                        good += 1
                    elif not first_fault:
                        first_fault = f" Line {items}: {fault}"
        except BlobMissingError:
            raise InvalidInput(f"The document {document_id} was deleted.") from None
        if not good:
            reason = f"No line of this batch file can be used.{first_fault}"
            await self._documents.set_rejected(document_id, reason)
            raise DocumentRejected(reason)
        if not await self._documents.set_batch_ready(document_id, items):
            raise InvalidInput(f"The document {document_id} was deleted while it was read.")
        return Count(items, good)

    async def ready(self, tenant: str, collection: str | None = None) -> tuple[list[ReadyDocument], bool]:
        """The newest documents that were read, of one collection or of all; and whether there are more."""
        return await self._documents.ready(tenant, collection=collection, limit=MAX_LISTED)

    async def collection_of(self, tenant: str, document_id: str) -> str | None:
        """The collection of a document. Raises InvalidInput when there is no such document."""
        return (await self._record(tenant, document_id)).get("collection")

    async def _read(self, tenant: str, row: Fields) -> Extracted:
        document_id = row["id"]
        content = await self._blobs.get(row["file_blob"])
        try:
            extracted = await self.extract(content)
        except ReaderFailed:
            raise
        except DocumentRejected as error:
            await self._documents.set_rejected(document_id, error.message)
            raise
        text_blob = f"texts/{tenant}/{document_id}"
        await self._blobs.put(text_blob, msgspec.json.encode(extracted))
        kept = await self._documents.set_ready(document_id, extracted, text_blob, int(row.get("revision", "0")))
        if not kept:
            await self._blobs.delete(text_blob)
            what = "was deleted" if kept is False else "was given a newer content"
            raise InvalidInput(f"The document {document_id} {what} while it was read.")
        return extracted

    async def extract(self, content: bytes) -> Extracted:
        """The text of a file's content. Raises DocumentRejected."""
        settings = self._settings
        limits = Limits(
            memory_mb=settings.extract_memory_mb,
            seconds=settings.extract_seconds,
            pages=settings.max_document_pages,
            characters=settings.max_document_characters,
        )
        if (found := await asyncio.to_thread(_plain, content, limits)) is not None:
            return found
        async with self._readers:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worker.documents.extract", msgspec.json.encode(limits).decode(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            try:
                async with asyncio.timeout(settings.extract_seconds):
                    output, noise = await process.communicate(content)
            except TimeoutError:
                raise ReaderFailed(f"Reading the document took longer than {settings.extract_seconds:g} s.") from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return _outcome(process.returncode or 0, output, noise)


def _plain(content: bytes, limits: Limits) -> Extracted | None:
    """The text of a small file that is nothing but text, which no parser of a foreign format has to read; None for all
    others, which are read in a process of their own."""
    if len(content) > PLAIN_BYTES or content.startswith(FOREIGN) or b"%PDF-" in content[:1024]:
        return None
    try:
        return extract(content, limits) if detect(content) in PLAIN else None
    except RejectedError as error:
        raise DocumentRejected(str(error)) from None


def _fault(line: bytes | LineTooLong) -> str:
    """What is wrong with a line; empty when nothing is."""
    if isinstance(line, LineTooLong):
        return f"It has {line.size_bytes} bytes; at most {MAX_LINE_BYTES} are read."
    try:
        read_line(line)
    except ValueError as error:
        return str(error)
    return ""


def _outcome(code: int, output: bytes, noise: bytes) -> Extracted:
    if code == 0:
        return msgspec.json.decode(output, type=Extracted)
    if code == 3:
        reason: dict[str, Any] = msgspec.json.decode(output)
        raise DocumentRejected(reason["reason"])
    last = noise.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"signal {-code}" if code < 0 else ""]
    if "MemoryError" in last[0] or "cannot allocate" in last[0].lower():
        raise DocumentRejected("The document needs too much memory to be read.")
    raise ReaderFailed(f"The reader of this format failed on the document ({last[0][:200]}).")
