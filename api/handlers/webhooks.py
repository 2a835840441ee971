"""Webhooks: deliveries listed and sent again, the secret that signs them, and a test. A worker makes the requests."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from api.acting import actor_of
from api.hooks import problem_of_url, settled_url
from api.keys import PRINCIPAL, SETTINGS, WEBHOOKS
from api.wire import answer, idempotency, invalid, page_answer, page_of, query, read_body, read_json
from shared.audit import Action, entry
from shared.clock import monotonic_s
from shared.codec import decode_body
from shared.errors import RefusedError
from shared.ids import is_id
from shared.stores.webhooks import DELIVERY
from shared.webhooks import DeliveryStatus, NewTest, Replay, SecretRotation, mark_of

LOOK_S: Final = 0.05
PATIENCE_S: Final = 5.0  # beyond the request's own bound, for a worker to take it


async def list_deliveries(request: web.Request) -> web.Response:
    """GET /api/webhooks/deliveries."""
    parameters = query(request, ("limit", "after", "status", "jobId"))
    limit, after = page_of(parameters, DELIVERY)
    status, job_id = parameters.get("status"), parameters.get("jobId")
    if status is not None and status not in list(DeliveryStatus):
        raise invalid("?status", f"must be one of {', '.join(DeliveryStatus)}")
    if job_id is not None and not is_id("job", job_id):
        raise invalid("?jobId", "is no id of a job")
    rows, cursor = await request.app[WEBHOOKS].listed(
        request[PRINCIPAL].tenant, limit=limit, after=after, status=status, job_id=job_id
    )
    return page_answer(request, rows, cursor)


async def show_delivery(request: web.Request) -> web.Response:
    """GET /api/webhooks/deliveries/{id}."""
    query(request, ())
    return answer(await request.app[WEBHOOKS].show(request[PRINCIPAL].tenant, request.match_info["id"]))


async def replay_delivery(request: web.Request) -> web.Response:
    """POST /api/webhooks/deliveries/{id}/replay."""
    query(request, ())
    body = await read_body(request) if request.body_exists else b""
    digest, body_hash = idempotency(request, body)
    store, tenant, delivery_id = request.app[WEBHOOKS], request[PRINCIPAL].tenant, request.match_info["id"]
    replayed = await store.replay(tenant, delivery_id, idem_digest=digest, idem_body=body_hash)
    return answer(await store.show(tenant, delivery_id), status=202, headers=_replayed(replayed))


async def replay_deliveries(request: web.Request) -> web.Response:
    """POST /api/webhooks/deliveries/replay."""
    query(request, ())
    wanted, body = await read_json(request, Replay)
    digest, body_hash = idempotency(request, body)
    done, replayed = await request.app[WEBHOOKS].replay_all(
        request[PRINCIPAL].tenant, wanted, idem_digest=digest, idem_body=body_hash
    )
    return answer(done, status=202, headers=_replayed(replayed))


async def test(request: web.Request) -> web.Response:
    """POST /api/webhooks/test."""
    query(request, ())
    wanted, body = await read_json(request, NewTest)
    settings, store, tenant = request.app[SETTINGS], request.app[WEBHOOKS], request[PRINCIPAL].tenant
    if (problem := problem_of_url(wanted.url, settings)) is not None:
        raise invalid("$.url", problem)
    digest, body_hash = idempotency(request, body)
    target = settled_url(wanted.url, settings)
    delivery_id, replayed = await store.test(
        tenant,
        wanted.url,
        mark_of(target),
        keep_ms=round(settings.webhook_retention_seconds * 1000),
        idem_digest=digest,
        idem_body=body_hash,
    )
    deadline = monotonic_s() + settings.webhook_seconds + PATIENCE_S
    while (shown := await store.show(tenant, delivery_id)).status is DeliveryStatus.PENDING:
        if monotonic_s() > deadline:
            raise RefusedError(
                "unavailable",
                f"No worker has sent it yet; GET /api/webhooks/deliveries/{delivery_id} says when one has.",
                headers={"Retry-After": "5"},
            )
        await asyncio.sleep(LOOK_S)
    return answer(shown, headers=_replayed(replayed))


async def show_secret(request: web.Request) -> web.Response:
    """GET /api/webhooks/secret."""
    query(request, ())
    view = await request.app[WEBHOOKS].secret(request[PRINCIPAL].tenant)
    return answer(view, headers={"Cache-Control": "no-store"})


async def rotate_secret(request: web.Request) -> web.Response:
    """POST /api/webhooks/secret/rotate."""
    query(request, ())
    wanted, body = SecretRotation(), b""
    if request.body_exists and (body := await read_body(request)).strip():
        wanted = decode_body(body, SecretRotation)
    digest, body_hash = idempotency(request, body)
    tenant = request[PRINCIPAL].tenant
    overlap: Any = (None, wanted.overlap_seconds)
    view, replayed = await request.app[WEBHOOKS].rotate(
        tenant,
        overlap_ms=wanted.overlap_seconds * 1000,
        audit=entry(actor_of(request), Action.WEBHOOK_SECRET_ROTATED, tenant, changes={"overlapSeconds": overlap}),
        idem_digest=digest,
        idem_body=body_hash,
    )
    return answer(view, headers={"Cache-Control": "no-store", **_replayed(replayed)})


def _replayed(is_replayed: bool) -> dict[str, str]:
    return {"Idempotent-Replayed": "true"} if is_replayed else {}
