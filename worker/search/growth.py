"""A collection that has outgrown the memory of workers moves to a vector set, where the server has them."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from shared.collections import EXACT, VSET
from shared.errors import RefusedError
from shared.log import get_logger
from shared.specs import Priority, ReindexInput, ReindexJob
from shared.stores.jobs import CLASS, JobsStore
from worker.context import JobContext
from worker.search.vset import has_vector_sets

log = get_logger()

BUILD_S: Final = 86_400.0  # an attempt at a build; the next goes on where it ended


async def look(context: JobContext, name: str) -> str | None:
    """The job that moves the collection, if it is large enough, its server can, and nobody is at it; else None. Raises
    a member of OUTAGE."""
    deps = context.deps
    limit, store, tenant = deps.settings.search_vset_chunks, deps.indexes, context.job.tenant
    if not limit:
        return None
    collection = await store.collection(tenant, name)
    if collection is None or collection.building or collection.spec.engine != EXACT:
        return None
    if not collection.spec.model:
        return None  # found by words only: there are no vectors to move
    if collection.chunks.get(collection.current, 0) < limit or not await has_vector_sets(store.client):
        return None
    spec = msgspec.structs.replace(collection.spec, version=0, engine=VSET, job_id=None, created_ms=0)
    wanted = ReindexInput(collection=name, spec=msgspec.to_builtins(spec))
    job = ReindexJob(input=wanted, timeout_seconds=BUILD_S, model=spec.model or None, priority=Priority.LOW)
    mark = hashlib.sha256(f"outgrown {name} {collection.current}".encode()).hexdigest()
    text = msgspec.json.encode(job).decode()
    try:
        admitted = await JobsStore(store.client, store.keys).admit(
            tenant=tenant,
            lane=job.LANE,
            record={
                "type": "reindex",
                "priority": job.priority.value,
                "metadata": "{}",
                "model": spec.model,
                "spec": text,
                "max_attempts": job.max_attempts,
                "grant": job.max_attempts,
                "timeout_ms": round(BUILD_S * 1000),
                "retention_ms": round(deps.settings.retention_seconds * 1000),
                "est": len(text),
                **({"key": context.job.key} if context.job.key else {}),
            },
            class_ms=round(CLASS[job.priority] * deps.settings.aging_seconds * 1000),
            expires_in_ms=round(BUILD_S * 1000),
            idem_digest=mark[:40],  # once a day for a version: a move that failed is tried again
            idem_body=mark,
        )
    except RefusedError as error:  # a limit of the tenant: the next document asks again
        log.info("search.not_moved", collection=name, reason=error.code)
        return None
    if admitted.replayed:
        return None
    log.info("search.outgrown", collection=name, chunks=collection.chunks[collection.current], job=admitted.job_id)
    return admitted.job_id
