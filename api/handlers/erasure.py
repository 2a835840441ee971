"""The end of a tenant: one call that begins the erasure of all it has. Scope `admin`."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from api.admission import admitted_view, record_of, timing_of
from api.keys import ERASURES, JOBS, PRINCIPAL, REQUEST_ID, SETTINGS, TENANTS
from api.wire import answer, query
from shared.audit import Action, Actor, entry
from shared.errors import RefusedError
from shared.jobs import view_of
from shared.metrics import JOBS_ADMITTED
from shared.specs import MAX_DELAY_S, ErasureInput, ErasureJob, Priority, type_of
from shared.stores.erasure import UnderWay
from shared.stores.tenants import DEFAULT_TENANT

TIMEOUT_S: Final = 6 * 3_600.0  # of an attempt: some ten thousand jobs a second, and its last running jobs
ATTEMPTS: Final = 10  # a blob store may be away for a while


async def delete_tenant(request: web.Request) -> web.Response:
    """DELETE /api/admin/tenants/{tenantId}."""
    query(request, ())
    target, principal, settings = request.match_info["tenantId"], request[PRINCIPAL], request.app[SETTINGS]
    if target == DEFAULT_TENANT:
        raise RefusedError("conflict", "The tenant `default` cannot be deleted: the admin key belongs to it.")
    if target == principal.tenant:
        raise RefusedError(
            "conflict",
            "A tenant cannot delete itself: the job that does it, and its receipt, would go with it. Use a key of "
            "another tenant, such as the admin key.",
        )
    name = (await request.app[TENANTS].tenant(target)).name
    job = ErasureJob(
        input=ErasureInput(tenant_id=target),
        priority=Priority.HIGH,
        timeout_seconds=TIMEOUT_S,
        max_attempts=ATTEMPTS,
        expires_in_seconds=MAX_DELAY_S,  # it waits for a worker as long as it takes
    )
    by = Actor(principal.key_id, principal.tenant, request[REQUEST_ID])
    timing = timing_of(job, settings)
    begun = await request.app[ERASURES].begin(
        target,
        tenant=principal.tenant,
        lane=job.LANE,
        record=record_of(job, settings, key=principal.key_id),
        class_ms=timing["class_ms"],
        expires_in_ms=timing["expires_in_ms"],
        audit=entry(by, Action.TENANT_DELETED, target, changes={"name": (name, None)}),
    )
    headers = {"Location": f"/api/jobs/{begun.job_id}"}
    if isinstance(begun, UnderWay):
        view = view_of(await request.app[JOBS].view(begun.tenant, begun.job_id))
        return answer(view, status=202, headers=headers)
    JOBS_ADMITTED.labels(type_of(job), job.priority.value).inc()
    return answer(admitted_view(job, begun, settings), status=202, headers=headers)
