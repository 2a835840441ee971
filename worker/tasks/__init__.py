"""The tasks, one file per job type."""

from __future__ import annotations

from worker.execution import Handler
from worker.tasks.agent import run_agent
from worker.tasks.analysis import analyse_document
from worker.tasks.chat import chat
from worker.tasks.embedding import embed_batch
from worker.tasks.erasure import erase_tenant
from worker.tasks.ingest import ingest

HANDLERS: dict[str, Handler] = {
    "agent": run_agent,
    "batch-embedding": embed_batch,
    "chat": chat,
    "document-analysis": analyse_document,
    "ingest": ingest,
    "tenant-erasure": erase_tenant,
}
