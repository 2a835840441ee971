"""Taking in a `batch-embedding` job: its texts become a blob of NDJSON lines, so that small and large inputs are read
in the same way, and never whole in memory by a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from api.keys import BLOBS, DOCUMENTS, PRINCIPAL
from shared.ids import random_part
from shared.specs import EmbeddingInput, EmbeddingJob, EmbeddingSource, StoredEmbeddingJob

LINES_PER_WRITE = 500

_encode = msgspec.json.Encoder().encode


async def stored_form(request: web.Request, job: EmbeddingJob) -> tuple[StoredEmbeddingJob, str | None, int]:
    """The job as it is stored, the blob that was made for it (None for an upload), and the bytes of its texts.

    Raises RefusedError `not_found` when it names a document that there is not.
    """
    wanted = job.input
    made: str | None = None
    if wanted.document_id is not None:
        row = await request.app[DOCUMENTS].record(request[PRINCIPAL].tenant, wanted.document_id)
        blob, size = row["file_blob"], int(row["size_bytes"])
    else:
        made = blob = f"inputs/{request[PRINCIPAL].tenant}/{random_part()}"
        # The bound of a body bounds this too; JSON may escape what a body did not.
        size = (await request.app[BLOBS].put_stream(blob, _lines(wanted), limit_bytes=1 << 40)).size_bytes
    source = EmbeddingSource(
        blob=blob,
        document_id=wanted.document_id,
        model=wanted.model,
        dimensions=wanted.dimensions,
        encoding=wanted.encoding,
    )
    common = {
        field.name: getattr(job, field.name) for field in msgspec.structs.fields(EmbeddingJob) if field.name != "input"
    }
    return StoredEmbeddingJob(input=source, **common), made, size


async def _lines(wanted: EmbeddingInput) -> AsyncIterator[bytes]:
    """The texts as NDJSON, some hundred lines at a time."""
    rows: list[str] | list[dict[str, str]]
    if wanted.texts is not None:
        rows = wanted.texts
    else:
        rows = [{"text": item.text} | ({"id": item.id} if item.id is not None else {}) for item in wanted.items or ()]
    for first in range(0, len(rows), LINES_PER_WRITE):
        yield b"".join(_encode(row) + b"\n" for row in rows[first : first + LINES_PER_WRITE])
