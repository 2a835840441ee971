"""Collections: what is in search, with which model, and the versions of its index."""

from __future__ import annotations

import asyncio
import base64

import msgspec
from aiohttp import web

from api.admission import record_of, timing_of
from api.handlers.jobs import first_view
from api.keys import DOCUMENTS, INDEXES, JOBS, PRICES, PRINCIPAL, SETTINGS, STANDING
from api.pinning import NOTHING
from api.wire import answer, idempotency, invalid, page_answer, page_size, query, read_json
from shared.collections import Reindex, default_spec
from shared.errors import RefusedError
from shared.metrics import JOBS_ADMITTED
from shared.specs import ReindexInput, ReindexJob
from shared.stores.indexes import Collection

LONG_S = 86_400.0  # a build may take long; what it has done is not done again


async def list_collections(request: web.Request) -> web.Response:
    """GET /api/collections."""
    parameters = query(request, ("limit", "after"))
    tenant, store = request[PRINCIPAL].tenant, request.app[INDEXES]
    after = _name_of(parameters["after"]) if "after" in parameters else None
    names, more = await store.names(tenant, limit=page_size(parameters), after=after)
    found = await asyncio.gather(*(store.collection(tenant, name) for name in names))
    cursor = base64.urlsafe_b64encode(names[-1].encode()).decode().rstrip("=") if more else None
    return page_answer(request, [one.view for one in found if one is not None], cursor)


def _name_of(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise invalid("?after", "is no cursor of this list") from None


async def show(request: web.Request) -> web.Response:
    """GET /api/collections/{name}."""
    query(request, ())
    return answer((await _collection(request)).view)


async def _collection(request: web.Request) -> Collection:
    name = request.match_info["name"]
    found = await request.app[INDEXES].collection(request[PRINCIPAL].tenant, name)
    if found is None:
        raise RefusedError("not_found", f"There is no collection {name[:256]!r}.")
    return found


async def _made(request: web.Request) -> Collection:
    """The collection; made now where its documents are all of a release without search."""
    tenant, name = request[PRINCIPAL].tenant, request.match_info["name"]
    known = await request.app[INDEXES].collection(tenant, name)
    if known is None and (await request.app[DOCUMENTS].ready(tenant, collection=name, limit=1))[0]:
        await request.app[INDEXES].open(tenant, name, default_spec(request.app[SETTINGS]))
    return await _collection(request)


async def reindex(request: web.Request) -> web.Response:
    """POST /api/collections/{name}/reindex: a further version of the index, built beside the one that answers."""
    query(request, ())
    wanted, body = await read_json(request, Reindex)
    collection = await _made(request)
    named = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    asked = collection.spec.asked if wanted.model in (None, collection.spec.model) else 0
    named["asked"] = wanted.dimensions or asked
    spec = msgspec.structs.replace(collection.spec, version=0, job_id=None, created_ms=0, **named)
    if wanted.model is not None and wanted.model != collection.spec.model and wanted.dimensions is None:
        spec = msgspec.structs.replace(spec, dimensions=0)
    if spec.query_marks != collection.spec.query_marks:
        spec = msgspec.structs.replace(spec, calibration=None)  # measured anew
    described = msgspec.to_builtins(spec)
    return await _begin(request, collection, ReindexInput(collection=collection.name, spec=described), spec.model, body)


async def roll_back(request: web.Request) -> web.Response:
    """POST /api/collections/{name}/rollback: 200 when it was done at once; 202 with the job that first puts into the
    version before what has come since."""
    query(request, ())
    collection = await _collection(request)
    if not collection.previous or collection.previous not in collection.specs:
        raise RefusedError("conflict", f"The collection {collection.name!r} has no version to go back to.")
    tenant, (digest, body_hash) = request[PRINCIPAL].tenant, idempotency(request, b"")
    if digest is not None and await request.app[JOBS].was_answered(tenant, digest, body_hash):
        # Sent again: the job that it began, whatever is current by now.
        wanted = ReindexInput(collection=collection.name, version=collection.previous)
        return await _begin(request, collection, wanted, collection.spec.model, b"")
    once = None if digest is None else f"{digest[:-7]}-switch"
    switched = await request.app[INDEXES].switch(collection, collection.previous, once=once)
    if switched.done:
        headers = {"Idempotent-Replayed": "true"} if switched.replayed else None
        return answer((await _collection(request)).view, headers=headers)
    spec = collection.specs[collection.previous]
    return await _begin(
        request, collection, ReindexInput(collection=collection.name, version=collection.previous), spec.model, b""
    )


async def _begin(
    request: web.Request, collection: Collection, wanted: ReindexInput, model: str, body: bytes
) -> web.Response:
    settings, principal = request.app[SETTINGS], request[PRINCIPAL]
    job = ReindexJob(input=wanted, timeout_seconds=LONG_S, model=model)
    digest, body_hash = idempotency(request, body)
    admitted = await request.app[JOBS].admit(
        tenant=principal.tenant,
        lane=job.LANE,
        record=record_of(job, settings, size_bytes=collection.chunks.get(collection.current, 0), key=principal.key_id),
        idem_digest=digest,
        idem_body=body_hash,
        unpriced=request.app[PRICES].price(model) is None,
        **timing_of(job, settings),
    )
    request[STANDING] = admitted.standing
    headers = {"Location": f"/api/jobs/{admitted.job_id}"}
    if admitted.replayed:
        headers["Idempotent-Replayed"] = "true"
    else:
        JOBS_ADMITTED.labels("reindex", job.priority.value).inc()
    return answer(await first_view(request, job, admitted, NOTHING), status=202, headers=headers)


async def _is_built(request: web.Request, collection: Collection) -> bool:
    """Whether the job that builds a version is still at it."""
    if collection.builder is None:
        return False
    try:
        row = await request.app[JOBS].view(request[PRINCIPAL].tenant, collection.builder)
    except RefusedError:
        return False
    return not row.is_final


async def drop_version(request: web.Request) -> web.Response:
    """DELETE /api/collections/{name}/versions/{version}: frees what a version takes; not that of the current one."""
    query(request, ())
    collection = await _collection(request)
    text = request.match_info["version"]
    version = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if version not in collection.specs:
        raise RefusedError("not_found", f"The collection has no version {text[:20]!r}.")
    if version == collection.current or (version == collection.building and await _is_built(request, collection)):
        raise RefusedError("conflict", "The version answers searches, or is being built (cancel that job).")
    await request.app[INDEXES].drop(request[PRINCIPAL].tenant, collection.name, version)
    return answer((await _collection(request)).view)
