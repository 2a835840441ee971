"""`ingest`: reads an uploaded document and keeps its text; of a batch file it counts the lines."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from shared.documents import Skipped
from shared.specs import IngestInput
from worker.context import JobContext


class IngestResult(msgspec.Struct, frozen=True, rename="camel"):
    """`chunks` counts the parts in the search index; `skipped` names what has no readable text. Of a batch file: its
    `items`, and how many of them cannot be used."""

    document_id: str
    chunks: int
    skipped: list[Skipped]
    items: int | UnsetType = UNSET
    bad_items: int | UnsetType = UNSET


async def ingest(spec: IngestInput, context: JobContext) -> IngestResult:
    """Extracts the text. Raises DocumentRejected, and then marks the document so."""
    tenant, library = context.job.tenant, context.deps.library
    if await library.is_batch(tenant, spec.document_id):
        return await _count(spec.document_id, context)
    context.report.progress(None, "extract", "Reading the document")
    extracted, _ = await library.load(tenant, spec.document_id, again=True)
    context.report.progress(1.0, "extract", f"Read {len(extracted.text)} characters")
    return IngestResult(spec.document_id, 0, extracted.skipped)


async def _count(document_id: str, context: JobContext) -> IngestResult:
    def told(fraction: float, items: int) -> None:
        context.report.progress(fraction, "count", f"Read {items} items")

    count = await context.deps.library.count_batch(context.job.tenant, document_id, told)
    bad = count.items - count.good
    faulty = f", {bad} of them cannot be used" if bad else ""
    context.report.progress(1.0, "count", f"Read {count.items} items{faulty}")
    return IngestResult(document_id, 0, [], count.items, bad)
