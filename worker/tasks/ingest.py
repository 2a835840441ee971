"""`ingest`: reads an uploaded document and keeps its text."""

from __future__ import annotations

import msgspec

from shared.documents import Skipped
from shared.specs import IngestInput
from worker.context import JobContext


class IngestResult(msgspec.Struct, frozen=True, rename="camel"):
    """`chunks` counts the parts in the search index; `skipped` names what has no readable text."""

    document_id: str
    chunks: int
    skipped: list[Skipped]


async def ingest(spec: IngestInput, context: JobContext) -> IngestResult:
    """Extracts the text. Raises DocumentRejected, and then marks the document so."""
    context.report.progress(None, "extract", "Reading the document")
    extracted, _ = await context.deps.library.load(context.job.tenant, spec.document_id, again=True)
    context.report.progress(1.0, "extract", f"Read {len(extracted.text)} characters")
    return IngestResult(spec.document_id, 0, extracted.skipped)
