"""The tasks, one file per job type."""

from __future__ import annotations

from worker.execution import Handler
from worker.tasks.agent import run_agent
from worker.tasks.analysis import analyse_document
from worker.tasks.chat import chat
from worker.tasks.embedding import embed_batch
from worker.tasks.erasure import erase_tenant
from worker.tasks.ingest import ingest
from worker.tasks.reindex import reindex
from worker.tasks.search import search

HANDLERS: dict[str, Handler] = {
    "agent": run_agent,
    "batch-embedding": embed_batch,
    "chat": chat,
    "document-analysis": analyse_document,
    "ingest": ingest,
    "reindex": reindex,
    "search": search,
    "tenant-erasure": erase_tenant,
}
